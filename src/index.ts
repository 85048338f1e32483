/** What `import ... from 'forkd'` gives: the client of the daemon, and the engine itself for programs that need no daemon. */
export * from './client/index.js';
export { Engine } from './main/engine.js';
export type { CallResult, ForkHooks, ForkResult, Hooks, NewSnapshot } from './main/engine.js';
export type { Sandbox as EngineSandbox, SandboxInfo as EngineSandboxInfo } from './main/sandbox/sandbox.js';
export { type ErrorData, ForkdError } from './contract/errors.js';
