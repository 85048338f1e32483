/**
 * What may pass. One table in each child's namespace holds its policy; one on the host keeps the children's links apart from
 * everything else, whatever other rules the host has.
 *
 *     guest 10.42.0.2 --- tap 10.42.0.1 | child's namespace | veth0 --- fkdN | host | --- the world
 *                            guard, forward, input: policy            input, forward, postrouting
 */
import type { Network } from '../contract/network.js';
import { bytesOf, contains, maskOf } from './address.js';
import type { Attribute } from './netlink.js';
import * as nft from './nft.js';

/** The guest's own address and what it takes for its gateway, as the reference's. */
export const GUEST_ADDRESS = '10.42.0.2';
export const GATEWAY_ADDRESS = '10.42.0.1';
/** Of the two: what a guest says that it has of other addresses is not heard (make.ts). It takes itself to be in a /24. */
export const GUEST_PREFIX = 30;
/** Interfaces in a child's namespace, named as the reference names them. */
export const TAP = 'forkd-tap0';
export const UPLINK = 'veth0';
/** The host's ends of the children's links begin with this. */
export const LINK_PREFIX = 'fkd';

const DNS_PORT = 53;
const TCP = 6;
const UDP = 17;
const ICMP = 1;
const ICMP6 = 58;
const ECHO_REQUEST = 8;

export interface Allowed {
  to: Network;
  /** Any, when absent. */
  ports?: { from: number; to: number };
  protocol?: 'tcp' | 'udp';
}

/**
 * Never let through, whatever is allowed: this host's own side, what answers with a cloud's credentials, and addresses that are no
 * one's. 169.254.0.0/16 has the metadata of AWS, GCP, Azure and others; 100.100.100.200 is Alibaba's, 168.63.129.16 Azure's second,
 * 192.0.0.192 Oracle's.
 */
const NEVER: Network[] = [
  { address: '0.0.0.0', prefix: 8 },
  { address: '127.0.0.0', prefix: 8 },
  { address: '169.254.0.0', prefix: 16 },
  { address: '100.100.100.200', prefix: 32 },
  { address: '168.63.129.16', prefix: 32 },
  { address: '192.0.0.192', prefix: 32 },
  { address: '224.0.0.0', prefix: 3 },
];

/** Not on the internet: a name that leads there says nothing about who put it there. */
const PRIVATE: Network[] = [
  ...NEVER,
  { address: '10.0.0.0', prefix: 8 },
  { address: '100.64.0.0', prefix: 10 },
  { address: '172.16.0.0', prefix: 12 },
  { address: '192.168.0.0', prefix: 16 },
];

export const isNever = (address: string): boolean => NEVER.some((network) => contains(network, address));
export const isPrivate = (address: string): boolean => PRIVATE.some((network) => contains(network, address));

const table = new nft.Table('forkd', nft.Family.ip);
const table6 = new nft.Table('forkd', nft.Family.ip6);

/** Names of sets, and the numbers by which rules of the same batch know them. */
const DENIED = ['denied', 1] as const;
const DENIED6 = ['denied6', 2] as const;
const RESOLVED = ['resolved', 3] as const;
const RESOLVED_PORTS = ['resolved-ports', 4] as const;
const OWN = ['own', 5] as const;

/** Different targets that are remembered: a guest that scans must not fill the kernel's memory. */
const DENIED_MAX = 256;
const DENIED_MS = 24 * 3600 * 1000;
const RESOLVED_MAX = 4096;
/** Addresses of this host that are told in one message; the host's own rules hold for all of them. */
const OWN_MAX = 1000;

/** Before conntrack, and thereby before the routing of what would be called martian and go unseen. */
const RAW = -300;
const DESTINATION_NAT = -100;
const FILTER = 0;
const SOURCE_NAT = 100;

const mask = (prefix: number): Uint8Array => bytesOf(maskOf(prefix));
const isToNetwork = ({ address, prefix }: Network): Attribute[] => nft.isTo(bytesOf(address), mask(prefix));

const denyRules = (chain: string): Uint8Array[] => [
  table.rule(chain, nft.isProtocol(TCP), nft.noteTarget(...DENIED)),
  table.rule(chain, nft.isProtocol(UDP), nft.noteTarget(...DENIED)),
  table.rule(chain, nft.isNotTcpOrUdp(), nft.noteAddress(...DENIED)),
];

/**
 * Of a namespace that nobody has yet: nothing may pass but what the host begins, questions to our name server, and an echo of the
 * gateway. `policyRules` makes it somebody's. `own`: addresses of this host; `links`: of all children.
 */
export const childRules = (own: string[], links: Network): Uint8Array[] => [
  table.add(),
  table.set(...DENIED, {
    flags: nft.SetFlag.dynamic | nft.SetFlag.timeout,
    keyBytes: 12,
    size: DENIED_MAX,
    timeoutMs: DENIED_MS,
    counts: true,
  }),
  table.set(...RESOLVED, { flags: nft.SetFlag.timeout, keyBytes: 4, size: RESOLVED_MAX }),
  table.set(...RESOLVED_PORTS, { flags: nft.SetFlag.timeout, keyBytes: 8, size: RESOLVED_MAX }),
  table.set(...OWN, { flags: 0, keyBytes: 4 }),
  ...(own.length === 0
    ? []
    : [
        table.elements(
          OWN[0],
          own.slice(0, OWN_MAX).map((address) => ({ key: bytesOf(address) })),
        ),
      ]),
  table.chain('never'),
  table.chain('allowed'),
  table.chain('deny'),
  table.chain('vanish'),
  ...denyRules('deny'),
  table.rule('deny', nft.isProtocol(TCP), nft.reset()),
  table.rule('deny', nft.prohibit()),
  ...denyRules('vanish'),
  table.rule('vanish', nft.drop()),
  // What is never let through comes first, and then what is.
  ...[...NEVER, links].map((network) => table.rule('never', isToNetwork(network), nft.goto('deny'))),
  table.rule('never', nft.isToOneOf(...OWN), nft.goto('deny')),
  table.rule('allowed', nft.isToOneOf(...RESOLVED), nft.accept()),
  ...[TCP, UDP].map((protocol) =>
    table.rule('allowed', nft.isProtocol(protocol), nft.isToOneOfPorts(...RESOLVED_PORTS), nft.accept()),
  ),

  table.baseChain('guard', { hook: nft.Hook.prerouting, priority: RAW }),
  table.rule('guard', nft.comesBy(TAP), nft.isTo(bytesOf('127.0.0.0'), mask(8)), nft.goto('vanish')),
  table.rule('guard', nft.comesBy(TAP), nft.isNotFrom(bytesOf(GUEST_ADDRESS)), nft.goto('vanish')),

  table.baseChain('forward', { hook: nft.Hook.forward, priority: FILTER, drops: true }),
  table.rule('forward', nft.isKnown(), nft.accept()),
  table.rule('forward', nft.comesBy(UPLINK), nft.isRedirected(), nft.accept()),
  table.rule('forward', nft.comesNotBy(TAP), nft.drop()),
  table.rule('forward', nft.jump('never')),
  table.rule('forward', nft.jump('allowed')),
  table.rule('forward', nft.goto('deny')),

  table.baseChain('input', { hook: nft.Hook.input, priority: FILTER, drops: true }),
  table.rule('input', nft.isKnown(), nft.accept()),
  ...[UDP, TCP].map((protocol) =>
    table.rule(
      'input',
      nft.comesBy(TAP),
      nft.isTo(bytesOf(GATEWAY_ADDRESS), mask(32)),
      nft.isProtocol(protocol),
      nft.isToPorts(DNS_PORT, DNS_PORT),
      nft.accept(),
    ),
  ),
  table.rule(
    'input',
    nft.comesBy(TAP),
    nft.isTo(bytesOf(GATEWAY_ADDRESS), mask(32)),
    nft.isProtocol(ICMP),
    nft.icmpType(ECHO_REQUEST),
    nft.accept(),
  ),
  table.rule('input', nft.comesBy(TAP), nft.goto('deny')),

  table.baseChain('inbound', { type: 'nat', hook: nft.Hook.prerouting, priority: DESTINATION_NAT }),
  table.rule('inbound', nft.comesBy(UPLINK), nft.redirectTo(bytesOf(GUEST_ADDRESS))),
  table.baseChain('outbound', { type: 'nat', hook: nft.Hook.postrouting, priority: SOURCE_NAT }),
  table.rule('outbound', nft.leavesBy(UPLINK), nft.masquerade()),

  // IPv6: none. What a machine says to its own link is not an attempt to reach anything.
  table6.add(),
  table6.set(...DENIED6, {
    flags: nft.SetFlag.dynamic | nft.SetFlag.timeout,
    keyBytes: 24,
    size: DENIED_MAX,
    timeoutMs: DENIED_MS,
    counts: true,
  }),
  table6.baseChain('guard', { hook: nft.Hook.prerouting, priority: RAW, drops: true }),
  table6.rule('guard', nft.isTo6(0xff), nft.drop()),
  table6.rule('guard', nft.isTo6(0xfe, [0x80, 0xc0]), nft.drop()),
  table6.rule('guard', nft.comesBy(TAP), nft.isProtocol(TCP), nft.noteTarget6(...DENIED6)),
  table6.rule('guard', nft.comesBy(TAP), nft.isProtocol(UDP), nft.noteTarget6(...DENIED6)),
  table6.rule('guard', nft.comesBy(TAP), nft.isProtocol(ICMP6), nft.noteTarget6(...DENIED6)),
  table6.rule('guard', nft.drop()),
];

const protocolOf = { tcp: TCP, udp: UDP } as const;

export const policyRules = (allowed: Allowed[]): Uint8Array[] =>
  allowed.flatMap(({ to, ports, protocol }) => {
    const protocols = protocol ? [protocolOf[protocol]] : ports ? [TCP, UDP] : [undefined];
    return protocols.map((one) =>
      table.rule(
        'allowed',
        isToNetwork(to),
        ...(one === undefined ? [] : [nft.isProtocol(one)]),
        ...(ports ? [nft.isToPorts(ports.from, ports.to)] : []),
        nft.accept(),
      ),
    );
  });

/** Lets addresses that a name stands for through, for a while that begins anew each time. */
export const resolvedRules = (addresses: string[], port: number | undefined, timeoutMs: number): Uint8Array[] => {
  const set = port === undefined ? RESOLVED[0] : RESOLVED_PORTS[0];
  const elements = addresses.map((address) => ({
    key: port === undefined ? bytesOf(address) : Uint8Array.of(...bytesOf(address), port >> 8, port & 0xff, 0, 0),
  }));
  const timed = elements.map((element) => ({ ...element, timeoutMs }));
  // A kernel before 6.12 keeps the old timeout of what is there already; and what is not there cannot be deleted.
  return [table.elements(set, timed), table.deleteElements(set, elements), table.elements(set, timed)];
};

export interface Denied {
  to: string;
  packets: number;
}

const PROTOCOLS: Record<number, string> = { [TCP]: 'tcp', [UDP]: 'udp', [ICMP]: 'icmp', [ICMP6]: 'icmp6' };

/** Where packets were to go that were not let through: `ADDRESS:PORT/PROTOCOL`. */
export const deniedTargets = (socket: number): Denied[] => [
  ...table.list(socket, DENIED[0]).map(({ key, packets }) => ({ to: targetOf(key, 4), packets })),
  ...table6.list(socket, DENIED6[0]).map(({ key, packets }) => ({ to: targetOf(key, 16), packets })),
];

const targetOf = (key: Uint8Array, bytes: 4 | 16): string => {
  const number = key[bytes] ?? 0;
  const protocol = PROTOCOLS[number] ?? `protocol ${number}`;
  const port = ((key[bytes + 4] ?? 0) << 8) | (key[bytes + 5] ?? 0);
  const hasPort = number === TCP || number === UDP;
  const address = bytes === 4 ? key.subarray(0, 4).join('.') : `[${sixteen(key.subarray(0, 16))}]`;
  return hasPort ? `${address}:${port}/${protocol}` : `${address}/${protocol}`;
};

/** As short as URL makes it: `2001:db8::1`. */
const sixteen = (bytes: Uint8Array): string => {
  const groups = Array.from({ length: 8 }, (_, i) =>
    (((bytes[2 * i] ?? 0) << 8) | (bytes[2 * i + 1] ?? 0)).toString(16),
  );
  return new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1);
};

/**
 * On the host, the same whoever's children they are, so that any engine may make them again: from a child's link nothing reaches the
 * host itself or another child, from outside nothing reaches a child, and the children leave with the host's address.
 */
export const hostRules = (links: Network): Uint8Array[] => {
  const fromChild = nft.comesBy(`${LINK_PREFIX}*`);
  const toChild = nft.leavesBy(`${LINK_PREFIX}*`);
  return [
    table.add(),
    table.delete(),
    table.add(),
    table.baseChain('input', { hook: nft.Hook.input, priority: FILTER - 10 }),
    table.rule('input', fromChild, nft.isKnown(), nft.accept()),
    table.rule('input', fromChild, nft.drop()),
    table.baseChain('forward', { hook: nft.Hook.forward, priority: FILTER - 10 }),
    table.rule('forward', fromChild, toChild, nft.drop()),
    table.rule('forward', toChild, nft.isKnown(), nft.accept()),
    table.rule('forward', toChild, nft.drop()),
    table.baseChain('outbound', { type: 'nat', hook: nft.Hook.postrouting, priority: SOURCE_NAT }),
    table.rule(
      'outbound',
      nft.isFrom(bytesOf(links.address), mask(links.prefix)),
      nft.leavesNotBy(`${LINK_PREFIX}*`),
      nft.leavesNotBy('lo'),
      nft.masquerade(),
    ),
  ];
};

export const hasHostRules = (socket: number): boolean => {
  try {
    table.find(socket);
    return true;
  } catch {
    return false;
  }
};

export const removeHostRules = (): Uint8Array[] => [table.add(), table.delete()];

const tapTable = (tap: string) => new nft.Table(`forkd-${tap}`, nft.Family.inet);

/**
 * For an interface of the host with a guest behind it: the host may begin, the guest may answer. A table that `ends` belongs to the
 * socket that makes it, and goes with it; one whose guest may outlive this process must not.
 */
export const hostTapRules = (tap: string, ends: boolean): Uint8Array[] => {
  const guard = tapTable(tap);
  return [
    guard.add({ ends }),
    ...(['input', 'forward'] as const).flatMap((chain) => [
      guard.baseChain(chain, { hook: nft.Hook[chain], priority: FILTER - 10 }),
      guard.rule(chain, nft.comesBy(tap), nft.isKnown(), nft.accept()),
      guard.rule(chain, nft.comesBy(tap), nft.drop()),
    ]),
  ];
};

export const removeHostTapRules = (tap: string): Uint8Array[] => [tapTable(tap).add(), tapTable(tap).delete()];
