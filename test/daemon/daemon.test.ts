/** The real daemon in a process of its own, with real VMs, over its port and its socket. */
import { cpSync, mkdirSync, readFileSync, renameSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join } from 'node:path';
import { Client, request } from 'undici';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { errnoOf } from '../../src/contract/errors.js';
import type { SandboxBody, SnapshotBody } from '../../src/contract/rest.js';
import { Api } from '../support/api.js';
import { CLI, type Running, start } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, type World } from '../support/world.js';

const CONTROLLER = join(CLI, '../controller.js');
const TOKEN = 'a-token-of-enough-bytes';
const world: World = makeWorld(true);
const socketPath = join(world.root, 'd.sock');
const tokenFile = join(world.root, 'token');
const auditLog = join(world.root, 'audit.log');

interface Answer {
  status: number;
  // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for
  body: any;
}

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port: free } = server.address() as AddressInfo;
      server.close(() => resolve(free));
    });
  });
const port = await freePort();
const daemonArgs = ['serve', '--bind', `127.0.0.1:${port}`, '--socket', socketPath, '--audit-log', auditLog];
const launch = (args: string[]): Running =>
  start(process.execPath, [CONTROLLER, ...args], { env: world.env, timeoutMs: 200_000 });

let running: Running;
let client: Client;
/** Every answer of this suite is held against the document that the daemon gives of itself. */
let api: Api | undefined;

const daemon = suite('daemon');

daemon.before(async () => {
  writeFileSync(tokenFile, `${TOKEN}\n`);
  running = launch([...daemonArgs, '--token-file', tokenFile]);
  await running.says('listening on port');
  client = new Client('http://forkd', { socketPath, bodyTimeout: 120_000, headersTimeout: 120_000 });
  api = new Api((await ask('GET', '/openapi.json')).body);
});
daemon.after(async () => {
  await client.close();
  running.kill('SIGTERM');
  const { code } = await running.ended;
  world.close();
  assert.is(code, 0);
});

const ask = async (
  method: 'GET' | 'POST' | 'DELETE' | 'PUT',
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> => {
  const reply = await client.request({
    method,
    path,
    headers: {
      authorization: `Bearer ${TOKEN}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
  const text = await reply.body.text();
  const answer = { status: reply.statusCode, body: text === '' ? undefined : JSON.parse(text) };
  if (api?.find(method, path))
    assert.equal(
      api.answerProblems(method, path, answer.status, answer.body),
      [],
      'the OpenAPI document says otherwise',
    );
  return answer;
};

const spawn = async (n = 1): Promise<SandboxBody[]> => {
  const { status, body } = await ask('POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, n });
  assert.is(status, 201, JSON.stringify(body));
  return body;
};

daemon('health needs no token, all else does, unknown routes too; a changed file counts at once', async () => {
  const none = { authorization: '' };
  assert.equal(await ask('GET', '/healthz', undefined, none), { status: 200, body: { ok: true } });
  for (const path of ['/version', '/nothing', '/Healthz', '/healthz/x'])
    assert.is((await ask('GET', path, undefined, none)).status, 401, path);
  for (const wrong of [`bearer ${TOKEN}`, 'Bearer ', `Bearer ${TOKEN}x`, `Bearer ${TOKEN.slice(1)}`])
    assert.is((await ask('GET', '/version', undefined, { authorization: wrong })).status, 401, wrong);
  assert.is((await ask('GET', '/version')).body.api, 'v1');
  writeFileSync(tokenFile, 'another-token-of-enough-bytes');
  assert.is((await ask('GET', '/version')).status, 401);
  writeFileSync(tokenFile, 'weak');
  const other = { authorization: 'Bearer another-token-of-enough-bytes' };
  assert.is((await ask('GET', '/version', undefined, other)).status, 200);
  writeFileSync(tokenFile, TOKEN);
  assert.is((await ask('GET', '/version')).status, 200);
});

daemon('the port serves the same, the socket is only for its owner, and the audit log names each request', async () => {
  const { statusCode, body } = await request(`http://127.0.0.1:${port}/healthz`);
  assert.equal([statusCode, await body.json()], [200, { ok: true }]);
  assert.is(statSync(socketPath).mode & 0o777, 0o600);
  await ask('GET', '/version?x=1');
  const last = readFileSync(auditLog, 'utf8').trim().split('\n').at(-1) ?? '';
  assert.match(last, /"method":"GET","path":"\/version","status":200/);
});

daemon('a sandbox from birth to end', async () => {
  const [one, two] = await spawn(2);
  assert.ok(one && two && one.id !== two.id);
  assert.equal([one.snapshot_tag, one.status, one.has_branched, one.branch_count], [BASE_TAG, 'running', false, 0]);
  assert.equal(
    (await ask('GET', '/v1/sandboxes')).body.map(({ id }: SandboxBody) => id),
    [one.id, two.id].sort(),
  );
  const path = `/v1/sandboxes/${one.id}`;
  assert.equal((await ask('GET', path)).body, one);
  assert.equal((await ask('POST', `${path}/exec`, { args: ['echo', 'hi'] })).body, {
    stdout: 'hi\n',
    stderr: '',
    exit_code: 0,
  });
  const missing = (await ask('POST', `${path}/exec`, { args: ['no-such-command'] })).body;
  assert.is(missing.exit_code, 1);
  assert.match(missing.stderr, /FileNotFoundError/);
  const good = (await ask('POST', `${path}/eval`, { code: '6 * 7' })).body;
  assert.equal([good.result, good.error, good.exit_code], ['42', null, 0]);
  const bad = (await ask('POST', `${path}/eval`, { code: '1/0' })).body;
  assert.equal([bad.result, bad.exit_code], [null, 1]);
  assert.match(bad.error, /ZeroDivisionError/);
  assert.is((await ask('POST', `${path}/ping`)).body.pong, true);
  assert.is((await ask('POST', `${path}/ping`, '{}')).body.pong, true);
  assert.is((await ask('POST', `${path}/ping`, undefined, { 'content-type': 'application/json' })).body.pong, true);
  assert.equal(await ask('DELETE', path, undefined, { 'content-type': 'application/json' }), {
    status: 204,
    body: undefined,
  });
  assert.is((await ask('DELETE', path)).status, 404);
  await ask('DELETE', `/v1/sandboxes/${two.id}`);
  assert.equal((await ask('GET', '/v1/sandboxes')).body, []);
});

daemon('one that dies stays listed as dead, with its reason, until it is deleted', async () => {
  const [one] = await spawn();
  assert.ok(one?.pid);
  const path = `/v1/sandboxes/${one.id}`;
  process.kill(one.pid, 'SIGKILL');
  let seen: SandboxBody = one;
  for (const end = performance.now() + 5000; seen.status !== 'dead' && performance.now() < end; )
    seen = (await ask('GET', path)).body;
  assert.equal([seen.status, seen.pid], ['dead', null]);
  assert.match(seen.reason ?? '', /SIGKILL/);
  const ping = await ask('POST', `${path}/ping`);
  assert.is(ping.status, 500);
  assert.match(ping.body.error, /^ping: .*SIGKILL/);
  assert.is((await ask('DELETE', path)).status, 204);
});

daemon(
  'branches: full waits, live may not; children come from the tag; the parent is not removed under them',
  async () => {
    const [one] = await spawn();
    assert.ok(one);
    const path = `/v1/sandboxes/${one.id}`;
    await ask('POST', `${path}/eval`, { code: "import builtins\nbuiltins.mark = 'kept'" });
    const diff = await ask('POST', `${path}/branch`, { tag: 'diffed', mode: 'diff', parent_tag: BASE_TAG });
    assert.is(diff.status, 201, JSON.stringify(diff.body));
    assert.equal([diff.body.status, diff.body.bootable, diff.body.branched_from], ['ready', true, one.id]);
    assert.ok(diff.body.diff_physical_bytes > 0 && diff.body.diff_physical_bytes < diff.body.diff_logical_bytes);
    const live = await ask('POST', `${path}/branch`, { tag: 'lived', mode: 'live', wait: false });
    assert.equal([live.status, live.body.status, live.body.bootable], [202, 'writing', false]);
    const early = await ask('POST', '/v1/sandboxes', { snapshot_tag: 'lived' });
    assert.equal([early.status, early.body.code], [409, 'SNAPSHOT_NOT_READY']);
    const entries = async (tag: string): Promise<SnapshotBody[]> =>
      (await ask('GET', '/v1/snapshots')).body.filter((s: SnapshotBody) => s.tag === tag);
    for (const end = performance.now() + 60_000; performance.now() < end; ) {
      const found = await entries('lived');
      assert.is(found.length, 1);
      if (found[0]?.status !== 'writing') break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.is((await entries('lived'))[0]?.status, 'ready');
    assert.is((await ask('POST', `${path}/branch`, { tag: 'lived' })).status, 409);
    const child = (await ask('POST', '/v1/sandboxes', { snapshot_tag: 'diffed' })).body[0];
    assert.is((await ask('POST', `/v1/sandboxes/${child.id}/eval`, { code: 'mark' })).body.result, "'kept'");
    assert.equal([(await ask('GET', path)).body.branch_count, (await ask('GET', path)).body.has_branched], [2, true]);
    const info = (await ask('GET', '/v1/snapshots/diffed/info')).body;
    assert.equal([info.chain_depth, info.ancestors, info.parent_tag], [1, [BASE_TAG], BASE_TAG]);
    const flat = await ask('POST', '/v1/snapshots/diffed/compact', { to: 'flat' });
    assert.equal([flat.status, flat.body.tag, flat.body.branched_from], [200, 'flat', 'compact:diffed']);
    assert.is((await ask('GET', '/v1/snapshots/flat/info')).body.chain_depth, 0);
    assert.is((await ask('POST', '/v1/snapshots/diffed/compact', { to: 'flat' })).status, 409);
    const blocked = await ask('DELETE', `/v1/snapshots/${BASE_TAG}`);
    assert.is(blocked.status, 409);
    for (const word of ['diffed', 'cascade', 'force']) assert.match(blocked.body.error, word);
    for (const id of [one.id, child.id]) await ask('DELETE', `/v1/sandboxes/${id}`);
  },
);

daemon('labels find what they were given to; time and idleness end a sandbox, and it says so', async () => {
  const named = { snapshot_tag: BASE_TAG, labels: { job: 'a=b', 'team/x': '1' } };
  const [brief] = (await ask('POST', '/v1/sandboxes', { ...named, ttl_secs: 1 })).body;
  const [idle] = (await ask('POST', '/v1/sandboxes', { ...named, idle_secs: 3 })).body;
  // A call of more than its idle time: it works, so it is not idle.
  const working = ask('POST', `/v1/sandboxes/${idle.id}/exec`, { args: ['sleep', '3.5'] });
  const [kept] = (await ask('POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, labels: { job: 'c' } })).body;
  const found = async (query: string) => (await ask('GET', `/v1/sandboxes?${query}`)).body as SandboxBody[];
  const ids = (all: SandboxBody[]) => all.map(({ id }) => id);
  assert.equal(ids(await found('label=job%3Da%3Db&label=team/x%3D1')), [brief.id, idle.id].sort());
  assert.equal(ids(await found('label=job%3Dc')), [kept.id]);
  assert.equal(await found('label=job%3Dc&label=team/x%3D1'), []);
  assert.is((await ask('GET', '/v1/sandboxes?label=job')).status, 400);
  const ended = async ({ id }: SandboxBody): Promise<SandboxBody> => {
    const look = async () => (await ask('GET', `/v1/sandboxes/${id}`)).body as SandboxBody;
    for (const end = performance.now() + 20_000; performance.now() < end; ) {
      const body = await look();
      if (body.status === 'dead') return body;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return look();
  };
  assert.match((await ended(brief)).reason ?? '', /ttl_secs/);
  assert.is((await working).body.exit_code, 0);
  assert.match((await ended(idle)).reason ?? '', /idle for 3 s/);
  assert.is((await ask('GET', `/v1/sandboxes/${kept.id}`)).body.status, 'running');
  for (const { id } of [brief, idle, kept]) assert.is((await ask('DELETE', `/v1/sandboxes/${id}`)).status, 204);
});

daemon('a snapshot of the built-in image is made, and listed with its labels', async () => {
  const made = await ask('POST', '/v1/snapshots', {
    tag: 'made',
    labels: { from: 'rest' },
    warm_eval: 'import builtins; builtins.warm = 1',
  });
  assert.is(made.status, 201, JSON.stringify(made.body));
  assert.equal([made.body.status, made.body.bootable, made.body.labels], ['ready', true, { from: 'rest' }]);
  assert.equal((await ask('GET', '/v1/snapshots?label=from%3Drest')).body, [made.body]);
  assert.is((await ask('POST', '/v1/snapshots', { tag: 'made' })).body.code, 'SNAPSHOT_EXISTS');
  const [one] = (await ask('POST', '/v1/sandboxes', { snapshot_tag: 'made' })).body;
  assert.is((await ask('POST', `/v1/sandboxes/${one.id}/eval`, { code: 'warm' })).body.result, '1');
  await ask('DELETE', `/v1/sandboxes/${one.id}`);
  assert.is((await ask('DELETE', '/v1/snapshots/made?force=true')).status, 204);
});

daemon(
  'metrics have the names of the reference, and what sandboxes take; requests keep the id they bring',
  async () => {
    const [one] = await spawn();
    assert.ok(one);
    await ask('POST', `/v1/sandboxes/${one.id}/eval`, { code: '1' });
    const reply = await client.request({
      method: 'GET',
      path: '/metrics',
      headers: { authorization: `Bearer ${TOKEN}`, 'x-request-id': 'mine-1' },
    });
    assert.match(String(reply.headers['content-type']), /^text\/plain; version=0\.0\.4/);
    assert.is(reply.headers['x-request-id'], 'mine-1');
    const text = await reply.body.text();
    for (const row of [
      'forkd_sandboxes_active 1',
      'forkd_branches_in_flight 0',
      'forkd_branch_concurrency_cap 4',
      /^forkd_snapshots_total \d+$/m,
      /^forkd_build_info\{version="[^"]+"\} 1$/m,
      /^forkd_templates [1-9]/m,
      /^forkd_spares \d+$/m,
      /^forkd_fault_seconds_count \d+$/m,
      /^forkd_sandboxes_ended_total\{how="deleted"\} [1-9]/m,
      /^forkd_sandboxes_ended_total\{how="died"\} 1$/m,
      /^forkd_sandboxes_ended_total\{how="expired"\} 2$/m,
      /^forkd_fork_ready_seconds_count [1-9]/m,
      /^forkd_call_seconds_count\{action="eval"\} [1-9]/m,
      /^forkd_branch_pause_seconds_count [1-9]/m,
      new RegExp(`^forkd_sandbox_memory_bytes\\{id="${one.id}",kind="private"\\} [1-9]`, 'm'),
      new RegExp(`^forkd_sandbox_memory_bytes\\{id="${one.id}",kind="shared"\\} [1-9]`, 'm'),
      /^forkd_http_request_seconds_count\{method="POST",route="\/v1\/sandboxes",status="201"\} [1-9]/m,
    ])
      assert.match(text, row);
    await ask('DELETE', `/v1/sandboxes/${one.id}`);
    const lines = readFileSync(auditLog, 'utf8').trim().split('\n');
    const audited = lines.map((one) => JSON.parse(one)).filter(({ object }) => object === one.id);
    assert.equal(
      audited.map(({ method, outcome }) => [method, outcome]),
      [
        ['POST', 'ok'],
        ['DELETE', 'ok'],
      ],
    );
  },
);

/** False when there is something at `to`. */
const isRenamed = (from: string, to: string): boolean => {
  try {
    renameSync(from, to);
    return true;
  } catch (error) {
    assert.is(errnoOf(error), 'ENOTEMPTY');
    return false;
  }
};

daemon('a branch that fails is listed with its reason, hides nothing, and can be deleted', async () => {
  const [one] = await spawn();
  assert.ok(one);
  const path = `/v1/sandboxes/${one.id}/branch`;
  const full = join(world.snapshots, '.staging-doomed-block');
  const status = async (): Promise<SnapshotBody> => (await ask('GET', '/v1/snapshots/doomed')).body;
  const fail = async () => {
    // A directory where the tag's own is to appear: everything is written, and then it cannot be published.
    for (let inTime = false; !inTime; ) {
      mkdirSync(full);
      assert.is((await ask('POST', path, { tag: 'doomed', mode: 'live', wait: false })).status, 202);
      inTime = isRenamed(full, join(world.snapshots, 'doomed'));
      for (const end = performance.now() + 30_000; (await status()).status === 'writing' && performance.now() < end; )
        await new Promise((resolve) => setTimeout(resolve, 20));
      if (inTime) rmdirSync(join(world.snapshots, 'doomed'));
      else {
        // The branch was quicker than this process.
        rmdirSync(full);
        assert.is((await ask('DELETE', '/v1/snapshots/doomed')).status, 204);
      }
    }
  };
  await fail();
  const failed = await status();
  assert.equal([failed.status, failed.bootable], ['failed', false]);
  assert.match(failed.warning ?? '', /already exists/);
  assert.is((await ask('POST', '/v1/sandboxes', { snapshot_tag: 'doomed' })).status, 409);
  assert.is((await ask('DELETE', '/v1/snapshots/doomed')).status, 204);
  assert.is((await ask('DELETE', '/v1/snapshots/doomed')).status, 404);
  await fail();
  cpSync(join(world.snapshots, BASE_TAG), join(world.snapshots, 'doomed'), { recursive: true });
  assert.not.equal((await status()).warning ?? '', failed.warning);
  rmSync(join(world.snapshots, 'doomed'), { recursive: true });
  assert.is((await ask('DELETE', '/v1/snapshots/doomed')).status, 204);
  await ask('DELETE', `/v1/sandboxes/${one.id}`);
});

daemon('a client that goes away in the middle of a spawn loses nothing', async () => {
  const body = JSON.stringify({ snapshot_tag: BASE_TAG, n: 3 });
  const socket = connect(socketPath);
  socket.end(
    `POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${TOKEN}\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${body.length}\r\n\r\n${body}`,
    () => socket.destroy(),
  );
  let ids: string[] = [];
  for (const end = performance.now() + 30_000; ids.length < 3 && performance.now() < end; )
    ids = (await ask('GET', '/v1/sandboxes')).body.map(({ id }: SandboxBody) => id);
  assert.is(ids.length, 3);
  for (const id of ids) assert.is((await ask('DELETE', `/v1/sandboxes/${id}`)).status, 204);
});

daemon('bad input has the status of the reference, and never 500', async () => {
  const [one] = await spawn();
  assert.ok(one);
  const sandbox = `/v1/sandboxes/${one.id}`;
  const cases: [number, 'GET' | 'POST' | 'DELETE' | 'PUT', string, unknown?][] = [
    [404, 'POST', '/v1/sandboxes', { snapshot_tag: 'missing' }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: '../../etc/passwd' }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: 'a b' }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, n: 0 }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, n: 1001 }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: 'a.b' }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, memory_limit_mib: 0 }],
    [400, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, memory_limit_mib: Number.MAX_SAFE_INTEGER }],
    [422, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, n: -1 }],
    [422, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, n: '1' }],
    [422, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, n: null }],
    [422, 'POST', '/v1/sandboxes', { n: 1 }],
    [400, 'POST', '/v1/sandboxes', '{'],
    [415, 'POST', '/v1/sandboxes'],
    [405, 'PUT', '/v1/sandboxes'],
    [404, 'GET', '/v1/nothing'],
    [404, 'GET', '/v1/sandboxes/sb-0-0000'],
    [404, 'POST', '/v1/sandboxes/sb-0-0000/ping'],
    [400, 'POST', `${sandbox}/exec`, { args: [] }],
    [400, 'POST', `${sandbox}/exec`, { args: ['true'], timeout_secs: 1e12 }],
    [422, 'POST', `${sandbox}/exec`, { args: 'true' }],
    [422, 'POST', `${sandbox}/eval`, {}],
    [404, 'POST', '/v1/sandboxes/sb-0-0000/branch', {}],
    [404, 'POST', '/v1/sandboxes/sb-0-0000/branch', { mode: 'live', wait: false }],
    [400, 'POST', `${sandbox}/branch`, { tag: '../x' }],
    [400, 'POST', `${sandbox}/branch`, { tag: 'v1.2' }],
    [400, 'POST', `${sandbox}/branch`, { mode: 'diff', diff: true }],
    [400, 'POST', `${sandbox}/branch`, { mode: 'full', live: true }],
    [400, 'POST', `${sandbox}/branch`, { diff: true, measure_diff: true }],
    [400, 'POST', `${sandbox}/branch`, { wait: false }],
    [400, 'POST', `${sandbox}/branch`, { mode: 'diff', parent_tag: 'wrong' }],
    [400, 'POST', `${sandbox}/branch`, { parent_tag: BASE_TAG }],
    [422, 'POST', `${sandbox}/branch`, { mode: 'other' }],
    [422, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, ttl_secs: 0 }],
    [422, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, labels: { a: 1 } }],
    [422, 'POST', '/v1/sandboxes', { snapshot_tag: BASE_TAG, labels: { 'a b': 'x' } }],
    [400, 'POST', '/v1/snapshots', { tag: '../etc/passwd' }],
    [400, 'POST', '/v1/snapshots', { tag: 'n', kernel: '/nowhere', rootfs: '/nowhere' }],
    [400, 'POST', '/v1/snapshots', { tag: 'n', rootfs: 'a\0b' }],
    [400, 'POST', '/v1/snapshots', { tag: 'n', boot_wait_secs: 999_999 }],
    [400, 'POST', '/v1/snapshots', { tag: 'n', memory_mib: 1 }],
    [409, 'POST', '/v1/snapshots', { tag: BASE_TAG }],
    [400, 'GET', '/v1/events?kinds=nothing'],
    [404, 'GET', '/v1/snapshots/missing'],
    [404, 'GET', '/v1/snapshots/missing/info'],
    [404, 'DELETE', '/v1/snapshots/missing'],
    [404, 'POST', '/v1/snapshots/missing/compact', { to: 'x' }],
    [400, 'POST', `/v1/snapshots/${BASE_TAG}/compact`, { to: BASE_TAG }],
    [400, 'POST', `/v1/snapshots/${BASE_TAG}/compact`, { to: '../x' }],
    [422, 'POST', `/v1/snapshots/${BASE_TAG}/compact`, {}],
    [400, 'DELETE', `/v1/snapshots/${BASE_TAG}?cascade=true&force=true`],
    [400, 'DELETE', `/v1/snapshots/${BASE_TAG}?cascade=yes`],
  ];
  for (const [status, method, path, body] of cases) {
    const answer = await ask(method, path, body);
    const what = `${method} ${path} ${JSON.stringify(body)?.slice(0, 100)}: ${JSON.stringify(answer.body)}`;
    assert.is(answer.status, status, what);
    assert.equal(Object.keys(answer.body).sort(), ['code', 'error', 'hint'], what);
  }
  assert.is((await ask('DELETE', sandbox)).status, 204);
});

daemon('a body that says it is too large is refused before it is sent', async () => {
  const socket = connect(socketPath);
  socket.write(
    `POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${TOKEN}\r\n` +
      `Content-Type: application/json\r\nContent-Length: ${3 << 20}\r\n\r\n`,
  );
  const head = await new Promise<string>((resolve, reject) => {
    socket.once('data', (data) => resolve(data.toString()));
    socket.once('error', reject);
  });
  socket.destroy();
  assert.match(head, /^HTTP\/1.1 413 /);
  assert.match(head, /BODY_TOO_LARGE/);
});

daemon('start-up is refused for weak tokens, open binds and a socket in use', async () => {
  const weak = join(world.root, 'weak');
  const refusal = async (args: string[]): Promise<string> => {
    const { code, stderr } = await launch(args).ended;
    assert.is(code, 1, stderr);
    return stderr;
  };
  const own = ['serve', '--socket', join(world.root, 'e.sock'), '--audit-log', auditLog];
  for (const [token, reason] of [
    ['', /empty/],
    ['REPLACE_ME_with_a_long_token', /placeholder/],
    ['fifteen-bytes-1', /shorter than 16/],
  ] as const) {
    writeFileSync(weak, token);
    assert.match(await refusal([...own, '--bind', '127.0.0.1:0', '--token-file', weak]), reason);
  }
  for (const bind of ['0.0.0.0:0', '[::]:0']) assert.match(await refusal([...own, '--bind', bind]), /not loopback/);
  assert.match(await refusal([...own, '--bind', 'localhost:1']), /not IP:PORT/);
  assert.match(await refusal([...own, '--bind', '127.0.0.1:0', '--branch-concurrency', '0']), /is 0/);
  assert.match(await refusal(['serve', '--bind', '127.0.0.1:0', ...daemonArgs.slice(3)]), /another daemon/);
  rmSync(weak);
  assert.ok(await eventually(() => statSync(socketPath).isSocket()));
});

daemon.run();
