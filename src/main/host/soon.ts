/** Waiting for what another process holds for an instant and the kernel tells nobody about, such as a flock(2). */
const pause = new Int32Array(new SharedArrayBuffer(4));

/** Looks every millisecond until there is something, for `ms` at most. Blocks this thread. */
export const soon = <T>(ms: number, look: () => T | undefined): T | undefined => {
  for (const end = performance.now() + ms; ; Atomics.wait(pause, 0, 0, 1)) {
    const found = look();
    if (found !== undefined || performance.now() > end) return found;
  }
};
