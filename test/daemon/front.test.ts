/** What stands in front of the routes of a real daemon: TLS, and how many requests and connections there may be. No VM is needed. */
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, utimesSync, writeFileSync } from 'node:fs';
import { Agent as HttpAgent, get } from 'node:http';
import { connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { type DetailedPeerCertificate, connect as connectTls } from 'node:tls';
import * as assert from 'uvu/assert';
import { Controller } from '../../src/client/index.js';
import { Connections } from '../../src/main/daemon/connections.js';
import { makeServer, PATIENCE } from '../../src/main/daemon/listener.js';
import { Rate } from '../../src/main/daemon/rate.js';
import { CLI, forkd, type Running, start } from '../support/cli.js';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { suite } from '../support/suite.js';
import { eventually, makeWorld } from '../support/world.js';

const world = makeWorld();
const file = (name: string): string => join(world.root, name);

/** A pair that signs itself, for this host. */
const makePair = (name: string): { cert: string; key: string } => {
  const [cert, key] = [file(`${name}.pem`), file(`${name}.key`)];
  const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  const names = ['-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1'];
  execFileSync('openssl', ['req', ...kind, ...names, '-keyout', key, '-out', cert], { stdio: 'ignore' });
  return { cert, key };
};

const front = suite('what stands in front');
let daemon: TestDaemon;
let port: number;
const [mine, other] = [makePair('mine'), makePair('other')];
/** More than a second's worth of this suite's other requests. */
const RATE = 40;

/** A service manager, as far as the daemon hears of one: prints what it is told. */
const LISTEN = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('bound', flush=True)
while True:
    print(s.recv(4096).decode().replace(chr(10), ' '), flush=True)
`;
let manager: Running;
/** As a killed command of the reference leaves it; and what a killed daemon left of a snapshot, which is not where commands have theirs. */
const tags = file('tags');
const leftovers = [join(world.env.TMPDIR, 'forkd-unpack-1'), join(tags, '.staging-half-AAAAAA')];

front.before(async () => {
  for (const leftover of leftovers) {
    mkdirSync(leftover, { recursive: true });
    utimesSync(leftover, 1, 1);
  }
  manager = start('python3', ['-c', LISTEN, file('notify.sock')]);
  await manager.says('bound');
  for (const which of ['cert', 'key'] as const) copyFileSync(mine[which], file(`served.${which}`));
  const env = { ...world.env, NOTIFY_SOCKET: file('notify.sock'), WATCHDOG_USEC: '200000' };
  daemon = await startDaemon({ ...world, env }, [
    ...['--tls-cert', file('served.cert'), '--tls-key', file('served.key')],
    ...['--rate-limit', String(RATE), '--snapshot-root', tags, '--prewarm-scratch-dir', file('scratch')],
  ]);
  port = Number(new URL(daemon.url).port);
});
front.after(async () => {
  assert.is(await daemon.stop(), 0);
  await manager.says(/^STOPPING=1 /m);
  manager.kill('SIGTERM');
  await manager.ended;
  world.close();
});

const secure = () => `https://127.0.0.1:${port}`;

front('what a killed run left behind goes when it starts, and it says so', () => {
  for (const leftover of leftovers) assert.not(existsSync(leftover));
  assert.match(daemon.said, /removed work dir \S+forkd-unpack-1 /);
  assert.match(daemon.said, /removed snapshot staging \S+staging-half-AAAAAA /);
});

/** What the daemon shows to someone who would believe anybody. */
const shown = (): Promise<DetailedPeerCertificate> =>
  new Promise((resolve, reject) => {
    const socket = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false }, () => {
      resolve(socket.getPeerCertificate(true));
      socket.destroy();
    });
    socket.on('error', reject);
  });

front('the port speaks TLS to those who know its certificate; the socket needs none', async () => {
  const ca = readFileSync(mine.cert, 'utf8');
  const known = new Controller({ baseUrl: secure(), ca });
  assert.equal(await known.health(), { ok: true });
  assert.is((await known.version()).api, 'v1');
  await known.close();
  const unknown = new Controller({ baseUrl: secure() });
  const refusal = await unknown.health().catch((error: unknown) => error as NodeJS.ErrnoException);
  assert.match(String((refusal as NodeJS.ErrnoException).code), /SELF_SIGNED/);
  await unknown.close();
  const local = new Controller({ baseUrl: `unix:${daemon.socketPath}` });
  assert.equal(await local.health(), { ok: true });
  await local.close();
});

front('commands and doctor take a file of certificates', async () => {
  const { env } = world;
  const listed = await forkd(['ls', '--daemon-url', secure(), '--daemon-ca', mine.cert], { env });
  assert.equal([listed.code, listed.stderr.trim()], [0, 'no live sandboxes']);
  const byEnv = await forkd(['ls', '--daemon-url', secure()], { env: { ...env, FORKD_CA: mine.cert } });
  assert.is(byEnv.code, 0, byEnv.stderr);
  const wrong = await forkd(['ls', '--daemon-url', secure(), '--daemon-ca', other.cert], { env });
  assert.is(wrong.code, 1);
  assert.match(wrong.stderr, /self-signed certificate[\s\S]*--daemon-ca/);
  const ofDoctor = async (...args: string[]) => {
    const { stdout } = await forkd(['doctor', '--json', '--daemon-url', secure(), ...args], { env });
    return (JSON.parse(stdout).checks as { name: string; status: string; hint?: string }[]).find(
      ({ name }) => name === 'daemon',
    );
  };
  assert.is((await ofDoctor('--daemon-ca', mine.cert))?.status, 'pass');
  assert.equal((await ofDoctor())?.hint, 'Set FORKD_CA.');
});

front('what is not TLS, or a handshake that never comes, gets nowhere', async () => {
  const plain = connectTcp(port, '127.0.0.1');
  plain.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n');
  let answer = '';
  for await (const part of plain.setEncoding('latin1')) answer += part;
  assert.not.match(answer, /200 OK/);
});

front('SIGHUP takes a renewed certificate; one that does not fit its key changes nothing', async () => {
  const nameShown = async () => String((await shown()).subject.CN);
  assert.is(await nameShown(), 'mine');
  const renew = async (cert: string, key: string, expected: string) => {
    copyFileSync(cert, file('served.cert'));
    copyFileSync(key, file('served.key'));
    process.kill(daemon.pid, 'SIGHUP');
    for (let i = 0; i < 100 && (await nameShown()) !== expected; i++);
    assert.is(await nameShown(), expected);
  };
  await renew(other.cert, other.key, 'other');
  await renew(other.cert, mine.key, 'other');
  await renew(mine.cert, mine.key, 'mine');
});

front('SIGHUP opens the audit log anew: it may have been moved away', async () => {
  const log = file('audit.log');
  renameSync(log, `${log}.1`);
  process.kill(daemon.pid, 'SIGHUP');
  assert.ok(await eventually(() => existsSync(log)));
  const controller = new Controller({ baseUrl: `unix:${daemon.socketPath}` });
  await controller.version();
  await controller.close();
  const [line = ''] = readFileSync(log, 'utf8').trim().split('\n').slice(-1);
  const { ts, latency_us, request_id, ...rest } = JSON.parse(line) as Record<string, unknown>;
  assert.match(String(ts), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  assert.ok(Number.isInteger(latency_us) && typeof request_id === 'string');
  assert.equal(rest, { method: 'GET', path: '/version', status: 200, ua: '', remote: 'unix', outcome: 'ok' });
});

front('a service manager hears that it is ready, reloads and lives', async () => {
  const ready = /^READY=1 STATUS=listening on port \d+ \(TLS\)/m;
  await manager.says(ready);
  await manager.says(/^WATCHDOG=1$/m);
  process.kill(daemon.pid, 'SIGHUP');
  const said = await manager.says(/^RELOADING=1 MONOTONIC_USEC=\d+\nREADY=1 /m);
  assert.match(said, ready);
});

front('start-up is refused for half of a pair, for strangers and for what is no certificate', async () => {
  writeFileSync(file('nonsense'), 'nonsense');
  const cases: [string[], RegExp][] = [
    [['--tls-cert', mine.cert], /there is --tls-cert but no --tls-key/],
    [['--tls-key', mine.key], /there is --tls-key but no --tls-cert/],
    [['--tls-cert', mine.cert, '--tls-key', other.key], /is not the key of/],
    [['--tls-cert', file('nonsense'), '--tls-key', mine.key], /is not a certificate/],
    [['--tls-cert', file('absent'), '--tls-key', mine.key], /cannot read --tls-cert/],
  ];
  for (const [args, reason] of cases) {
    const own = ['daemon', '--bind', '127.0.0.1:0', '--socket', file('e.sock'), '--state', file('e.json')];
    const { code, stderr } = await start(process.execPath, [CLI, ...own, '--audit-log', file('e.log'), ...args], {
      env: world.env,
    }).ended;
    assert.is(code, 1, stderr);
    assert.match(stderr, reason);
  }
});

/** Many requests in one breath, on one connection: however slow the host is, they come faster than any rate. Returns the statuses. */
const burst = (socket: Socket, count: number): Promise<Set<string>> =>
  new Promise((resolve, reject) => {
    let text = '';
    socket.setEncoding('latin1').on('data', (part: string) => {
      text += part;
      const statuses = text.match(/(?<=^|})HTTP\/1\.1 \d+/g) ?? [];
      if (statuses.length < count || !text.endsWith('}')) return;
      socket.destroy();
      resolve(new Set(statuses.map((status) => status.slice(-3))));
    });
    socket.on('error', reject);
    socket.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(count));
  });

front('too many requests in a second are 429 until it is over; the socket has no limit', async () => {
  const remote = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false });
  assert.equal([...(await burst(remote, 10 * RATE))].sort(), ['200', '429']);
  assert.equal([...(await burst(connectTcp(daemon.socketPath), 10 * RATE))], ['200']);
  const controller = new Controller({ baseUrl: secure(), ca: readFileSync(mine.cert, 'utf8') });
  const look = (): Promise<boolean> =>
    controller.health().then(
      () => true,
      () => false,
    );
  let isOver = await look();
  for (let i = 0; i < 500 && !isOver; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    isOver = await look();
  }
  assert.ok(isOver);
  await controller.close();
});

front('a bucket fills with time, and no further than a second', () => {
  let now = 0;
  const rate = new Rate(10, () => now);
  const taken = (address: string): number => {
    for (let count = 0; ; count++) {
      try {
        rate.require(address);
      } catch {
        return count;
      }
    }
  };
  assert.equal([taken('a'), taken('a'), taken('b')], [10, 0, 10]);
  now += 500;
  assert.is(taken('a'), 5);
  now += 60_000;
  assert.is(taken('a'), 10);
});

front('a connection too many gets an answer, and one that ends makes room', async () => {
  const connections = new Connections(3, 2);
  const server = makeServer((request, response) => {
    try {
      connections.require(request.socket);
      response.end('in');
    } catch {
      response.end('out');
    }
  }, PATIENCE);
  connections.watch(server);
  await new Promise<void>((resolve) => server.listen(0, resolve));
  const { port: mineToo } = server.address() as { port: number };
  const agents = Array.from({ length: 4 }, () => new HttpAgent({ keepAlive: true }));
  const ask = (agent: HttpAgent | undefined, host: string) =>
    new Promise<string>((resolve, reject) => {
      get({ host, port: mineToo, ...(agent ? { agent } : {}) }, (response) => {
        response.setEncoding('utf8').once('data', resolve);
      }).on('error', reject);
    });
  const [a, b, c, d] = agents;
  assert.equal(
    [await ask(a, '127.0.0.1'), await ask(b, '127.0.0.1'), await ask(c, '127.0.0.1'), await ask(d, '127.0.0.2')],
    ['in', 'in', 'out', 'out'],
    'the third of an address, and the fourth of all',
  );
  for (const agent of agents) agent.destroy();
  let open = 1;
  assert.ok(
    await eventually(() => {
      server.getConnections((_, count) => {
        open = count;
      });
      return open === 0;
    }),
  );
  assert.is(await ask(undefined, '127.0.0.1'), 'in');
  server.closeAllConnections();
  server.close();
});

front.run();
