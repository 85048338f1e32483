/**
 * What tools/cgroup2-vm.mjs runs inside its VM, as root, where cgroup v2 has all controllers: groups and what exceeds them, with real processes; groups of a
 * process that was given only a part of the tree; then the commands, of VMs inside the VM (cgroup2-commands.mjs).
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chownSync, closeSync, existsSync, mkdirSync, openSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Cgroup } from '../dist/src/main/host/cgroup/cgroup.js';
import { cgroupProblem, CONTROLLERS, hierarchies } from '../dist/src/main/host/cgroup/hierarchy.js';
import { emptyCgroups } from '../dist/src/main/host/cgroup/leftovers.js';
import { removeCgroup } from '../dist/src/main/host/cgroup/removal.js';
import { native } from '../dist/src/native/binding.js';
import { forkd } from '../dist/test/support/cli.js';
import { commands } from './cgroup2-commands.mjs';
import { check, count, soon } from './cgroup2-tally.mjs';

const MOUNT = '/sys/fs/cgroup';
const [tag, part] = process.argv.slice(2);
const text = (path) => readFileSync(path, 'utf8').trim();

/** A process that is born in the group. Not reaped by anybody else. */
const born = (cgroup, script) => {
  const nothing = openSync('/dev/null', 'r+');
  const cgroups = (cgroup?.procs ?? []).map((path) => openSync(path, 'w'));
  const { pid, pidfd } = native.spawn({
    file: '/bin/sh',
    args: ['sh', '-c', script],
    env: ['PATH=/usr/bin:/bin'],
    fds: [
      [nothing, 0],
      [nothing, 1],
      [nothing, 2],
    ],
    cgroups,
    dieWithParent: true,
  });
  for (const fd of [nothing, ...cgroups]) closeSync(fd);
  const ended = new Promise((done, fail) => {
    const late = setTimeout(() => fail(new Error(`'${script}' did not end`)), 60_000);
    native.pidfdWatch(pidfd, (status) => {
      clearTimeout(late);
      done(status);
    });
  });
  return {
    pid,
    ended,
    kill: () => native.pidfdSignal(pidfd, 9),
  };
};

/** A group by the name that a sandbox made now would have. */
let made = 0;
const nameOf = () => `sb-${Math.floor(Date.now() / 1000).toString(16)}-${(made++).toString(16).padStart(8, '0')}`;
const HUNGRY = 'dd if=/dev/zero of=/dev/null bs=128M count=2';
const BUSY = 'while :; do :; done';
const FORKS = 'i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done; wait';

const whole = async () => {
  await check('all four controllers are those of v2', () => {
    for (const controller of CONTROLLERS) {
      assert.equal(hierarchies()[controller]?.version, 2, controller);
      assert.equal(cgroupProblem(controller), undefined);
    }
  });
  await check('set at birth: files, and the process is in it', async () => {
    const cgroup = Cgroup.create(nameOf(), { cpus: 0.5, memoryMib: 64, ioMibPerS: 10, pids: 32 }, '/start');
    const dir = join(MOUNT, 'forkd', cgroup.name);
    const { pid, kill, ended } = born(cgroup, 'exec sleep 60');
    assert.equal(text(join(dir, 'cpu.max')), '50000 100000');
    assert.equal(text(join(dir, 'memory.max')), String(64 * 2 ** 20));
    assert.match(text(join(dir, 'io.max')), /^\d+:\d+ rbps=10485760 wbps=10485760 riops=max wiops=max$/);
    assert.equal(text(join(dir, 'pids.max')), '32');
    assert.equal(text(`/proc/${pid}/cgroup`), `0::/forkd/${cgroup.name}`);
    assert.equal(text(join(dir, 'cgroup.procs')), String(pid));
    cgroup.changeRunning(pid, { cpus: 0.25, memoryMib: 96, ioMibPerS: 20, pids: 16 });
    assert.equal(text(join(dir, 'cpu.max')), '25000 100000');
    assert.equal(text(join(dir, 'memory.max')), String(96 * 2 ** 20));
    assert.match(text(join(dir, 'io.max')), /rbps=20971520 wbps=20971520/);
    assert.equal(text(join(dir, 'pids.max')), '16');
    cgroup.changeRunning(pid, { cpus: null, memoryMib: null, ioMibPerS: null, pids: null });
    assert.match(text(join(dir, 'cpu.max')), /^max /);
    assert.equal(text(join(dir, 'memory.max')), 'max');
    assert.equal(text(join(dir, 'io.max')), '');
    assert.equal(text(join(dir, 'pids.max')), 'max');
    kill();
    await ended;
    cgroup.remove();
    assert.ok(!existsSync(dir));
  });
  await check('memory: ended by the kernel, and the limit is named', async () => {
    const cgroup = Cgroup.create(nameOf(), { memoryMib: 32 });
    const { ended } = born(cgroup, `exec ${HUNGRY}`);
    assert.equal((await ended).signal, 9);
    assert.equal(cgroup.exceeded(), 'memory, 32 MiB');
    const { memory_refused: refused, memory_kills: kills } = cgroup.usage();
    assert.ok(refused > 0 && kills === 1, `${refused} ${kills}`);
    cgroup.remove();
  });
  await check('memory: the same within the limit', async () => {
    const cgroup = Cgroup.create(nameOf(), { memoryMib: 256 });
    assert.equal((await born(cgroup, `exec ${HUNGRY}`).ended).code, 0);
    assert.equal(cgroup.exceeded(), undefined);
    cgroup.remove();
  });
  await check('pids: refused, and counted; what was left in the group is ended', async () => {
    const cgroup = Cgroup.create(nameOf(), { pids: 10 });
    const { ended, kill } = born(cgroup, FORKS);
    await soon('nothing was refused', () => cgroup.usage().pids_refused > 0);
    const { pids } = cgroup.usage();
    assert.ok(pids <= 10, `${pids}`);
    kill();
    await ended;
    cgroup.remove();
    assert.ok(!existsSync(join(MOUNT, 'forkd', cgroup.name)));
  });
  await check('cpu: it waits, which is counted; set while it runs', async () => {
    const cgroup = Cgroup.create(nameOf(), {});
    const { pid, ended, kill } = born(cgroup, BUSY);
    assert.equal(cgroup.usage().cpu_throttled_periods ?? 0, 0);
    cgroup.changeRunning(pid, { cpus: 0.1 });
    await soon('it was not throttled', () => cgroup.usage().cpu_throttled_periods > 3);
    const { cpu_ms: ms, cpu_throttled_ms: throttled } = cgroup.usage();
    assert.ok(ms > 0 && throttled > 0, `${ms} ${throttled}`);
    kill();
    await ended;
    cgroup.remove();
  });
  await check('io: writes wait', async () => {
    const cgroup = Cgroup.create(nameOf(), { ioMibPerS: 2 }, '/start');
    const began = performance.now();
    assert.equal((await born(cgroup, 'exec dd if=/dev/zero of=/var/tmp/io bs=1M count=6 oflag=direct').ended).code, 0);
    const secs = (performance.now() - began) / 1000;
    assert.ok(secs > 2, `${secs} s for 6 MiB at 2 MiB/s`);
    cgroup.remove();
  });
  await check('io: a disk that is on no device is refused by name', () => {
    const name = nameOf();
    assert.throws(() => Cgroup.create(name, { ioMibPerS: 2 }, '/tmp'), {
      code: 'CGROUP_FAILED',
      message: /no block device/,
    });
    assert.ok(!existsSync(join(MOUNT, 'forkd', name)));
  });
  await check('one that joins later, by the paths of a worker', async () => {
    const cgroup = Cgroup.later(nameOf());
    const { pid, ended, kill } = born(undefined, 'exec sleep 60');
    const { join: joinTask } = await import('../dist/src/workers/tasks/join.js');
    joinTask({ groups: [cgroup.joining(pid)] });
    assert.equal(text(`/proc/${pid}/cgroup`), `0::/forkd/${cgroup.name}`);
    assert.equal(text(join(MOUNT, 'forkd', cgroup.name, 'pids.max')), '256');
    writeFileSync(cgroup.outside[0], String(pid));
    assert.equal(text(`/proc/${pid}/cgroup`), '0::/');
    kill();
    await ended;
    cgroup.remove();
  });
  await check('groups of an engine that was killed are found, and those in use are not', async () => {
    const [left, used] = [Cgroup.create(nameOf(), {}), Cgroup.create(nameOf(), {})];
    const { ended, kill } = born(used, 'exec sleep 60');
    assert.deepEqual(emptyCgroups(), [join(MOUNT, 'forkd', left.name)]);
    removeCgroup(emptyCgroups()[0]);
    kill();
    await ended;
    used.remove();
    assert.deepEqual(emptyCgroups(), []);
  });
};

/** In a group that was given to this process, which is in it. */
const given = async (base, name) => {
  await check(`${name}: groups begin at ${base}, limits hold, this process moves below`, async () => {
    for (const controller of ['cpu', 'memory', 'pids']) {
      assert.equal(hierarchies()[controller]?.root, base);
      assert.equal(cgroupProblem(controller), undefined);
    }
    const cgroup = Cgroup.create(nameOf(), { cpus: 0.5, memoryMib: 32, pids: 16 });
    assert.match(text('/proc/self/cgroup'), /\/forkd-engine$/);
    const { ended } = born(cgroup, `exec ${HUNGRY}`);
    assert.equal((await ended).signal, 9);
    assert.equal(cgroup.exceeded(), 'memory, 32 MiB');
    const { outside } = cgroup;
    assert.deepEqual(outside, [join(base, 'forkd-engine/cgroup.procs')]);
    cgroup.remove();
    assert.deepEqual(emptyCgroups(), []);
  });
  // The next engine finds the same groups from where this one has moved to.
  if (part !== 'given-again') await again(base, name);
};

const again = (base, name) =>
  check(`${name}: and for what it starts`, () => {
    const { status } = spawnSync(process.execPath, [process.argv[1], base, 'given-again', name], { stdio: 'inherit' });
    assert.equal(status, 0);
  });

/** Runs this program in a group of its own with `before` in front. */
const inGroup = (group, before, args) => {
  const dir = join(MOUNT, group);
  mkdirSync(dir);
  if (before.includes('--reuid=65534'))
    for (const name of ['.', 'cgroup.procs', 'cgroup.subtree_control', 'cgroup.threads'])
      chownSync(join(dir, name), 65534, 65534);
  const script = `echo $$ > ${dir}/cgroup.procs && exec "$@"`;
  const { status } = spawnSync('sh', ['-c', script, 'sh', ...before, process.execPath, process.argv[1], ...args], {
    stdio: 'inherit',
  });
  // Its checks count themselves, unless it came to none.
  if (status !== 0) count(false);
  for (const below of ['forkd', 'forkd-engine', '']) if (existsSync(join(dir, below))) rmdirSync(join(dir, below));
};

const refused = () =>
  check('without write access: refused by name, and said before', () => {
    assert.match(cgroupProblem('memory') ?? '', /cannot be written to \(EACCES\)/);
    assert.throws(() => Cgroup.create(nameOf(), { memoryMib: 32 }), { code: 'CGROUP_FAILED' });
    assert.equal(Cgroup.create(nameOf(), {}), undefined);
    assert.equal(Cgroup.later(nameOf()), undefined);
    const doctor = spawnSync(process.execPath, ['dist/src/cli/main.js', 'doctor'], { encoding: 'utf8' }).stdout;
    assert.match(doctor, /cgroup v2 +--memory-limit-mib is refused: .*cannot be written to \(EACCES\)/);
  });

const strictRefused = (snapshot) =>
  check('without write access: fork --strict is refused, and names all four controllers', async () => {
    const { code, stderr } = await forkd(['fork', '--tag', snapshot, '-n', '1', '--strict', '--', 'true']);
    assert.equal(code, 1);
    for (const controller of CONTROLLERS)
      assert.match(stderr, new RegExp(`cgroup ${controller} \\(.*cannot be written to \\(EACCES\\)`));
  });

if (part === 'given' || part === 'given-again') await given(tag, process.argv[4]);
else if (part === 'refused') {
  await refused();
  await strictRefused(tag);
} else {
  await whole();
  const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
  inGroup('service', nobody, [
    join(MOUNT, 'service'),
    'given',
    'a service that was given its group (systemd, Delegate=)',
  ]);
  const container = [
    'unshare',
    '--cgroup',
    '--mount',
    'sh',
    '-c',
    `umount ${MOUNT} && mount -t cgroup2 cgroup2 ${MOUNT} && exec "$@"`,
    'sh',
  ];
  inGroup('container', container, [MOUNT, 'given', 'a container']);
  inGroup(
    'others',
    nobody.map((word) => word.replace('65534', '65533')),
    [tag, 'refused'],
  );
  if (part !== 'no-vms') await commands(tag);
}
