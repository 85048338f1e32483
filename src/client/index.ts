/** `forkd/client`: the client alone, without the engine and its native addon. */
export { Controller } from './controller.js';
export { ControllerError } from './error.js';
export { type CreateOptions, Sandbox } from './sandbox.js';
export { GuestStream, type StreamPiece } from './stream.js';
export type * from './types.js';
