/** Makes a child's network: a namespace with a tap for its guest and a link to the host. */
import { closeSync } from 'node:fs';
import { GUEST_MAC } from '../contract/network.js';
import type { NetworkFds } from '../contract/task.js';
import { native } from '../native/binding.js';
import { bytesOf, type LinkAddresses, macBytes } from './address.js';
import { call, u32 } from './netlink.js';
import { commit, NETFILTER } from './nft.js';
import * as route from './route.js';
import {
  childRules,
  GATEWAY_ADDRESS,
  GUEST_ADDRESS,
  GUEST_PREFIX,
  hostTapRules,
  LINK_PREFIX,
  removeHostTapRules,
  TAP,
  UPLINK,
} from './ruleset.js';

/** The same in every namespace: a guest that knew its gateway in its parent knows it in a child. */
const GATEWAY_MAC = Uint8Array.of(0x02, 0xfc, 0, 0, 0, 1);
/** The ends of the link of that number. */
const hostMac = (number: number): Uint8Array => Uint8Array.of(0x02, 0xfc, 1, ...u32(number).subarray(0, 3));
const childMac = (number: number): Uint8Array => Uint8Array.of(0x02, 0xfc, 2, ...u32(number).subarray(0, 3));
const DNS_PORT = 53;

/** Closes what was opened when a later step fails. */
const whole = <T>(make: (keep: (fd: number) => number) => T): T => {
  const opened: number[] = [];
  try {
    return make((fd) => {
      opened.push(fd);
      return fd;
    });
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    throw error;
  }
};

const within = <T>(netns: number, protocol: number, use: (socket: number) => T): T => {
  const socket = native.netlinkSocket(netns, protocol);
  try {
    return use(socket);
  } finally {
    closeSync(socket);
  }
};

/** The namespace lives on in what is made in it. */
const inNewNamespace = <T>(make: (netns: number) => T): T => {
  const netns = native.netnsCreate();
  try {
    return make(netns);
  } finally {
    closeSync(netns);
  }
};

/** A tap that is down and leads nowhere, for a machine that only needs to have one. */
export const makeDeadEnd = (): number => inNewNamespace((netns) => native.tapCreate(netns, TAP, true));

/** Whether this kernel has what a network needs; nothing is left of it. Throws what it lacks. */
export const tryNetwork = (): void =>
  inNewNamespace((netns) =>
    within(netns, NETFILTER, (rules) => {
      commit(rules, childRules([], { address: '10.43.0.0', prefix: 16 }));
      closeSync(native.tapCreate(netns, TAP, true));
    }),
  );

/** An interface of the host itself, still down, which ends with `tap`, and rules for it, which end with `rules`. Throws EBUSY when it is there. */
export const openHostTap = (host: number, name: string, ends: boolean): { tap: number; rules: number } =>
  whole((keep) => {
    const rules = keep(native.netlinkSocket(host, NETFILTER));
    if (!ends) commit(rules, removeHostTapRules(name));
    commit(rules, hostTapRules(name, ends));
    return { rules, tap: keep(native.tapCreate(host, name, false)) };
  });

/** From now on the guest behind it is reached. */
export const bringUpHostTap = (host: number, name: string): void =>
  within(host, route.ROUTE, (socket) => {
    call(socket, [route.configure(name, { mac: GATEWAY_MAC, hearsFew: true }), route.setUp(name)]);
    call(socket, [route.addAddress(route.indexOf(socket, name), bytesOf(GATEWAY_ADDRESS), GUEST_PREFIX)]);
  });

/**
 * The network of that number: `fkd<number>` on the host's side, which the kernel gives to one only. `host` is a route socket of the
 * host's namespace, `own` are the host's addresses. Throws EEXIST when somebody has the number.
 */
export const makeNetwork = (host: number, number: number, addresses: LinkAddresses, own: string[]): NetworkFds =>
  inNewNamespace((netns) =>
    whole((keep) => {
      const link = `${LINK_PREFIX}${number}`;
      const hostEnd = bytesOf(addresses.hostEnd(number));
      const childEnd = bytesOf(addresses.childEnd(number));
      call(host, [
        route.addVeth(link, { name: UPLINK, netns }),
        route.configure(link, { mac: hostMac(number) }),
        route.setUp(link),
      ]);
      const linkIndex = route.indexOf(host, link);
      call(host, [route.addAddress(linkIndex, hostEnd, 31), route.addNeighbour(linkIndex, childEnd, childMac(number))]);
      const tap = keep(native.tapCreate(netns, TAP, true));
      within(netns, route.ROUTE, (socket) => {
        call(socket, [
          route.configure(TAP, { mac: GATEWAY_MAC, forwards: true, hearsFew: true }),
          route.setUp(TAP),
          route.configure(UPLINK, { mac: childMac(number), forwards: true }),
          route.setUp(UPLINK),
        ]);
        const [tapIndex, uplinkIndex] = [route.indexOf(socket, TAP), route.indexOf(socket, UPLINK)];
        call(socket, [
          route.addAddress(tapIndex, bytesOf(GATEWAY_ADDRESS), GUEST_PREFIX),
          route.addNeighbour(tapIndex, bytesOf(GUEST_ADDRESS), macBytes(GUEST_MAC)),
          route.addAddress(uplinkIndex, childEnd, 31),
          route.addNeighbour(uplinkIndex, hostEnd, hostMac(number)),
          route.addDefaultRoute(hostEnd),
        ]);
      });
      const { rules, udp } = openNetwork(netns);
      keep(udp);
      commit(keep(rules), childRules(own, addresses.network));
      return { tap, rules, udp };
    }),
  );

/** What a namespace that is set up is used by. */
export const openNetwork = (netns: number): Omit<NetworkFds, 'tap'> =>
  whole((keep) => {
    const rules = keep(native.netlinkSocket(netns, NETFILTER));
    const udp = keep(native.udpSocketIn(netns, 4));
    native.inetBind(udp, GATEWAY_ADDRESS, DNS_PORT, false);
    return { rules, udp };
  });

/** Where the guest asks for names when an answer is too long for a datagram; `rules` is of its namespace. */
export const listenForNames = (rules: number): number => {
  const netns = native.netnsOfSocket(rules);
  try {
    return whole((keep) => {
      const tcp = keep(native.tcpSocketIn(netns, 4));
      native.inetBind(tcp, GATEWAY_ADDRESS, DNS_PORT, true);
      return tcp;
    });
  } finally {
    closeSync(netns);
  }
};
