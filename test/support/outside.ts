/** A piece of the world outside of this host: a namespace at the other end of a wire, with a server in it. */
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { native } from '../../src/native/binding.js';
import { bytesOf } from '../../src/net/address.js';
import { call } from '../../src/net/netlink.js';
import * as route from '../../src/net/route.js';

/** No larger than it need be: while it is here, this host reaches nothing else by these addresses, and what is fetched beside the tests may be at some of them. */
const PREFIX = 28;

const FORWARD = '/proc/sys/net/ipv4/ip_forward';

export interface Outside {
  /** The server's; whoever connects to `port` is told its own address, and the connection ends. */
  address: string;
  port: number;
  /** A server on this host, on every address. */
  hostPort: number;
  close: () => void;
}

/** `network`: the first three numbers of its addresses, which end in less than 16. */
export const openOutside = async (network: string, name: string): Promise<Outside> => {
  const forwards = readFileSync(FORWARD, 'utf8');
  const address = `${network}.7`;
  const port = 4433;
  const own = openSync('/proc/self/ns/net', 'r');
  const netns = native.netnsCreate();
  const host = native.netlinkSocket(own, route.ROUTE);
  const inside = native.netlinkSocket(netns, route.ROUTE);
  call(host, [route.addVeth(name, { name: 'w0', netns }), route.setUp(name)]);
  call(host, [route.addAddress(route.indexOf(host, name), bytesOf(`${network}.1`), PREFIX)]);
  call(inside, [route.setUp('w0')]);
  call(inside, [route.addAddress(route.indexOf(inside, 'w0'), bytesOf(address), PREFIX)]);
  const socket = native.tcpSocketIn(netns, 4);
  native.inetBind(socket, address, port, true);
  const server: Server = createServer((client) => {
    client.on('error', () => undefined).end(`hello ${client.remoteAddress}\n`);
  }).on('error', () => undefined);
  await new Promise<void>((resolve) => server.listen({ fd: socket }, resolve));
  const local = createServer((client) => client.end('host\n'));
  await new Promise<void>((resolve) => local.listen(0, '0.0.0.0', resolve));
  return {
    address,
    port,
    hostPort: (local.address() as AddressInfo).port,
    close: () => {
      local.close();
      server.close();
      call(host, [route.deleteLink(name)]);
      for (const fd of [own, netns, host, inside]) closeSync(fd);
      writeFileSync(FORWARD, forwards);
    },
  };
};
