/** Where the daemon listens, and where it must not without a token. */
import { BlockList, isIP } from 'node:net';
import { ForkdError } from '../../contract/errors.js';

export interface Bind {
  host: string;
  port: number;
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** `IP:PORT` or `[IPv6]:PORT`; no host names. Throws DAEMON_REFUSED. */
export const parseBind = (text: string, option = '--bind'): Bind => {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2] ?? '';
  const port = Number(match?.[3]);
  if (isIP(host) !== (match?.[1] === undefined ? 4 : 6) || !(port <= 65_535))
    throw new ForkdError('DAEMON_REFUSED', { reason: `${option} '${text}' is not IP:PORT` });
  return { host, port };
};

export const isLoopback = ({ host }: Bind): boolean => loopback.check(host, isIP(host) === 6 ? 'ipv6' : 'ipv4');

/** Throws DAEMON_REFUSED: without a token, whoever reaches the port is root in every sandbox. */
export const requireSafe = (bind: Bind, hasToken: boolean): void => {
  if (!hasToken && !isLoopback(bind))
    throw new ForkdError('DAEMON_REFUSED', { reason: `${bind.host} is not loopback, and there is no --token-file` });
};
