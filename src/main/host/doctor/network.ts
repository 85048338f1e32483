/** Checks of what guests with a network card need, and of the daemon. Without a card nothing here matters. */
import { errnoOf, reasonOf } from '../../../contract/errors.js';
import { tryNetwork } from '../../../net/make.js';
import { canMakeNetworks } from '../../network/networks.js';
import { networkNamespaces } from '../resources.js';
import { type Check, fail, pass, readText, skip, warn } from './check.js';

const TAP = 'forkd-tap0';
const IFF_UP = 1;

const tapFlags = (): number | undefined => {
  const text = readText(`/sys/class/net/${TAP}/flags`);
  return text === undefined ? undefined : Number(text);
};

const childNamespaces = (): number => [...networkNamespaces()].filter((name) => name.startsWith('forkd-child-')).length;

export const ipForward: Check = {
  name: 'ip_forward',
  run: () => {
    const value = readText('/proc/sys/net/ipv4/ip_forward');
    if (value === '1') return pass('on');
    const isWanted = tapFlags() !== undefined || childNamespaces() > 0;
    if (!isWanted) return skip('off; only guests with a network card want it');
    return warn(value === undefined ? 'cannot be read' : 'off: guests reach this host only', {
      hint: 'sysctl -w net.ipv4.ip_forward=1',
    });
  },
};

/** Made and let go: whether the kernel has taps, namespaces and every kind of rule that a network needs. */
export const networks: Check = {
  name: 'networks',
  run: () => {
    if (!canMakeNetworks()) return skip('only root, with /dev/net/tun, makes networks for children (`fork --net`)');
    try {
      tryNetwork();
      return pass('a namespace, its tap and its rules can be made');
    } catch (error) {
      return warn(`--net will be refused: ${reasonOf(error)}`, {
        hint: 'The kernel needs CONFIG_NF_TABLES, CONFIG_NF_NAT, CONFIG_VETH and CONFIG_TUN.',
      });
    }
  },
};

export const tap: Check = {
  name: 'tap device',
  run: () => {
    const flags = tapFlags();
    if (flags === undefined) return skip(`no ${TAP}; a guest of \`snapshot --tap\` has it made`);
    if ((flags & IFF_UP) === 0) return warn(`${TAP} is down`, { hint: `ip link set ${TAP} up` });
    const state = readText(`/sys/class/net/${TAP}/operstate`);
    return pass(`${TAP} is up (${state === 'up' || state === 'unknown' ? 'a peer is attached' : 'idle'})`);
  },
};

export const netns: Check = {
  name: 'per-child netns',
  run: () => {
    const count = childNamespaces();
    return count > 0 ? pass(`${count} of forkd-child-*`) : skip('none; --per-child-netns makes them');
  },
};

const DAEMON_MS = 2000;

export const daemon: Check = {
  name: 'daemon',
  run: async ({ daemonUrl, daemonToken, daemonCa: ca }) => {
    // Loaded here: no other check, and hardly a command, needs an HTTP client.
    const { Agent, request } = await import('undici');
    const socketPath = daemonUrl.startsWith('unix:') ? daemonUrl.slice(5) : undefined;
    const connect = socketPath !== undefined ? { socketPath } : ca !== undefined ? { ca } : undefined;
    try {
      const { statusCode, body } = await request(
        `${socketPath === undefined ? daemonUrl : 'http://forkd'}/v1/snapshots`,
        {
          ...(connect === undefined ? {} : { dispatcher: new Agent({ connect }) }),
          signal: AbortSignal.timeout(DAEMON_MS),
          headers: daemonToken === undefined ? {} : { authorization: `Bearer ${daemonToken}` },
        },
      );
      body.on('error', () => undefined).destroy();
      if (statusCode >= 200 && statusCode < 300) return pass(`${daemonUrl} answers`);
      if (statusCode === 401) return fail(`${daemonUrl} wants a token`, { hint: 'Set FORKD_TOKEN.' });
      return warn(`${daemonUrl} answered with HTTP ${statusCode}`);
    } catch (error) {
      if (['ECONNREFUSED', 'ENOENT'].includes(errnoOf(error) ?? ''))
        return skip(`not running at ${daemonUrl}; only daemon commands want it`);
      const reason =
        error instanceof Error && error.name === 'TimeoutError'
          ? `no answer within ${DAEMON_MS / 1000} s`
          : String((error as Error).message);
      const isCertificate = /CERT|SIGNATURE/.test(errnoOf(error) ?? '');
      return warn(`${daemonUrl}: ${reason}`, { hint: isCertificate ? 'Set FORKD_CA.' : 'Check FORKD_URL.' });
    }
  },
};
