/** Lets a guest do what it has left for later. Blocks this worker's thread, as its other waits do. */
export const idle = (ms: number): void => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
};
