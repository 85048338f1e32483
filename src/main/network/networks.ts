/** Networks for children: made ahead, given out, never used twice. They are made and removed by this program, and end with it. */
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import type { Network, NetworkWish } from '../../contract/network.js';
import { native } from '../../native/binding.js';
import { contains, LinkAddresses, parseNetwork } from '../../net/address.js';
import { commit, NETFILTER } from '../../net/nft.js';
import { openNetwork } from '../../net/make.js';
import { linkNames } from '../../net/route.js';
import { hasHostRules, hostRules, LINK_PREFIX, removeHostRules } from '../../net/ruleset.js';
import { runDir } from '../paths.js';
import { soon } from '../host/soon.js';
import type { Pool } from '../pool.js';
import type { SandboxRecord } from '../sandbox/take-over.js';
import { VmmFd } from '../vmm/driver.js';
import { ChildNetwork } from './network.js';
import { newResolver } from './name-server.js';
import { parsePolicy } from './policy.js';

/** The reference's range. */
const DEFAULT_LINKS: Network = { address: '10.43.0.0', prefix: 16 };
const FORWARD = '/proc/sys/net/ipv4/ip_forward';
/** Who uses the host's rules holds it shared; who removes them has it alone. */
const lockPath = (): string => join(runDir(), 'network.lock');
/** Longest that somebody has the lock alone, and how long who only looks waits for it. */
const LOCK_MS = 5000;
const LOOK_MS = 200;
/** Attempts to find numbers that no other program takes in the same moment. */
const ATTEMPTS = 5;
/** The kernel removes namespaces in its own time, many at once: longest to wait for that, and for each one more. */
const GONE_MS = 2000;
const GONE_EACH_MS = 10;
/** Kept ready at most: each takes some 0.75 MiB of the kernel's memory and three descriptors. */
const AHEAD_MAX = 64;

/** `FORKD_NET_RANGE`, a network of at least four addresses for each child. Throws NETWORK_RULE_INVALID. */
export const linkRange = (): Network => {
  const text = process.env['FORKD_NET_RANGE'];
  if (!text) return DEFAULT_LINKS;
  const network = parseNetwork(text);
  if (network && network.prefix >= 8 && network.prefix <= 29) return network;
  throw new ForkdError('NETWORK_RULE_INVALID', { rule: text, reason: 'FORKD_NET_RANGE is a network, /8 to /29' });
};

/** Bits of CapEff in /proc/self/status: CAP_NET_ADMIN and CAP_SYS_ADMIN. */
const NEEDED = (1n << 12n) | (1n << 21n);

export const canMakeNetworks = (): boolean => {
  const capabilities = /^CapEff:\s+([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return (BigInt(`0x${capabilities}`) & NEEDED) === NEEDED && existsSync('/dev/net/tun');
};

export class Networks {
  readonly links: Network = linkRange();
  #ready: ChildNetwork[] = [];
  readonly #given = new Set<ChildNetwork>();
  readonly #numbers = new Set<number>();
  /** Links that were made, whether they are there or not. */
  readonly #made = new Set<string>();
  #lock: number | undefined;
  readonly #resolver = newResolver();

  #turn: Promise<void> = Promise.resolve();

  /** `ahead`: after each request, as many are made again for the next. */
  constructor(
    readonly pool: Pool,
    readonly ahead = false,
  ) {}

  /**
   * `n` of them, each with its policy. Throws NETWORK_RULE_INVALID, NETWORK_DENIED, NETWORK_FAILED, NETWORK_FULL; then none is left over.
   */
  async take(n: number, wish: NetworkWish): Promise<ChildNetwork[]> {
    const policy = parsePolicy(wish);
    const taken = await this.#inTurn(async () => {
      await this.#fill(n);
      return this.#ready.splice(0, n);
    });
    if (this.ahead) void this.fill(Math.min(n, AHEAD_MAX)).catch(() => undefined);
    try {
      if (policy.allowed.length > 0 || policy.domains.length > 0) forwardPackets();
      for (const network of taken) {
        this.#given.add(network);
        network.admit(wish, policy, this.#resolver);
      }
      return taken;
    } catch (error) {
      for (const network of taken) network.end();
      throw failed(error);
    }
  }

  /** That of a machine which has outlived its engine: its rules are as they were; questions for names are answered again. Throws errors of system calls. */
  takeBack({ network, netns: name, numbers }: SandboxRecord, pidfd: number): ChildNetwork | undefined {
    if (!network) return undefined;
    const { number, allow, allow_domains: allowDomains } = network;
    this.#prepareHost();
    const netns = native.netnsOf(pidfd, numbers?.taps?.[0] ?? VmmFd.tap);
    let fds: ReturnType<typeof openNetwork>;
    try {
      fds = openNetwork(netns);
    } finally {
      closeSync(netns);
    }
    const taken = new ChildNetwork(number, fds, this.links, this.#ended);
    this.#numbers.add(number);
    this.#made.add(LINK_PREFIX + number);
    this.#given.add(taken);
    const wish = { allow, allowDomains };
    taken.resume(wish, parsePolicy(wish), this.#resolver, name);
    return taken;
  }

  readonly #ended = (network: ChildNetwork): void => {
    this.#given.delete(network);
    this.#numbers.delete(network.number);
  };

  /** Makes sure that `n` are ready. */
  fill(n: number): Promise<void> {
    return this.#inTurn(() => this.#fill(n));
  }

  /** One after another: what one has seen missing, another must not make as well. */
  #inTurn<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(act);
    this.#turn = turn.then(
      () => undefined,
      () => undefined,
    );
    return turn;
  }

  async #fill(n: number): Promise<void> {
    const missing = n - this.#ready.length;
    if (missing <= 0) return;
    if (!canMakeNetworks()) throw new ForkdError('NETWORK_DENIED');
    this.#prepareHost();
    let left = missing;
    for (let attempt = 0; left > 0; attempt++) {
      if (attempt === ATTEMPTS) throw failed(new Error('other programs take the numbers of links'));
      left -= await this.#make(this.#freeNumbers(left));
    }
  }

  async #make(numbers: number[]): Promise<number> {
    for (const number of numbers) this.#numbers.add(number);
    const { width } = this.pool;
    const own = ownAddresses(this.links);
    const shares = Array.from({ length: Math.min(width, numbers.length) }, (_, w) =>
      numbers.filter((_number, i) => i % width === w),
    );
    const outcomes = await Promise.allSettled(
      shares.map((share) => this.pool.run('networks', { numbers: share, links: this.links, own })),
    );
    let made = 0;
    outcomes.forEach((outcome, i) => {
      const gone = outcome.status === 'fulfilled' ? outcome.value.taken : (shares[i] ?? []);
      for (const number of gone) this.#numbers.delete(number);
      if (outcome.status !== 'fulfilled') return;
      made += outcome.value.made.length;
      for (const { number } of outcome.value.made) this.#made.add(LINK_PREFIX + number);
      this.#ready.push(
        ...outcome.value.made.map(({ number, fds }) => new ChildNetwork(number, fds, this.links, this.#ended)),
      );
    });
    const broken = outcomes.find((outcome) => outcome.status === 'rejected');
    if (broken) throw failed(broken.reason);
    return made;
  }

  #freeNumbers(n: number): number[] {
    const used = new Set(linkNames());
    const { count } = new LinkAddresses(this.links);
    const free: number[] = [];
    for (let number = 1; free.length < n; number++) {
      if (number > count)
        throw new ForkdError('NETWORK_FULL', { range: `${this.links.address}/${this.links.prefix}`, count });
      if (!used.has(LINK_PREFIX + number) && !this.#numbers.has(number)) free.push(number);
    }
    return free;
  }

  /** The rules of the host, made again: they may be those of an older forkd. */
  #prepareHost(): void {
    if (this.#lock !== undefined) return;
    try {
      mkdirSync(runDir(), { recursive: true });
      this.#lock = openSync(lockPath(), 'a+', 0o600);
      const lock = this.#lock;
      const isOurs = soon(LOCK_MS, () => native.flockTry(lock, 'shared') || undefined);
      if (!isOurs) throw new Error(`${lockPath()} is held by another process`);
      withOwn((rules) => commit(rules, hostRules(this.links)));
    } catch (error) {
      throw failed(error);
    }
  }

  /** Ends those that nobody has, and the host's rules when no child of any engine is left. `leave`: children live on, and their networks. */
  async close({ leave = false }: { leave?: boolean } = {}): Promise<void> {
    await this.#turn;
    for (const network of [...this.#ready.splice(0), ...(leave ? [] : this.#given)]) network.end();
    if (this.#lock === undefined) return;
    const end = performance.now() + GONE_MS + GONE_EACH_MS * this.#made.size;
    while (!leave && linkNames().some((name) => this.#made.has(name)) && performance.now() < end) await sleep(10);
    closeSync(this.#lock);
    this.#lock = undefined;
    removeUnusedHostRules();
  }
}

const failed = (error: unknown): ForkdError => {
  if (error instanceof ForkdError && errnoOf(error) === undefined) return error;
  // unshare(2) says so of this limit alone.
  const reason = errnoOf(error) === 'ENOSPC' ? 'no more network namespaces (user.max_net_namespaces)' : reasonOf(error);
  return new ForkdError('NETWORK_FAILED', { reason }, error);
};

const withOwn = <T>(use: (rules: number) => T): T => {
  const own = openSync('/proc/self/ns/net', 'r');
  try {
    const rules = native.netlinkSocket(own, NETFILTER);
    try {
      return use(rules);
    } finally {
      closeSync(rules);
    }
  } finally {
    closeSync(own);
  }
};

/** This host's own: who may reach 10.0.0.0/8 does not thereby reach the host. */
const ownAddresses = (links: Network): string[] =>
  Object.values(networkInterfaces()).flatMap((list) =>
    (list ?? [])
      .filter(({ family, address }) => family === 'IPv4' && !address.startsWith('127.') && !contains(links, address))
      .map(({ address }) => address),
  );

/** Without it the host passes nothing on. It stays on, as with every program that does this. */
const forwardPackets = (): void => {
  if (readFileSync(FORWARD, 'utf8').trim() !== '1') writeFileSync(FORWARD, '1');
};

/** Names of links that children have, of whichever engine. */
const childLinks = (): string[] => linkNames().filter((name) => /^fkd\d+$/.test(name));

/** Whether the host has rules of ours though no engine and no child needs them. */
export const hostRulesUnused = (): boolean => alone(() => withOwn(hasHostRules)) ?? false;

/** Removes the rules when nobody needs them. */
export const removeUnusedHostRules = (): void => {
  alone(() => withOwn((rules) => commit(rules, removeHostRules())));
};

/** Undefined when somebody uses the rules, or there never were any. */
const alone = <T>(act: () => T): T | undefined => {
  if (!existsSync(lockPath()) || !canMakeNetworks() || childLinks().length > 0 || !withOwn(hasHostRules))
    return undefined;
  const lock = openSync(lockPath(), 'a+', 0o600);
  try {
    // Another who only looks has it for a moment.
    const isAlone = soon(LOOK_MS, () => native.flockTry(lock, 'exclusive') || undefined);
    return isAlone && childLinks().length === 0 ? act() : undefined;
  } finally {
    closeSync(lock);
  }
};
