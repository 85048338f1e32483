/** Turns a request and the host's state into a plan. Pure: nothing is started, opened or asked here. */
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import type { NetworkWish } from '../../contract/network.js';
import { type ResourceLimits, resourceProblem } from '../../contract/resources.js';
import { hasCard, type Isolation, type SnapshotManifest } from '../../contract/snapshot.js';
import { type HostResources, requireRoom } from './admission.js';

export interface ForkRequest {
  tag: string;
  n: number;
  /** Refuse any other isolation. */
  require?: Isolation;
  perChildNetns?: boolean;
  /** With perChildNetns, the namespace to have if nobody else has it: a child's that is back. */
  netns?: string;
  /** Each child has a network of its own, and may reach what is in here. */
  network?: NetworkWish;
  memoryLimitMib?: number;
  /** See contract/resources.ts. */
  cpus?: number;
  ioMibPerS?: number;
  pids?: number;
  /** Refuse where this host cannot enforce the whole jail and every limit. */
  strict?: boolean;
  hugePages?: boolean;
  /** Load and check all of the memory before anything runs, instead of when it is touched. */
  eager?: boolean;
  /** Evaluated in every child as part of getting ready; its reply is in the result. */
  firstEval?: string;
  /** Restore each child the stock way, also where a hot fork would do. */
  cold?: boolean;
  /** A single child is hot-forked too, though a template costs more than it brings: only then can it be copied while it runs. */
  branchable?: boolean;
  /** Added to the environment of what runs in the children. */
  env?: Record<string, string>;
}

export interface HostState {
  resources: HostResources;
  /** Names under /var/run/netns. */
  netns: ReadonlySet<string>;
  /** This process may make networks. */
  makesNetworks: boolean;
  /** Those of them that are in use. */
  netnsTaken: ReadonlySet<string>;
  /** Why this host cannot hot-fork, or undefined when it can. */
  hotForkProblem: string | undefined;
  /** Children of a request from which on a template pays; 1 when one is there already. */
  hotFrom: number;
  newId: () => string;
  newMachineId: () => string;
}

export type Mechanism = 'hot-fork' | 'cold-restore';

export interface PlannedChild {
  index: number;
  id: string;
  hostname: string;
  machineId: string;
  /** Entered by its VMM when it was there before; else the name of its network. */
  netns?: string;
}

export interface Plan {
  tag: string;
  mechanism: Mechanism;
  /** Why not a hot fork, when it is a cold restore that was not asked for. */
  fallback?: string;
  isolation: Isolation;
  snapshot: SnapshotManifest;
  children: PlannedChild[];
  limits: ResourceLimits;
  /** Each child is given one; else its card, if it has one, leads to an interface of the host, to its namespace's, or nowhere. */
  network?: NetworkWish;
}

/** Throws COUNT_INVALID, KVM_REQUIRED, TCG_REQUIRED, TAP_SHARED, NETNS_MISSING, NETWORK_CARD_MISSING, MEMORY_SHORT, DESCRIPTORS_SHORT. */
export const planFork = (request: ForkRequest, snapshot: SnapshotManifest, host: HostState): Plan => {
  const { n, tag } = request;
  if (!Number.isSafeInteger(n) || n < 1 || n > limits.childrenMax) {
    throw new ForkdError('COUNT_INVALID', { n: String(n), max: limits.childrenMax });
  }
  requireIsolation(request.require, snapshot.isolation, `snapshot '${tag}'`);
  const placed = request.perChildNetns ? placeInNamespaces(request, host) : { names: [] };
  const network = placed.enters ? undefined : (request.network ?? (request.perChildNetns ? NOTHING : undefined));
  if (request.network && !hasCard(snapshot)) throw new ForkdError('NETWORK_CARD_MISSING', { tag });
  if (snapshot.tap && n > 1 && !network && !placed.enters)
    throw new ForkdError('TAP_SHARED', { tag, tap: snapshot.tap });
  const chosen = chooseMechanism(
    request,
    snapshot,
    host,
    placed.enters === true || (!network && snapshot.tap !== undefined),
  );
  requireRoom(n, chosen.mechanism, host.resources, network);

  const children = Array.from({ length: n }, (_, i): PlannedChild => {
    const index = i + 1;
    const id = host.newId();
    const child = { index, id, hostname: id, machineId: host.newMachineId() };
    const netns = placed.names[i];
    return netns === undefined ? child : { ...child, netns };
  });
  return {
    tag,
    ...chosen,
    isolation: snapshot.isolation,
    snapshot,
    children,
    limits: limitsOf(request),
    ...(network ? { network } : {}),
  };
};

/** Throws ARGUMENT_INVALID. */
const limitsOf = ({ memoryLimitMib: memoryMib, cpus, ioMibPerS, pids }: ForkRequest): ResourceLimits => {
  const wanted = Object.entries({ memoryMib, cpus, ioMibPerS, pids }).filter(([, value]) => value !== undefined);
  for (const [what, value] of wanted) {
    const problem = resourceProblem(what as keyof ResourceLimits, value as number);
    if (problem !== undefined) throw new ForkdError('REQUEST_REFUSED', { reason: problem });
  }
  return Object.fromEntries(wanted);
};

/** A hot fork wherever it can be had; else the reason why not. */
const chooseMechanism = (
  request: ForkRequest,
  snapshot: SnapshotManifest,
  host: HostState,
  isTied: boolean,
): Pick<Plan, 'mechanism' | 'fallback'> => {
  if (request.cold) return { mechanism: 'cold-restore' };
  const problem = hotForkProblem(request, snapshot, host, isTied);
  return problem === undefined ? { mechanism: 'hot-fork' } : { mechanism: 'cold-restore', fallback: problem };
};

const hotForkProblem = (
  request: ForkRequest,
  snapshot: SnapshotManifest,
  host: HostState,
  isTied: boolean,
): string | undefined => {
  if (host.hotForkProblem !== undefined) return host.hotForkProblem;
  if (snapshot.isolation === 'kvm') return 'a VM under KVM cannot be carried across a fork';
  if (isTied && request.perChildNetns) return 'namespaces that were there before have to be entered before QEMU starts';
  if (isTied) return 'its network card is on an interface of the host';
  if (request.n < host.hotFrom && !request.branchable)
    return `for fewer than ${host.hotFrom} children a template does not pay`;
  return undefined;
};

export const requireIsolation = (wanted: Isolation | undefined, actual: Isolation, what: string): void => {
  if (wanted === undefined || wanted === actual) return;
  throw new ForkdError(wanted === 'kvm' ? 'KVM_REQUIRED' : 'TCG_REQUIRED', { reason: `${what} runs under ${actual}` });
};

/** What a child may reach that is given a namespace and no word about it. */
const NOTHING: NetworkWish = { allow: [], allowDomains: [] };

/**
 * Namespaces that somebody has made, as the reference's script does, are entered, with what he has set up in them; else networks are
 * made here and named so. Throws NETNS_MISSING.
 */
const placeInNamespaces = (
  { n, network, netns: wished }: ForkRequest,
  host: HostState,
): { names: string[]; enters?: boolean } => {
  const { netns: existing, netnsTaken: taken, makesNetworks } = host;
  const isFree = (name: string) => existing.has(name) && !taken.has(name);
  const free = [...existing].filter((name) => NAME.test(name) && isFree(name)).length;
  if (!network && (free >= n || !makesNetworks)) {
    const names = wished !== undefined && isFree(wished) ? [wished] : freeNamespaces(n, host);
    return { names, enters: true };
  }
  const isNew = (name: string) => !existing.has(name) && !taken.has(name);
  const names = wished !== undefined && isNew(wished) ? [wished] : [];
  for (let number = 1; names.length < n; number++) {
    const name = `forkd-child-${number}`;
    if (isNew(name) && name !== wished) names.push(name);
  }
  return { names };
};

const NAME = /^forkd-child-\d+$/;

/** The reference's names, `forkd-child-<number>` from 1, without those that are taken. Throws NETNS_MISSING for the first that would be needed. */
const freeNamespaces = (n: number, { netns: existing, netnsTaken: taken }: HostState): string[] => {
  const free: string[] = [];
  for (let number = 1; free.length < n; number++) {
    const netns = `forkd-child-${number}`;
    if (taken.has(netns)) continue;
    if (!existing.has(netns)) throw new ForkdError('NETNS_MISSING', { netns });
    free.push(netns);
  }
  return free;
};

/** Deals 0..n-1 out like cards, at most `width` hands, so that each has early and late children and all end together. */
export const deal = (n: number, width: number): number[][] =>
  Array.from({ length: Math.min(n, width) }, (_, w) =>
    Array.from({ length: Math.ceil((n - w) / width) }, (_, k) => w + k * width),
  );
