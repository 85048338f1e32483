/** Interfaces, addresses and routes, as rtnetlink(7) messages. */
import { existsSync, readFileSync } from 'node:fs';
import {
  type Attribute,
  call,
  concat,
  encodeAttributes,
  encodeMessage,
  Flag,
  text,
  u32,
  u8,
  viewOf,
} from './netlink.js';

/** NETLINK_ROUTE. */
export const ROUTE = 0;

const NEWLINK = 16;
const DELLINK = 17;
const GETLINK = 18;
const NEWADDR = 20;
const NEWROUTE = 24;
const NEWNEIGH = 28;

const Link = { address: 1, name: 3, info: 18, families: 26, netns: 28 } as const;
const INFO_KIND = 1;
const INFO_DATA = 2;
const VETH_PEER = 1;
const AF_INET = 2;
const AF_INET6 = 10;
/** IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE: it speaks no IPv6 of its own, which nobody would listen to. */
const NO_LINK_LOCAL: Attribute = [AF_INET6, [[8, u8(1)]]];
/** IFLA_INET_CONF; IPV4_DEVCONF_FORWARDING: what comes in by it is passed on. */
const FORWARDING = 1;
/** IPV4_DEVCONF_ARP_IGNORE, 2: who asks for our address is answered, and noted, when his own is of the same network. */
const ARP_IGNORE = 19;
const SAME_NETWORK = 2;
const IFF_UP = 1;

/** struct ifinfomsg. */
const linkHeader = (isUp: boolean): Uint8Array => {
  const flags = isUp ? IFF_UP : 0;
  return concat([u32(0), u32(0), u32(flags), u32(flags)]);
};

const acked = Flag.ack;
const created = Flag.ack | Flag.create | Flag.excl;

/** A pair of interfaces that are each other's wire, both down, the second one in another namespace. */
export const addVeth = (name: string, peer: { name: string; netns: number }): Uint8Array => {
  const other = concat([
    linkHeader(false),
    encodeAttributes([
      [Link.name, text(peer.name)],
      [Link.netns, u32(peer.netns)],
    ]),
  ]);
  return encodeMessage(NEWLINK, created, linkHeader(false), [
    [Link.name, text(name)],
    [
      Link.info,
      [
        [INFO_KIND, text('veth')],
        [INFO_DATA, [[VETH_PEER, other]]],
      ],
    ],
  ]);
};

export const setUp = (name: string): Uint8Array =>
  encodeMessage(NEWLINK, acked, linkHeader(true), [[Link.name, text(name)]]);

/** Before it is up: the kernel makes addresses of its own when it comes up. */
export const configure = (
  name: string,
  { mac, forwards = false, hearsFew = false }: { mac?: Uint8Array; forwards?: boolean; hearsFew?: boolean },
): Uint8Array => {
  const settings: Attribute[] = [
    ...(forwards ? ([[FORWARDING, u32(1)]] as Attribute[]) : []),
    ...(hearsFew ? ([[ARP_IGNORE, u32(SAME_NETWORK)]] as Attribute[]) : []),
  ];
  const families: Attribute[] = [
    ...(settings.length > 0 ? ([[AF_INET, [[1, settings]]]] as Attribute[]) : []),
    ...(hasIpv6() ? [NO_LINK_LOCAL] : []),
  ];
  return encodeMessage(NEWLINK, acked, linkHeader(false), [
    [Link.name, text(name)],
    ...(mac ? ([[Link.address, mac]] as Attribute[]) : []),
    ...(families.length > 0 ? ([[Link.families, families]] as Attribute[]) : []),
  ]);
};

const hasIpv6 = (): boolean => existsSync('/proc/sys/net/ipv6');

export const deleteLink = (name: string): Uint8Array =>
  encodeMessage(DELLINK, acked, linkHeader(false), [[Link.name, text(name)]]);

/** Asks for the number of an interface. */
export const indexOf = (socket: number, name: string): number => {
  const [link] = call(socket, [encodeMessage(GETLINK, acked, linkHeader(false), [[Link.name, text(name)]])]);
  return link ? viewOf(link.body).getInt32(4, true) : 0;
};

export const addAddress = (index: number, address: Uint8Array, prefix: number): Uint8Array => {
  const header = concat([Uint8Array.of(AF_INET, prefix, 0, 0), u32(index)]);
  return encodeMessage(NEWADDR, created, header, [
    [2, address],
    [1, address],
  ]);
};

/**
 * Whose address `address` is on that interface, for good. Others are asked for, and all namespaces of a host have one table for the answers, of 1,024 as kernels come
 * (net.ipv4.neigh.default.gc_thresh3): when it is full nobody learns of a neighbour. These do not count.
 */
export const addNeighbour = (index: number, address: Uint8Array, mac: Uint8Array): Uint8Array => {
  const PERMANENT = 0x80;
  const header = concat([u32(AF_INET), u32(index), Uint8Array.of(PERMANENT, 0, 0, 0)]);
  return encodeMessage(NEWNEIGH, created, header, [
    [1, address],
    [2, mac],
  ]);
};

/** Everything that is not known otherwise goes through `gateway`. */
export const addDefaultRoute = (gateway: Uint8Array): Uint8Array => {
  const [MAIN_TABLE, STATIC, UNIVERSE, UNICAST] = [254, 4, 0, 1];
  const header = concat([Uint8Array.of(AF_INET, 0, 0, 0, MAIN_TABLE, STATIC, UNIVERSE, UNICAST), u32(0)]);
  return encodeMessage(NEWROUTE, created, header, [[5, gateway]]);
};

/** Interfaces of this process's own namespace. */
export const linkNames = (): string[] =>
  readFileSync('/proc/self/net/dev', 'utf8')
    .split('\n')
    .slice(2)
    .flatMap((line) => /^\s*([^:\s]+):/.exec(line)?.[1] ?? []);
