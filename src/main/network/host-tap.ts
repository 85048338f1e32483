/**
 * The reference's way without namespaces: one interface of the host, `forkd-tap0`, with one guest behind it at 10.42.0.2. Who has made
 * it keeps it and decides what may pass; else it is made here, lets only what the host begins through, and goes with the guest.
 */
import { closeSync, existsSync, openSync } from 'node:fs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import { bringUpHostTap, makeDeadEnd, openHostTap } from '../../net/make.js';
import { commit } from '../../net/nft.js';
import { removeHostTapRules } from '../../net/ruleset.js';
import { canMakeNetworks } from './networks.js';

export interface HostTap {
  /** What the VMM is given: an open tap, or the name of one that it opens. */
  tap: number | string;
  /** The guest has its identity: until then whoever finds its agent there would be refused. Throws NETWORK_FAILED. */
  open: () => void;
  close: () => void;
}

/** `tied`: the guest may outlive this process, and what holds it must too. Throws NETWORK_DENIED, NETWORK_FAILED. */
export const hostTap = (name: string, tied = false): HostTap => {
  if (existsSync(`/sys/class/net/${name}`)) return { tap: name, open: () => undefined, close: () => undefined };
  const { tap, rules } = made(() => withHost((host) => openHostTap(host, name, !tied)));
  return {
    tap,
    open: () => made(() => withHost((host) => bringUpHostTap(host, name))),
    close: () => {
      if (tied) commit(rules, removeHostTapRules(name));
      for (const fd of [tap, rules]) native.fdClose(fd);
    },
  };
};

/** For a machine that has a card and is to have no network. Throws NETWORK_DENIED, NETWORK_FAILED. */
export const deadEnd = (): HostTap => {
  const tap = made(makeDeadEnd);
  return { tap, open: () => undefined, close: () => native.fdClose(tap) };
};

const made = <T>(make: () => T): T => {
  if (!canMakeNetworks()) throw new ForkdError('NETWORK_DENIED');
  try {
    return make();
  } catch (error) {
    throw new ForkdError('NETWORK_FAILED', { reason: reasonOf(error) }, error);
  }
};

const withHost = <T>(use: (host: number) => T): T => {
  const own = openSync('/proc/self/ns/net', 'r');
  try {
    return use(own);
  } finally {
    closeSync(own);
  }
};
