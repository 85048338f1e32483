/** A VM that has the shim for its jail alone: the shim's socket, and the one thing that is said on it. */
import type { JailOrder } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import type { Deadline } from '../deadline.js';
import { HotforkControl } from './hotfork.js';

export interface WayToJail {
  /** What the VM inherits. */
  fds: [source: number, target: number][];
  /** The VM has been started, or has failed to: its end is its own. */
  started(): void;
  /** When it has opened all its files. Throws HOTFORK_REFUSED, HOTFORK_BROKEN. */
  go(deadline: Deadline): void;
  close(): void;
}

const NOWHERE: WayToJail = { fds: [], started: () => undefined, go: () => undefined, close: () => undefined };

/** Without an order it leads nowhere. */
export const wayToJail = (order: JailOrder | undefined, name: string): WayToJail => {
  if (!order) return NOWHERE;
  const [ours, theirs] = native.socketPair('seqpacket');
  return {
    fds: [[theirs, order.controlTarget]],
    started: () => native.fdClose(theirs),
    go: (deadline) => {
      const shim = new HotforkControl(ours, name);
      shim.hello(deadline);
      shim.jail(order, deadline);
    },
    close: () => native.fdClose(ours),
  };
};
