/** The network of one child: a namespace of its own, with what is open of it. */
import type { Resolver } from 'node:dns/promises';
import { closeSync } from 'node:fs';
import type { Denied, Network, NetworkInfo, NetworkWish } from '../../contract/network.js';
import type { NetworkFds } from '../../contract/task.js';
import { LinkAddresses } from '../../net/address.js';
import { listenForNames } from '../../net/make.js';
import { commit } from '../../net/nft.js';
import { deniedTargets, policyRules, resolvedRules } from '../../net/ruleset.js';
import { NameServer } from './name-server.js';
import { nameNamespace, noteOwner, pathOf, removeName } from './names.js';
import type { Policy } from './policy.js';

export class ChildNetwork {
  /** Where the host reaches the guest, whatever port. */
  readonly address: string;
  readonly #open: Map<keyof NetworkFds, number>;
  #wish: NetworkWish = { allow: [], allowDomains: [] };
  #denied: Denied[] = [];
  #name: string | undefined;
  #names: NameServer | undefined;

  constructor(
    readonly number: number,
    fds: Omit<NetworkFds, 'tap'> & { tap?: number },
    links: Network,
    readonly onEnd: (network: ChildNetwork) => void,
  ) {
    this.address = new LinkAddresses(links).childEnd(number);
    this.#open = new Map(Object.entries(fds) as [keyof NetworkFds, number][]);
  }

  /** For the VMM; it is the owner's until `handOver`. */
  get tap(): number | undefined {
    return this.#open.get('tap');
  }

  /** Makes it somebody's, before a guest is behind it. */
  admit(wish: NetworkWish, policy: Policy, resolver: Resolver): void {
    if (policy.allowed.length > 0) this.#change(policyRules(policy.allowed));
    this.#answerNames(wish, policy, resolver);
  }

  /** Its machine has lived on without an engine, with its rules and, it may be, a name. */
  resume(wish: NetworkWish, policy: Policy, resolver: Resolver, name: string | null): void {
    if (name !== null) this.#name = pathOf(name);
    this.#answerNames(wish, policy, resolver);
  }

  #answerNames(wish: NetworkWish, policy: Policy, resolver: Resolver): void {
    this.#wish = wish;
    const [rules, udp] = [this.#open.get('rules'), this.#open.get('udp')];
    if (rules === undefined || udp === undefined) return;
    // Of names that are not allowed there are no long answers.
    const tcp = policy.domains.length === 0 ? undefined : listenForNames(rules);
    this.#open.delete('udp');
    const admit = (addresses: string[], port: number | undefined, ms: number) =>
      this.#change(resolvedRules(addresses, port, ms));
    this.#names = new NameServer({ udp, tcp }, { policy, resolver, admit });
  }

  #change(rules: Uint8Array[]): void {
    const socket = this.#open.get('rules');
    if (socket !== undefined) commit(socket, rules);
  }

  /** Lets other programs find the namespace (`ip netns exec NAME`). The name goes when the child ends. */
  nameIt(name: string): void {
    const rules = this.#open.get('rules');
    if (rules !== undefined) this.#name = nameNamespace(rules, name);
  }

  /** The machine has its tap: the network lives as long as it, and goes with it. */
  handOver(pid: number): void {
    if (this.#name !== undefined) noteOwner(this.#name, pid);
    this.#close('tap');
  }

  /** What the next engine has to know of it. */
  get record(): { number: number; allow: string[]; allow_domains: string[] } {
    return { number: this.number, allow: this.#wish.allow, allow_domains: this.#wish.allowDomains };
  }

  info(): NetworkInfo {
    const { allow, allowDomains } = this.#wish;
    return { address: this.address, allow, allow_domains: allowDomains, denied: this.denied() };
  }

  /** What was not let through; after the end, what was known then. */
  denied(): Denied[] {
    const rules = this.#open.get('rules');
    if (rules === undefined) return this.#denied;
    const targets = deniedTargets(rules).map(({ to, packets }) => ({ to, count: packets }));
    this.#denied = [...targets, ...(this.#names?.denied ?? [])];
    return this.#denied;
  }

  /** Its child has ended, or never was. */
  end(): void {
    if (this.#open.size === 0) return;
    this.denied();
    this.#names?.close();
    for (const name of [...this.#open.keys()]) this.#close(name);
    if (this.#name !== undefined) removeName(this.#name);
    this.#name = undefined;
    this.onEnd(this);
  }

  #close(name: keyof NetworkFds): void {
    const fd = this.#open.get(name);
    this.#open.delete(name);
    if (fd !== undefined) closeSync(fd);
  }
}
