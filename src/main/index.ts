export { Engine } from './engine.js';
export type { CallResult, ForkHooks, ForkResult, Hooks, NewSnapshot } from './engine.js';
export type { Sandbox, SandboxInfo } from './sandbox/sandbox.js';
export { ForkdError, type ErrorData } from '../contract/errors.js';
