import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { duplexOf } from '../../contract/duplex.js';
import { reasonOf } from '../../contract/errors.js';
import type { Command } from '../command.js';
import { type GuestLink, withLink } from '../guest-link.js';
import type { Options } from '../options.js';
import { line } from '../progress.js';
import { printLine } from '../render.js';
import { targetOptions } from './target.js';

const PORT_MAX = 65_535;

export const port: Command = {
  name: 'port',
  args: '<id> [...ports]',
  usage: 'port <ID> GUEST[:HOST]... [options]',
  description: 'Forward ports of a sandbox to this host until interrupted; the guest needs no network',
  options: [
    ['--bind <ADDRESS>', 'Address of this host to listen on (default 127.0.0.1)'],
    ...targetOptions.filter(([flags]) => flags.startsWith('--daemon')),
  ],
  examples: ['forkd port sb-6743b1c2-9f31c2aa 8080', 'forkd port sb-6743b1c2-9f31c2aa 5432:15432 8000:0'],
  run: (options) => {
    const [id, ...given] = options.positional;
    if (given.length === 0) throw options.wrong('PORTS', 'give at least one: GUEST or GUEST:HOST');
    const ports = given.map((text) => parsePort(text, options));
    const bind = options.string('bind') ?? '127.0.0.1';
    return withLink(
      options,
      async (link) => {
        const servers = await Promise.all(ports.map(({ guest, host }) => forward(link, guest, host, bind)));
        for (const [i, server] of servers.entries())
          printLine(`${bind}:${(server.address() as AddressInfo).port} -> ${ports[i]?.guest}`);
        await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM'), once(process, 'SIGHUP'), link.gone]);
        for (const server of servers) server.close();
        return 0;
      },
      id,
    );
  },
};

interface Ports {
  guest: number;
  /** 0: any that is free. */
  host: number;
}

const parsePort = (text: string, options: Options): Ports => {
  const match = /^(\d{1,5})(?::(\d{1,5}))?$/.exec(text);
  const guest = Number(match?.[1]);
  const host = Number(match?.[2] ?? guest);
  if (!match || guest < 1 || guest > PORT_MAX || host > PORT_MAX)
    throw options.wrong('PORTS', `'${text}' is neither GUEST nor GUEST:HOST`);
  return { guest, host };
};

const forward = async (link: GuestLink, guest: number, host: number, bind: string) => {
  const server = createServer({ allowHalfOpen: true }, (socket) => void join(link, guest, socket));
  server.listen(host, bind);
  await once(server, 'listening');
  return server;
};

const join = async (link: GuestLink, guest: number, socket: Socket): Promise<void> => {
  socket.on('error', () => socket.destroy());
  try {
    const stream = link.open({ action: 'connect', port: guest });
    // Told here rather than to whoever connected, who only sees that nobody is there.
    await stream.opened;
    const inside = duplexOf(stream);
    inside.on('error', () => socket.destroy());
    socket.on('close', () => inside.destroy());
    socket.pipe(inside);
    inside.pipe(socket);
  } catch (error) {
    line(`port ${guest}: ${reasonOf(error)}`);
    socket.destroy();
  }
};
