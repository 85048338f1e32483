/** The commands that are clients of the daemon, as users type them, against a real one with real VMs. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { BranchTree, PruneReport } from '../../src/contract/branches.js';
import type { SandboxBody, SnapshotBody, WorkspaceBody } from '../../src/contract/rest.js';
import { type Ended, forkd } from '../support/cli.js';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { BASE_TAG, eventually, makeWorld } from '../support/world.js';

const world = makeWorld(true);
let daemon: TestDaemon;

const verbs = suite('daemon verbs');

verbs.before(async () => {
  daemon = await startDaemon(world);
});
verbs.after(() => world.close());

const run = (...args: string[]): Promise<Ended> => forkd(args, { env: world.env });

const good = async (...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await run(...args);
  assert.is(code, 0, stderr);
  return stdout;
};

const spawned = async (tag = BASE_TAG): Promise<SandboxBody> =>
  JSON.parse(await good('spawn', '--tag', tag, '--json'))[0];

verbs('spawn, ls, exec, eval, ping, kill', async () => {
  assert.match((await run('ls')).stderr, 'no live sandboxes');
  const lines = (await good('spawn', '--tag', BASE_TAG, '-n', '2')).trim().split('\n');
  assert.is(lines.length, 2);
  const ids = lines.map((l) => l.split(/\s+/)[0] ?? '');
  assert.match(lines[0] ?? '', /^sb-\S+ {2}guest=unix:\S+ {2}netns=—$/);
  const table = await good('ls', '--daemon-url', daemon.url);
  for (const text of ['GUEST_ADDR', '2 sandboxes', ...ids]) assert.match(table, text);
  const [one = ''] = ids;
  const listed: SandboxBody[] = JSON.parse(await good('ls', '--json'));
  for (const { receipt } of listed)
    assert.ok(['kernel_rng', 'clock', 'openssl'].every((step) => receipt?.done.includes(step)));
  assert.is(new Set(listed.map(({ receipt }) => receipt?.boot_id)).size, 2);
  // By its own socket, then through the daemon.
  for (const way of [[], ['--daemon-url', daemon.url]]) {
    const target = ['--target', one, ...way];
    assert.is(await good('exec', ...target, '--', 'echo', 'hi'), 'hi\n');
    assert.is((await run('exec', ...target, '--', 'sh', '-c', 'exit 7')).code, 7);
    assert.is(await good('eval', ...target, '--', '6 * 7'), '42\n');
    const bad = await run('eval', ...target, '--', '1/0');
    assert.is(bad.code, 1);
    assert.match(bad.stderr, /error: ZeroDivisionError/);
    assert.is(JSON.parse(await good('ping', ...target)).pong, true);
    const missing = await run('exec', ...target, '--', 'no-such-command');
    assert.is(missing.code, 1);
    assert.is(missing.stderr.match(/FileNotFoundError/g)?.length, 1, missing.stderr);
  }
  assert.is((await run('kill', 'sb-0-0000', one)).code, 1);
  assert.match(await good('kill', '--tag', BASE_TAG), `✓ ${ids[1]}`);
  assert.match((await run('kill', '--all')).stderr, 'no sandboxes match');
});

verbs('limit: shown, changed while it runs, lifted; nonsense is refused', async () => {
  const limited: SandboxBody = JSON.parse(await good('spawn', '--tag', BASE_TAG, '--cpus', '0.5', '--json'))[0];
  assert.is(limited.limits.cpus, 0.5);
  const { id } = limited;
  assert.match(await good('limit', id), /^cpus: +0\.5\nmemory_limit_mib: +none\n/);
  // Told by who keeps it, without being asked.
  await good('limit', id, '--cpus', '0.05');
  // Half a second of a processor, more on a slow host: at this limit that takes its time.
  const busy = 'i=0; while [ $i -lt 300 ]; do i=$((i+1)); done';
  await good('exec', '--target', id, '--timeout-secs', '300', '--', 'sh', '-c', busy);
  const audit = () => readFileSync(join(world.root, 'audit.log'), 'utf8');
  assert.ok(await eventually(() => audit().includes(`"object":"${id}","kind":"cpu-limit"`), 20_000));
  const listed: SandboxBody[] = JSON.parse(await good('ls', '--json'));
  assert.ok(listed.find((one) => one.id === id)?.held.some(({ kind, count }) => kind === 'cpu-limit' && count > 0));
  const changed = JSON.parse(await good('limit', id, '--cpus', 'none', '--memory-limit-mib', '600', '--json'));
  assert.equal(changed.limits, { cpus: null, memory_limit_mib: 600, io_mib_per_s: null, pids: null });
  assert.ok(changed.usage.pids > 0);
  const refused = await run('limit', id, '--cpus', '0');
  assert.is(refused.code, 2);
  assert.match(refused.stderr, /--cpus cpus must be between 0.01 and/);
  await good('kill', id);
  assert.is((await run('limit', id, '--pids', '128')).code, 1);
});

verbs('snapshot --from-sandbox, and what is made of it', async () => {
  const { id } = await spawned();
  assert.match(await good('snapshot', '--from-sandbox', id, '--tag', 'cut', '--diff'), /branched_from: +sb-/);
  const late: SnapshotBody = JSON.parse(
    await good('snapshot', '--from-sandbox', id, '--live', '--no-wait', '--tag', 'late', '--json'),
  );
  assert.is(late.status, 'writing');
  const again = await run('snapshot', '--from-sandbox', id, '--tag', 'cut');
  assert.is(again.code, 1);
  assert.match(again.stderr, /^Error: HTTP 409: snapshot 'cut' already exists/);
  assert.match(again.stderr, /Hint: Choose another tag/);
  assert.equal(JSON.parse(await good('snapshot-info', 'cut', '--json')).ancestors, [BASE_TAG]);
  assert.match(await good('snapshot-compact', '--from', 'cut', '--to', 'flat'), /branched_from: +compact:cut/);
  await good('kill', '--all');
  assert.is(await good('rmi', 'flat'), '✓ flat  (daemon)\n');
  const blocked = await run('rmi', BASE_TAG, 'nope');
  assert.is(blocked.code, 1);
  assert.match(blocked.stdout, /✗ base .*HTTP 409.*cut/);
  assert.match(blocked.stdout, /✗ nope .*not found/);
  assert.is(await good('rmi', '--cascade', 'cut', 'late'), '✓ cut  (daemon)\n✓ late  (daemon)\n');
});

verbs('tree, promote, prune: the best attempt gets the name of what it was made of', async () => {
  const [one, two] = [await spawned(), await spawned()];
  await good('exec', '--target', one.id, '--', 'sh', '-c', 'echo best > /root/who');
  await good('snapshot', '--from-sandbox', two.id, '--tag', 'attempt');
  const drawn = await good('tree');
  for (const text of [`base `, `├─ ● ${one.id} `, `of the daemon`, `└─ attempt .* branched from ${two.id}`])
    assert.match(drawn, new RegExp(text));
  assert.match(await good('promote', one.id, '--as', BASE_TAG), /promoted_from: +sb-\S+\nprevious: +base-1\n/);
  const { roots } = JSON.parse(await good('tree', '--json')) as BranchTree;
  const [root] = roots;
  assert.equal([root?.tag, root?.children.map(({ tag }) => tag)], ['base-1', ['attempt', 'base']]);
  // They run from what `base` was.
  assert.equal(root?.sandboxes.map(({ id }) => id).sort(), [one.id, two.id].sort());
  const { id } = await spawned();
  assert.is(await good('exec', '--target', id, '--', 'cat', '/root/who'), 'best\n');
  const planned = JSON.parse(await good('prune', '--all', '--dry-run', '--json')) as PruneReport;
  assert.equal(
    planned.removed.map(({ tag }) => tag),
    ['attempt'],
  );
  assert.match(planned.kept.find(({ tag }) => tag === BASE_TAG)?.reason ?? '', `sandbox ${id}`);
  assert.match((await run('prune')).stderr, 'nothing was changed');
  assert.match(await good('prune', '--yes'), /^✓ attempt\nremoved 1 snapshot, /);
  // A branch of one that runs from what the name does not mean any more.
  await good('snapshot', '--from-sandbox', two.id, '--tag', 'late');
  assert.match(await good('tree', 'base-1', '--daemon-url', daemon.url), /─ late /);
  await good('kill', '--all');
  assert.match(await good('promote', 'base-1', '--as', BASE_TAG), /previous: +base-2\n/);
  // What ran from the first `base` is the child of that memory, which `base` is again.
  assert.match(await good('prune', '--all', '--yes', 'base-1'), /^✓ base-2\nremoved 1 snapshot,/);
  await good('rmi', 'base-1', 'late');
  assert.is((await run('promote', BASE_TAG, '--as', BASE_TAG)).code, 2);
});

verbs('workspace create, suspend, resume, list, delete', async () => {
  assert.is(await good('workspace', 'list'), '(no workspaces)\n');
  const made = await good('workspace', 'create', 'w', '--snapshot', BASE_TAG);
  assert.match(made, /^w {24}running {4}source=base state=- live=sb-\S+\n$/);
  assert.match((await run('workspace', 'create', 'w', '--snapshot', BASE_TAG)).stderr, /^Error: HTTP 409: /);
  const live = made.trim().split('live=')[1] ?? '';
  assert.is(await good('eval', '--target', live, '--', '6 * 7'), '42\n');
  assert.match(
    await good('workspace', 'suspend', 'w', '--diff'),
    /^w {24}suspended {2}source=base state=ws-w-state live=-\n$/,
  );
  const resumed = JSON.parse(await good('workspace', 'resume', 'w', '--json')) as WorkspaceBody;
  assert.is(resumed.status, 'running');
  assert.equal(
    JSON.parse(await good('workspace', 'list', '--json')).map(({ name }: WorkspaceBody) => name),
    ['w'],
  );
  assert.is(await good('workspace', 'delete', 'w'), '✓ w\n');
  assert.match((await run('workspace', 'delete', 'w')).stderr, /^Error: HTTP 404: /);
});

verbs('bench times each step, falls back where there are no namespaces, and leaves nothing', async () => {
  const { code, stdout, stderr } = await run('bench', '--n', '2');
  assert.is(code, 0, stderr);
  for (const label of ['spawn 1', 'exec', 'branch', 'spawn 2', 'kill 3', 'total'])
    assert.match(stdout, new RegExp(`^${label} +\\d[\\d.]* (ms|s) `, 'm'));
  const { tag, rows } = JSON.parse(
    await good('bench', '--tag', BASE_TAG, '-n', '1', '--per-child-netns', 'false', '--json'),
  );
  assert.equal([tag, rows.length], [BASE_TAG, 6]);
  assert.match((await run('ls')).stderr, 'no live sandboxes');
  const left: SnapshotBody[] = JSON.parse(await good('images', '--json'));
  assert.equal(
    left.map((one) => one.tag),
    [BASE_TAG],
  );
});

verbs('without a daemon: the disk where that will do, else one error', async () => {
  assert.is(await daemon.stop(), 0);
  for (const args of [['ls'], ['spawn', '--tag', BASE_TAG], ['snapshot', '--from-sandbox', 'sb-0-0000']]) {
    const { code, stdout, stderr } = await run(...args, '--daemon-url', 'unix:/nowhere.sock');
    assert.equal([code, stdout], [1, ''], stderr);
    assert.match(stderr, /^Error: no daemon answers at unix:\/nowhere.sock/);
  }
  assert.match(await good('snapshot-info', BASE_TAG), 'chain depth');
  assert.is(await good('rmi', BASE_TAG), `✓ ${BASE_TAG}  (disk)\n`);
  rmSync(daemon.socketPath, { force: true });
});

verbs('mistakes end with 2', async () => {
  for (const args of [
    ['spawn'],
    ['spawn', '--tag', 'x', '-n', '0'],
    ['spawn', '--tag', 'x', '--hugepages'],
    ['ls', '--daemon-url', 'nonsense'],
    ['kill'],
    ['kill', '../x'],
    ['workspace', 'nothing'],
    ['workspace', 'create', 'x'],
    ['workspace', 'resume'],
    ['workspace', 'list', 'x'],
    ['bench', '--n', '0'],
    ['bench', '--per-child-netns', 'maybe'],
    ['kill', '--all', '--tag', 'x'],
    ['snapshot', '--tag', 'x', '--no-wait'],
    ['snapshot', '--from-sandbox', 'sb-0-0000', '--no-wait'],
    ['snapshot', '--from-sandbox', 'sb-0-0000', '--live', '--diff'],
  ])
    assert.is((await run(...args)).code, 2, args.join(' '));
});

verbs.run();
