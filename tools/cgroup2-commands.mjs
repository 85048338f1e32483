/**
 * Part of tools/cgroup2-inside.mjs: the commands that have to do with groups, as a user gives them, with VMs inside the VM. `--strict`, `cleanup` after a
 * kill -9, and a daemon whose sandbox is limited while it runs.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { forkd, jsonLines, startCli } from '../dist/test/support/cli.js';
import { check, soon } from './cgroup2-tally.mjs';

const GROUPS = '/sys/fs/cgroup/forkd';
/** Everything takes ten times as long here. */
const SLOW = { timeoutMs: 300_000 };
const LIMITS = ['--cpus', '0.9', '--memory-limit-mib', '400', '--io-mib-per-s', '50', '--pids', '200'];

const text = (path) => readFileSync(path, 'utf8').trim();
const groups = () => (existsSync(GROUPS) ? readdirSync(GROUPS).filter((name) => name.startsWith('sb-')) : []);
const setting = (name, file) => text(join(GROUPS, name, file));
const done = async (...args) => {
  const ended = await forkd(args, SLOW);
  assert.equal(ended.code, 0, `${args.join(' ')}: ${ended.stderr}`);
  return ended;
};
const leftGroups = async (...args) => {
  const { items } = JSON.parse((await done('cleanup', '--json', ...args)).stdout);
  return items.filter(({ kind }) => kind === 'cgroup').map(({ action, path }) => `${action} ${path}`);
};

export const commands = async (tag) => {
  const killed = startCli(['fork', '--tag', tag, '-n', '1', '--strict', ...LIMITS, '--settle-secs', '600'], SLOW);
  let path;
  await check('fork --strict: nothing is refused, and the VM is in a group with all four limits', async () => {
    await killed.says('child 1');
    const [name, ...others] = groups();
    assert.deepEqual(others, []);
    path = join(GROUPS, name);
    assert.equal(setting(name, 'cpu.max'), '90000 100000');
    assert.equal(setting(name, 'memory.max'), String(400 * 2 ** 20));
    assert.match(setting(name, 'io.max'), /rbps=52428800 wbps=52428800/);
    assert.equal(setting(name, 'pids.max'), '200');
    const members = setting(name, 'cgroup.procs').split('\n');
    assert.equal(members.length, 1);
    assert.match(text(`/proc/${members[0]}/comm`), /^qemu-system/);
    assert.equal(text(`/proc/${members[0]}/cgroup`), `0::/forkd/${name}`);
  });
  await check('cleanup: a group in use is not listed; after kill -9 it is, and --yes removes it', async () => {
    assert.deepEqual(await leftGroups(), []);
    killed.kill('SIGKILL');
    await killed.ended;
    await soon('the VM lives on', () => text(join(path, 'cgroup.events')).includes('populated 0'));
    assert.deepEqual(await leftGroups(), [`del ${path}`]);
    assert.ok(existsSync(path), 'a dry run removes nothing');
    assert.deepEqual(await leftGroups('--yes'), [`del ${path}`]);
    assert.ok(!existsSync(path));
    assert.deepEqual(await leftGroups(), []);
  });

  await check('fork with limits, forked from a template: hello of both', async () => {
    const limits = ['--cpus', '0.5', '--memory-limit-mib', '400'];
    const { stdout } = await done('fork', '--tag', tag, '-n', '2', ...limits, '--', 'echo', 'hello');
    assert.equal(stdout.split('\n').sort().join('\n').trim(), '[1] hello\n[2] hello');
    assert.deepEqual(groups(), []);
  });

  const daemon = startCli(['daemon', '--bind', '127.0.0.1:0'], { timeoutMs: 600_000 });
  try {
    await daemon.says('listening on port');
    await ofDaemon(tag);
  } finally {
    daemon.kill('SIGTERM');
  }
  await check('SIGTERM to the daemon: no group is left', async () => {
    assert.equal((await daemon.ended).code, 0);
    assert.deepEqual(groups(), []);
  });
};

const ofDaemon = async (tag) => {
  let id;
  const limit = async (...args) => jsonLines(await done('limit', id, '--json', ...args))[0];
  await check('spawn: the sandbox of a daemon has a group, without limits but for processes', async () => {
    id = JSON.parse((await done('spawn', '--tag', tag, '--json')).stdout)[0].id;
    await soon('it has not joined its group', () => existsSync(join(GROUPS, id)) && setting(id, 'pids.max') === '256');
    assert.equal(setting(id, 'memory.max'), 'max');
  });
  if (id === undefined) return;
  await check('limit: all four are set while it runs, in its group, and are what the command shows', async () => {
    const wanted = { cpus: 0.2, memory_limit_mib: 400, io_mib_per_s: 20, pids: 100 };
    const args = ['--cpus', '0.2', '--memory-limit-mib', '400', '--io-mib-per-s', '20', '--pids', '100'];
    assert.deepEqual((await limit(...args)).limits, wanted);
    assert.equal(setting(id, 'cpu.max'), '20000 100000');
    assert.equal(setting(id, 'memory.max'), String(400 * 2 ** 20));
    assert.match(setting(id, 'io.max'), /rbps=20971520 wbps=20971520/);
    assert.equal(setting(id, 'pids.max'), '100');
    assert.match((await done('limit', id)).stdout, /^cpus: +0\.2\nmemory_limit_mib: +400\n/);
  });
  await check('limit: a sandbox that computes waits, and the command tells how often', async () => {
    const busy = ['sh', '-c', 'i=0; while [ $i -lt 50 ]; do i=$((i+1)); done; echo $i'];
    assert.equal((await done('exec', '--target', id, '--timeout-secs', '200', '--', ...busy)).stdout, '50\n');
    const { usage } = await limit();
    assert.ok(usage.cpu_throttled_periods > 0 && usage.cpu_throttled_ms > 0, JSON.stringify(usage));
    for (const key of ['cpu_ms', 'memory_bytes', 'pids']) assert.ok(usage[key] > 0, `${key} ${usage[key]}`);
  });
  await check('limit ... none lifts them', async () => {
    const lifted = ['--cpus', 'none', '--memory-limit-mib', 'none', '--io-mib-per-s', 'none', '--pids', 'none'];
    const { limits } = await limit(...lifted);
    assert.deepEqual([...new Set(Object.values(limits))], [null]);
    assert.match(setting(id, 'cpu.max'), /^max /);
    assert.equal(setting(id, 'memory.max'), 'max');
    assert.equal(setting(id, 'io.max'), '');
    assert.equal(setting(id, 'pids.max'), 'max');
  });
  await check('limit: what exceeds its memory is ended, and the limit is named', async () => {
    await limit('--memory-limit-mib', '64');
    const bomb = 'x = bytearray(150 * 2**20)\nfor i in range(0, len(x), 4096): x[i] = 1';
    const ended = await forkd(['eval', '--target', id, '--', bomb], SLOW);
    assert.notEqual(ended.code, 0);
    assert.match(ended.stderr, /memory, 64 MiB/);
    await soon('its group is still there', () => !existsSync(join(GROUPS, id)));
  });
};
