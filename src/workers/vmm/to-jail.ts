/** A VM that has the shim for its jail alone: the shim's socket, and the one thing that is said on it. */
import { ForkdError } from '../../contract/errors.js';
import type { JailOrder } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import type { Deadline } from '../deadline.js';
import { hasEnded, HotforkControl } from './hotfork.js';

export interface WayToJail {
  /** What the VM inherits. */
  fds: [source: number, target: number][];
  /** The VM has been started, or has failed to: its end is its own. */
  started(): void;
  /** When it has opened all its files. Throws HOTFORK_REFUSED, HOTFORK_BROKEN, AGENT_UNREACHABLE when it has ended. */
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
      try {
        shim.hello(deadline);
        shim.jail(order, deadline);
      } catch (error) {
        const failure = ForkdError.from(error);
        throw hasEnded(failure)
          ? new ForkdError('AGENT_UNREACHABLE', { target: name, reason: 'the connection broke' }, failure)
          : failure;
      }
    },
    close: () => native.fdClose(ours),
  };
};
