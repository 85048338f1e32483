/** The client as another package imports it, against a real daemon with real VMs. */
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller, ControllerError, Engine, type EventInfo, Sandbox } from 'forkd';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { BASE_TAG, makeWorld } from '../support/world.js';

const TOKEN = 'a-token-of-enough-bytes';
const world = makeWorld(true);
let daemon: TestDaemon;
let controller: Controller;

const client = suite('client');

client.before(async () => {
  const tokenFile = join(world.root, 'token');
  writeFileSync(tokenFile, TOKEN);
  daemon = await startDaemon(world, ['--token-file', tokenFile]);
  controller = new Controller({ baseUrl: `unix:${daemon.socketPath}`, token: TOKEN });
});
client.after(async () => {
  await controller.close();
  assert.is(await daemon.stop(), 0);
  world.close();
});

const refusal = async (promise: Promise<unknown>): Promise<ControllerError> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert.instance(error, ControllerError);
  return error as ControllerError;
};

client('the package exports client and engine, and the client alone', async () => {
  assert.type(Engine, 'function');
  const alone = await import('forkd/client');
  assert.equal(Object.keys(alone).sort(), ['Controller', 'ControllerError', 'Sandbox']);
  assert.is(alone.Controller, Controller);
});

client('a port, a socket, and a fetch of the caller; address and token also from the environment', async () => {
  const overPort = new Controller({ baseUrl: `${daemon.url}//`, token: TOKEN });
  assert.is(overPort.baseUrl, daemon.url);
  const byFetch = new Controller({ baseUrl: daemon.url, token: TOKEN, fetch });
  for (const one of [controller, overPort, byFetch]) {
    assert.equal(await one.health(), { ok: true });
    assert.is((await one.version()).api, 'v1');
    assert.equal(await one.listSandboxes(), []);
  }
  process.env['FORKD_URL'] = `unix:${daemon.socketPath}`;
  process.env['FORKD_TOKEN'] = TOKEN;
  try {
    assert.is((await new Controller().version()).api, 'v1');
  } finally {
    delete process.env['FORKD_URL'];
    delete process.env['FORKD_TOKEN'];
  }
  assert.throws(() => new Controller({ baseUrl: 'unix:/x', fetch }), /Unix socket/);
  assert.throws(() => new Controller({ baseUrl: 'nonsense' }), /URL/);
});

client('a sandbox from birth to end, beside it a second', async () => {
  const options = { baseUrl: `unix:${daemon.socketPath}`, token: TOKEN, snapshotTag: BASE_TAG };
  const [other] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG });
  assert.ok(other);
  const id = await Sandbox.with(options, async (sandbox) => {
    assert.equal((await controller.getSandbox(sandbox.id)).snapshot_tag, BASE_TAG);
    assert.equal(
      (await controller.listSandboxes()).map((one) => one.id),
      [other.id, sandbox.id].sort(),
    );
    assert.equal(await sandbox.exec(['echo', 'hi']), { stdout: 'hi\n', stderr: '', exit_code: 0 });
    const late = await sandbox.exec(['sleep', '60'], { timeoutSecs: 1 });
    assert.equal([late.exit_code !== 0, late.timed_out], [true, true]);
    assert.is(await sandbox.eval('6 * 7'), '42');
    await sandbox.eval('1/0').then(
      () => assert.unreachable(),
      (error: Error) => assert.match(error.message, /ZeroDivisionError/),
    );
    assert.is((await sandbox.ping()).pong, true);
    return sandbox.id;
  });
  const gone = await refusal(controller.getSandbox(id));
  assert.equal(
    [gone.status, gone.code, gone.url],
    [404, 'SANDBOX_NOT_FOUND', `${controller.baseUrl}/v1/sandboxes/${id}`],
  );
  assert.match(gone.message, id);
  const twice = new Sandbox(controller, other);
  assert.is(await twice.kill(), undefined);
  await twice.kill();
  assert.is((await refusal(controller.killSandbox(other.id))).status, 404);
});

client('events tell of sandboxes and snapshots as they happen, and again to who comes back', async () => {
  const abort = new AbortController();
  const seen: EventInfo[] = [];
  let id = '';
  const listening = (async () => {
    for await (const event of controller.events({ kinds: ['sandbox'], after: 0, signal: abort.signal }))
      if (seen.push(event) && event.action === 'deleted' && event.object === id) abort.abort();
  })();
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, labels: { a: 'b' } });
  assert.ok(one);
  id = one.id;
  assert.equal(
    (await controller.listSandboxes({ labels: { a: 'b' } })).map(({ id }) => id),
    [one.id],
  );
  await controller.killSandbox(one.id);
  await listening;
  const mine = seen.filter(({ object }) => object === one.id);
  assert.equal(
    mine.map(({ action }) => action),
    ['created', 'deleted'],
  );
  assert.equal(mine[0]?.sandbox, one);
  const again = controller.events({ after: (mine[1]?.id ?? 0) - 1 });
  assert.equal((await again.next()).value, mine[1]);
  await again.return();
  const refused = controller.events({ kinds: ['nothing' as 'sandbox'] }).next();
  assert.is((await refusal(refused)).status, 400);
});

client('branches, and snapshots made of snapshots', async () => {
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, n: 1, prewarm: false });
  assert.ok(one);
  const sandbox = new Sandbox(controller, one);
  const branch = await sandbox.branch({ tag: 'cut', mode: 'diff', diff: true, parentTag: BASE_TAG });
  assert.equal([branch.tag, branch.status, branch.branched_from], ['cut', 'ready', one.id]);
  assert.ok((branch.diff_physical_bytes ?? 0) > 0);
  assert.is((await controller.getSnapshot('cut')).status, 'ready');
  assert.equal((await controller.snapshotInfo('cut')).ancestors, [BASE_TAG]);
  assert.is((await controller.compactSnapshot('cut', 'flat')).branched_from, 'compact:cut');
  assert.is((await refusal(sandbox.branch({ tag: 'cut' }))).code, 'SNAPSHOT_EXISTS');
  assert.is((await refusal(sandbox.branch({ tag: 'x', wait: false }))).status, 400);
  const writing = await sandbox.branch({ mode: 'live', wait: false });
  assert.equal([writing.status, writing.bootable], ['writing', false]);
  assert.match(writing.tag, `branch-${one.id}`);
  const blocked = await refusal(controller.deleteSnapshot(BASE_TAG));
  assert.equal([blocked.status, blocked.code], [409, 'SNAPSHOT_HAS_DEPENDENTS']);
  assert.match(blocked.hint ?? '', 'snapshot-compact');
  assert.is(await controller.deleteSnapshot('cut', { force: true }), undefined);
  await controller.deleteSnapshot('flat');
  await sandbox.kill();
});

client('what is refused, unreachable or late', async () => {
  const stranger = new Controller({ baseUrl: daemon.url, token: 'wrong-token-of-some-length' });
  assert.equal((await refusal(stranger.version())).code, 'TOKEN_WRONG');
  const escaped = await refusal(controller.getSandbox('../snapshots'));
  assert.is(escaped.status, 404);
  await new Controller({ baseUrl: 'unix:/nowhere.sock' }).health().then(
    () => assert.unreachable(),
    (error: NodeJS.ErrnoException) => assert.is(error.code, 'ENOENT'),
  );
  const silent = createServer(() => undefined).listen(0, '127.0.0.1');
  await new Promise((resolve) => silent.once('listening', resolve));
  const { port } = silent.address() as AddressInfo;
  await new Controller({ baseUrl: `http://127.0.0.1:${port}`, timeoutMs: 50 }).health().then(
    () => assert.unreachable(),
    (error: Error) => assert.is(error.name, 'AbortError'),
  );
  silent.closeAllConnections();
  silent.close();
});

client.run();
