import type { Sandbox } from './sandbox.js';

/** Ends VMs and waits until they are reaped. Their sockets close when the last worker that uses them is done. */
export const end = async (sandboxes: Iterable<Sandbox>): Promise<void> => {
  const all = [...sandboxes];
  // A pidfd watch does not keep the process alive; this does until the last one is reaped.
  const hold = setInterval(() => undefined, 60_000);
  for (const sandbox of all) sandbox.kill();
  await Promise.all(all.map((sandbox) => sandbox.ended));
  clearInterval(hold);
};
