/** What users write of what a child may reach, parsed. */
import { isIPv4 } from 'node:net';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import type { NetworkWish } from '../../contract/network.js';
import { parseNetwork } from '../../net/address.js';
import type { Allowed } from '../../net/ruleset.js';

export interface DomainRule {
  /** Lower case. With `below`, every name that ends in it; without a name, every name. */
  name: string;
  below: boolean;
  port?: number;
}

export interface Policy {
  allowed: Allowed[];
  domains: DomainRule[];
}

const PORT_MAX = 65_535;
const isPort = (port: number): boolean => port >= 1 && port <= PORT_MAX;
const NAME = /^(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/;

/** Throws NETWORK_RULE_INVALID. */
export const parsePolicy = ({ allow, allowDomains }: NetworkWish): Policy => {
  const count = allow.length + allowDomains.length;
  if (count > limits.networkRulesMax)
    throw wrong(`${count} rules`, `at most ${limits.networkRulesMax} rules for a child`);
  return { allowed: allow.map(parseAllowed), domains: allowDomains.map(parseDomain) };
};

const wrong = (rule: string, reason: string): ForkdError => new ForkdError('NETWORK_RULE_INVALID', { rule, reason });

const parseAllowed = (rule: string): Allowed => {
  const [, network = '', from, to = from, protocol] =
    /^([\d.]+(?:\/\d+)?)(?::(\d{1,5})(?:-(\d{1,5}))?)?(?:\/(tcp|udp))?$/.exec(rule) ?? [];
  const parsed = parseNetwork(network);
  if (!parsed) {
    const isName = /[a-z]/i.test(rule.split(/[:/]/)[0] ?? '');
    throw wrong(rule, isName ? 'it is not an IPv4 address; names go to --allow-domain' : 'it is not ADDRESS[/PREFIX]');
  }
  const ports = from === undefined ? undefined : { from: Number(from), to: Number(to) };
  if (ports && !(isPort(ports.from) && isPort(ports.to) && ports.from <= ports.to))
    throw wrong(rule, `ports are from 1 to ${PORT_MAX}`);
  return {
    to: parsed,
    ...(ports ? { ports } : {}),
    ...(protocol === undefined ? {} : { protocol: protocol as 'tcp' | 'udp' }),
  };
};

const parseDomain = (rule: string): DomainRule => {
  const [, star = '', name = '', port] = /^(\*\.)?([^:]+?)\.?(?::(\d{1,5}))?$/.exec(rule.toLowerCase()) ?? [];
  if (isIPv4(name)) throw wrong(rule, 'it is an address; addresses go to --allow');
  const isAll = rule.split(':')[0] === '*';
  if (!isAll && !NAME.test(name)) throw wrong(rule, 'it is not a name');
  if (port !== undefined && !isPort(Number(port))) throw wrong(rule, `ports are from 1 to ${PORT_MAX}`);
  return {
    name: isAll ? '' : name,
    below: isAll || star !== '',
    ...(port === undefined ? {} : { port: Number(port) }),
  };
};

/** Those that let a name through: `*.example.org` is what is below it, not the name itself. */
export const rulesFor = (domains: DomainRule[], name: string): DomainRule[] =>
  domains.filter((rule) => (rule.below ? rule.name === '' || name.endsWith(`.${rule.name}`) : rule.name === name));
