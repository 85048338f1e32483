/** The document against the server, and the server against requests that are made of the document. No VM is started. */
import { join } from 'node:path';
import { Validator } from '@seriousme/openapi-schema-validator';
import { Client } from 'undici';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Controller } from '../../src/client/index.js';
import { Daemon } from '../../src/main/daemon/server.js';
import { Api } from '../support/api.js';
import { makeWorld } from '../support/world.js';

const world = makeWorld();
const socketPath = join(world.root, 'd.sock');
const problems: string[] = [];
const daemon = await Daemon.start({
  bind: '127.0.0.1:0',
  socketPath,
  auditLog: join(world.root, 'audit.log'),
  statePath: join(world.root, 'state.json'),
  rateLimit: 0,
  branchConcurrency: 4,
  spares: 0,
  version: '0.0.0',
  snapshotRoot: world.snapshots,
  logLevel: 'silent',
  onProblem: (reason) => problems.push(reason),
});
const client = new Client('http://forkd', { socketPath });
// biome-ignore lint/suspicious/noExplicitAny: a document
const document: any = await client.request({ method: 'GET', path: '/openapi.json' }).then(({ body }) => body.json());
const api = new Api(document);

const openapi = suite('openapi');

openapi.after(async () => {
  await client.close();
  await daemon.close();
  world.close();
  assert.equal(problems, []);
});

const send = async (method: string, path: string, body?: unknown) => {
  const reply = await client.request({
    method: method as 'GET',
    path,
    ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  const text = await reply.body.text();
  const isJson = String(reply.headers['content-type']).startsWith('application/json');
  return { status: reply.statusCode, body: text === '' ? undefined : isJson ? JSON.parse(text) : text };
};

openapi('the document is OpenAPI 3.1, and has the routes of the reference', async () => {
  const { valid, errors } = await new Validator().validate(structuredClone(document));
  assert.ok(valid, JSON.stringify(errors));
  assert.is(document.openapi, '3.1.0');
  for (const route of [
    'GET /healthz',
    'GET /version',
    'GET /metrics',
    'GET /v1/snapshots',
    'POST /v1/snapshots',
    'DELETE /v1/snapshots/x',
    'GET /v1/snapshots/x/info',
    'POST /v1/snapshots/x/compact',
    'POST /v1/sandboxes',
    'GET /v1/sandboxes',
    'GET /v1/sandboxes/x',
    'DELETE /v1/sandboxes/x',
    'POST /v1/sandboxes/x/exec',
    'POST /v1/sandboxes/x/eval',
    'POST /v1/sandboxes/x/ping',
    'POST /v1/sandboxes/x/branch',
    'GET /v1/workspaces',
    'POST /v1/workspaces',
    'GET /v1/workspaces/x',
    'DELETE /v1/workspaces/x',
    'POST /v1/workspaces/x/suspend',
    'POST /v1/workspaces/x/resume',
  ]) {
    const [method = '', path = ''] = route.split(' ');
    assert.ok(api.find(method, path), route);
  }
  for (const { spec, path } of api.operations) assert.ok(spec.summary, path);
});

openapi('what the client sends is in the document', async () => {
  const sent: { method: string; path: string; body: unknown }[] = [];
  const spy = new Controller({
    baseUrl: 'http://x',
    fetch: async (url, { method, body, headers }) => {
      const isJson = headers['content-type'] === 'application/json';
      sent.push({
        method,
        path: url.slice('http://x'.length),
        body: isJson ? JSON.parse(body) : undefined,
      });
      return { status: 200, text: async () => '{}', body: (async function* () {})() };
    },
  });
  const labels = { a: 'b' };
  await spy.health();
  await spy.version();
  await spy.listSnapshots({ labels });
  await spy.getSnapshot('x');
  await spy.createSnapshot({ tag: 'x', kernel: '/k', initrd: '/i', rootfs: '/r', tap: 't', bootWaitSecs: 1, labels });
  const volumes = [{ hostPath: '/v', guestPath: '/data', readOnly: true }];
  await spy.createSnapshot({ tag: 'x', memoryMib: 512, vcpus: 1, warmEval: '1', volumes });
  await spy.snapshotInfo('x');
  await spy.compactSnapshot('x', 'y');
  await spy.branchTree();
  await spy.diffBranches('x', 'y', ['files', 'memory']);
  await spy.promoteSnapshot('x', 'y');
  await spy.promoteSandbox('x', 'y');
  await spy.pruneSnapshots({ under: 'x', all: true, olderThanSecs: 1, keep: 1, only: ['y'], dryRun: true });
  await spy.deleteSnapshot('x', { cascade: true });
  await spy.deleteSnapshot('x', { force: true });
  const flags = { perChildNetns: true, prewarm: true, liveFork: true, hugepages: true };
  await spy.spawnSandboxes({ snapshotTag: 'x', n: 2, memoryLimitMib: 9, ...flags, labels, ttlSecs: 1, idleSecs: 1 });
  await spy.spawnSandboxes({ snapshotTag: 'x', cpus: 0.5, ioMibPerS: 1, pids: 128, strict: true });
  await spy.listSandboxes({ labels });
  await spy.getSandbox('x');
  await spy.limitSandbox('x', { cpus: 0.5, memoryLimitMib: null, ioMibPerS: 1, pids: 128 });
  await spy.sandboxUsage('x');
  await spy.killSandbox('x');
  await spy.branchSandbox('x', { tag: 'y', mode: 'live', wait: false, labels });
  await spy.branchSandbox('x', { diff: true, measure_diff: true, parentTag: 'z' });
  await spy.execCommand('x', ['true']);
  await spy.evalCode('x', '1');
  await spy.execCommand('x', ['true'], { env: labels, cwd: '/', user: 'a', stdin: 'b' });
  await spy.pingSandbox('x');
  await spy.listRuns('x');
  await spy.startRun('x', ['true'], { env: labels, cwd: '/', user: 'a', tty: true, stdin: true, timeoutSecs: 1 });
  await spy.statFile('x', '/a');
  await spy.listFiles('x', '/a');
  await spy.makeDir('x', '/a', { mode: 0o700 });
  await spy.removeFile('x', '/a', { recursive: true });
  await spy.writeFile('x', '/a', 'text', { mode: 0o600, parents: true });
  await spy.writeDir('x', '/a', 'archive');
  for await (const _ of spy.readFile('x', '/a')) assert.unreachable();
  for await (const _ of spy.readDir('x', '/a')) assert.unreachable();
  for await (const _ of await spy.watchFiles('x', '/a', { recursive: true })) assert.unreachable();
  await spy.listWorkspaces({ labels });
  await spy.getWorkspace('x');
  await spy.createWorkspace({ name: 'x', snapshotTag: 'y', perChildNetns: true, memoryLimitMib: 9, labels });
  await spy.suspendWorkspace('x', { diff: true });
  await spy.resumeWorkspace('x');
  await spy.deleteWorkspace('x');
  for await (const _ of spy.events({ kinds: ['sandbox', 'snapshot'], after: 1 })) assert.unreachable();
  assert.equal(
    sent.flatMap(({ method, path, body }) => api.requestProblems(method, path, body)),
    [],
  );
  const asked = new Set(sent.map(({ method, path }) => api.find(method, path)));
  // A web service of a guest is for browsers.
  const unasked = api.operations
    .filter((one) => !asked.has(one) && !one.path.includes('{port}'))
    .map(({ method, path }) => `${method} ${path}`);
  assert.equal(unasked, ['GET /openapi.json', 'GET /metrics'], 'routes that the client has no method for');
});

/** Numbers from a seed, so that what failed can be tried again (xorshift32). */
const random = (seed: number) => () => {
  seed ^= seed << 13;
  seed ^= seed >>> 17;
  seed ^= seed << 5;
  return (seed >>> 0) / 2 ** 32;
};

const ODD: unknown[] = [
  null,
  true,
  -1,
  0,
  1.5,
  2 ** 53,
  1e300,
  '',
  'x',
  '../x',
  'a b',
  'a\u0000b',
  '\ud83d\ude00'.repeat(50),
  'y'.repeat(5000),
  [],
  ['x', 1],
  {},
  { constructor: 'x' },
];

// biome-ignore lint/suspicious/noExplicitAny: a schema is walked by keys that it may have or not
const valueFor = (schema: any, next: () => number): unknown => {
  const pick = <T>(all: T[]): T => all[Math.floor(next() * all.length)] as T;
  if (next() < 0.25) return pick(ODD);
  const type = Array.isArray(schema.type) ? pick(schema.type) : schema.type;
  if (schema.enum) return pick(schema.enum);
  if (type === 'boolean') return next() < 0.5;
  if (type === 'integer') return pick([0, 1, 2, 7, 61, 1000, 1001, schema.maximum ?? 5]);
  if (type === 'string') return pick(['x', 'tag-1', '/nowhere', '1', 'true', 'a=b', 'sandbox', 'v1.2']);
  if (type === 'array') return Array.from({ length: Math.floor(next() * 3) }, () => valueFor(schema.items ?? {}, next));
  if (type === 'object') {
    const names = Object.keys(schema.properties ?? { a: 1, 'b/c': 1 });
    const all = names.filter((name) => schema.required?.includes(name) || next() < 0.5).filter(() => next() < 0.95);
    return Object.fromEntries(
      all.map((name) => [name, valueFor(schema.properties?.[name] ?? { type: 'string' }, next)]),
    );
  }
  return null;
};

openapi('a URL that cannot be decoded, and a HEAD', async () => {
  const bad = await send('GET', '/v1/sandboxes/%zz');
  assert.equal([bad.status, bad.body.code], [400, 'QUERY_INVALID']);
  assert.equal(await send('HEAD', '/v1/sandboxes'), { status: 200, body: undefined });
  assert.is((await send('HEAD', '/v1/events')).status, 405);
});

openapi('requests made of the document never get a 500, and every answer is in it', async () => {
  const seed = Number(process.env['FORKD_SEED'] ?? Date.now() % 2 ** 31) || 1;
  const next = random(seed);
  const wrong: string[] = [];
  for (let round = 0; round < 25; round++) {
    for (const { method, path, spec } of api.operations) {
      // It never ends.
      if (path === '/v1/events') continue;
      const segment = () => encodeURIComponent(String(valueFor({ type: 'string' }, next)) || 'x');
      const query = (spec.parameters ?? [])
        .filter((one: { in: string }) => one.in === 'query' && next() < 0.5)
        .map(
          (one: { name: string; schema: object }) =>
            `${one.name}=${encodeURIComponent(String(valueFor(one.schema, next)))}`,
        )
        .join('&');
      const url = `${path.replace(/\{\w+\}/g, segment)}${query ? `?${query}` : ''}`;
      const json = spec.requestBody?.content['application/json'];
      // biome-ignore lint/suspicious/noExplicitAny: anything
      const body: any = json ? valueFor(json.schema, next) : undefined;
      // A body without a fault would boot a guest.
      if (path === '/v1/snapshots' && body && typeof body === 'object') body.kernel = '/nowhere';
      const answer = await send(method, url, body);
      const what = `seed ${seed}: ${method} ${url.slice(0, 200)} ${JSON.stringify(body)?.slice(0, 300)} -> ${answer.status}`;
      if (answer.status >= 500) wrong.push(`${what} ${JSON.stringify(answer.body)}`);
      wrong.push(
        ...api.answerProblems(method, url, answer.status, answer.body).map((problem) => `${what}: ${problem}`),
      );
    }
  }
  assert.equal(wrong.slice(0, 5), []);
});

openapi.run();
