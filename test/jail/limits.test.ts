/** Limits of real children: set at birth, changed while they run, and what exceeds them is held and named. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller as Client } from '../../src/client/index.js';
import { ForkdError } from '../../src/contract/errors.js';
import type { HeldKind } from '../../src/contract/held.js';
import type { SnapshotManifest } from '../../src/contract/snapshot.js';
import { Engine } from '../../src/main/engine.js';
import { type Controller, hierarchies } from '../../src/main/host/cgroup/hierarchy.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { CLI, type CliOptions, forkd, type Running, start } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld } from '../support/world.js';

const world = makeWorld(true);
process.env['XDG_DATA_HOME'] = world.env.XDG_DATA_HOME;
/** On a disk, which a directory for temporary files need not be. */
const diskDir = mkdtempSync('/var/tmp/forkd-test-');

/**
 * A root disk that nobody else reads, and without holes: whatever is read of it comes from the disk. Of the one that all VMs share
 * their guests read what they like, and a hole is on no disk.
 */
const ownDisk = (): void => {
  const file = join(world.snapshots, BASE_TAG, 'snapshot.json');
  const manifest = JSON.parse(readFileSync(file, 'utf8')) as SnapshotManifest;
  const rootfs = join(diskDir, 'rootfs.ext4');
  execFileSync('cp', ['--sparse=never', '--reflink=never', '--preserve=timestamps', manifest.rootfs, rootfs]);
  // What is not written yet cannot be dropped from memory.
  execFileSync('sync', [rootfs]);
  const rootfs_digest = { ...manifest.rootfs_digest, path: rootfs };
  writeFileSync(file, JSON.stringify({ ...manifest, rootfs, rootfs_digest }));
};

const limits = suite<{ engine: Engine }>('limits of children');

limits.before((context) => {
  ownDisk();
  context.engine = new Engine({ resident: true });
});
limits.after(async ({ engine }) => {
  await engine.close();
  world.close();
  rmSync(diskDir, { recursive: true });
});

/** A file of the child's group, in the words of v1 or of v2. */
const fileOf = ({ birth }: Sandbox, controller: Controller, v1: string, v2: string): string => {
  const found = hierarchies()[controller];
  return join(found?.root ?? '', 'forkd', birth.cgroup?.name ?? '', found?.version === 1 ? v1 : v2);
};
const read = (path: string): string => readFileSync(path, 'utf8').trim();
const MIB = 2 ** 20;
const CPU = ['cpu', 'cpu.cfs_quota_us', 'cpu.max'] as const;
const MEMORY = ['memory', 'memory.limit_in_bytes', 'memory.max'] as const;
const PIDS = ['pids', 'pids.max', 'pids.max'] as const;

const holds = (child: Sandbox, kind: HeldKind): boolean => child.held().some((each) => each.kind === kind);

const one = async (engine: Engine, more: object = {}): Promise<Sandbox> =>
  (await engine.fork({ tag: BASE_TAG, n: 1, ...more })).sandboxes[0] as Sandbox;

limits('every child is in a group of its own, which goes with it', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
  for (const child of sandboxes) {
    await child.joined;
    assert.ok(
      read(fileOf(child, 'pids', 'cgroup.procs', 'cgroup.procs'))
        .split('\n')
        .includes(String(child.vmm.pid)),
    );
    assert.is(read(fileOf(child, ...PIDS)), '256');
  }
  const groups = sandboxes.map((child) => fileOf(child, 'memory', '', ''));
  assert.is(new Set(groups).size, 2);
  await engine.kill(sandboxes);
  assert.equal(groups.map(existsSync), [false, false]);
});

limits('set at birth, all of them; a cold restore too', async ({ engine }) => {
  for (const cold of [false, true]) {
    const child = await one(engine, { cpus: 0.5, memoryLimitMib: 600, pids: 128, ioMibPerS: 10, cold });
    assert.match(read(fileOf(child, ...CPU)), /^50000( 100000)?$/);
    assert.is(Number(read(fileOf(child, ...MEMORY))), 600 * 2 ** 20);
    assert.is(read(fileOf(child, ...PIDS)), '128');
    assert.match(read(fileOf(child, 'io', 'blkio.throttle.read_bps_device', 'io.max')), /10485760/);
    for (const controller of ['cpu', 'memory', 'io', 'pids'] as const)
      assert.is(read(fileOf(child, controller, 'cgroup.procs', 'cgroup.procs')), String(child.vmm.pid));
    await engine.kill([child]);
  }
});

limits(
  'changed while it runs: a child that computes is throttled from then on, which is counted',
  async ({ engine }) => {
    const child = await one(engine);
    await engine.limit(child.id, { cpus: 0.1 });
    await engine.exec(child.id, ['sh', '-c', 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'], 60);
    const { cpu_throttled_periods: periods, cpu_throttled_ms: ms } = await child.usage();
    assert.ok((periods ?? 0) > 0 && (ms ?? 0) > 0, `${periods} ${ms}`);
    assert.ok(holds(child, 'cpu-limit'), 'it is named');
    await engine.limit(child.id, { cpus: null, memoryMib: 700 });
    assert.is(Number(read(fileOf(child, ...MEMORY))), 700 * 2 ** 20);
    assert.ok(read(fileOf(child, 'memory', 'cgroup.procs', 'cgroup.procs')).includes(String(child.vmm.pid)));
    assert.match(read(fileOf(child, ...CPU)), /^(-1|max 100000)$/);
    assert.equal(child.info().limits, { cpus: null, memory_limit_mib: 700, io_mib_per_s: null, pids: null });
    await engine.kill([child]);
  },
);

/** Reads `mib` of the disk, as `at` many at once, each elsewhere; nobody has it in memory. */
const readDisk = async (engine: Engine, child: Sandbox, mib: number, at = 1): Promise<number> => {
  execFileSync('dd', [`if=${child.birth.snapshot?.rootfs}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' });
  const script = `for i in $(seq 0 ${at - 1}); do
    dd if=/dev/vda of=/dev/null bs=1M skip=$((i * ${3 * mib})) count=${mib} iflag=direct & done; wait`;
  return (await engine.exec(child.id, ['sh', '-c', script], 60)).exit_code;
};

limits(
  'io, changed while it runs: a child that reads waits from then on, which is counted and named',
  async ({ engine }) => {
    const child = await one(engine);
    assert.is((await child.usage()).io_read_bytes, null);
    await engine.limit(child.id, { ioMibPerS: 1 });
    const began = performance.now();
    const named = eventually(() => holds(child, 'io-limit'), 60_000);
    // Its rate is looked at now and then: on a busy host that can be too seldom while it reads once.
    let mib = 0;
    do {
      assert.is(await readDisk(engine, child, 3), 0);
      mib += 3;
    } while (!holds(child, 'io-limit') && performance.now() - began < 60_000);
    assert.ok(await named);
    // At least: the kernel reads ahead.
    const { io_read_bytes: bytes } = await child.usage();
    assert.ok((bytes ?? 0) >= mib * MIB, `${bytes} of ${mib} MiB`);
    assert.ok(performance.now() - began > mib * 500, 'it was held to its rate');
    await engine.limit(child.id, { ioMibPerS: null });
    assert.not.match(read(fileOf(child, 'io', 'blkio.throttle.read_bps_device', 'io.max')), / (rbps=)?1048576/);
    await engine.kill([child]);
  },
);

limits(
  'pids, changed while it runs: QEMU cannot have a thread that it needs, and the limit is named',
  async ({ engine }) => {
    const child = await one(engine);
    await child.joined;
    // Less than commands accept: a guest cannot make QEMU need so many. Reads that wait need a thread each, and so many wait at once,
    // however slowly they are begun: a second each at this rate.
    await engine.limit(child.id, { pids: (await child.usage()).pids ?? 0, ioMibPerS: 1 });
    const failure = await readDisk(engine, child, 1, 32).catch((error: unknown) => ForkdError.from(error));
    assert.instance(failure, ForkdError, `${failure}`);
    assert.ok(await eventually(() => child.state === 'dead'));
    const { code, message } = failure as ForkdError;
    assert.equal(
      [code, /processes and threads, \d+/.test(message), holds(child, 'pids-limit')],
      ['LIMIT_EXCEEDED', true, true],
    );
  },
);

limits('memory, changed while it runs: the limit is named', async ({ engine }) => {
  const child = await one(engine);
  await engine.limit(child.id, { memoryMib: 48 });
  const code = 'x = bytearray(300 * 2**20)\nfor i in range(0, len(x), 4096): x[i] = 1';
  const failure = await engine.eval(child.id, code, 60_000).catch((error: unknown) => ForkdError.from(error));
  await child.ended;
  assert.match((failure as ForkdError).message, /memory, 48 MiB/);
  assert.ok(holds(child, 'memory-limit'));
});

limits('a memory bomb: it alone ends, and the limit is named', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2, memoryLimitMib: 64 });
  const [bomb, other] = sandboxes as [Sandbox, Sandbox];
  const held = setInterval(() => undefined, 60_000);
  const code = 'x = bytearray(300 * 2**20)\nfor i in range(0, len(x), 4096): x[i] = 1';
  const waiting = engine.exec(bomb.id, ['sleep', '60'], 60).then(
    () => undefined,
    (error: unknown) => ForkdError.from(error),
  );
  await engine.publish([bomb]);
  const told = await forkd(['eval', '--target', bomb.id, '--', code]);
  const failure = await waiting;
  await bomb.ended;
  clearInterval(held);
  assert.match(told.stderr, /memory, 64 MiB/, 'who asks by its socket is told too');
  assert.is(failure?.code, 'LIMIT_EXCEEDED', failure?.message);
  assert.match(failure?.message ?? '', /memory, 64 MiB/);
  assert.is((await engine.eval(other.id, '6 * 7')).result, '42');
  await engine.kill([other]);
});

limits('--strict runs where all can be enforced, and refuses by name where it cannot', async () => {
  const args = [CLI, 'fork', '--tag', BASE_TAG, '-n', '1', '--strict', '--', 'true'];
  const whole = await start(process.execPath, args).ended;
  assert.is(whole.code, 0, whole.stderr);
  const weaker = ['--bounding-set', '-sys_admin', process.execPath, ...args];
  const refused = await start('setpriv', weaker).ended;
  assert.is(refused.code, 1);
  assert.match(refused.stderr, /strict: this host cannot enforce jail namespaces \(needs CAP_SYS_ADMIN,/);
  // Without --strict, what can be enforced is.
  const lax = await start(
    'setpriv',
    weaker.filter((word) => word !== '--strict'),
  ).ended;
  assert.is(lax.code, 0, lax.stderr);
});

limits('a daemon with --strict, and a spawn that asks any daemon for it, refuse by name as well', async () => {
  for (const isStrict of [true, false]) {
    const world = makeWorld(true);
    const log = ['--audit-log', join(world.root, 'audit.log')];
    const socket = join(world.root, 'd.sock');
    const serve = ['daemon', '--bind', '127.0.0.1:0', '--socket', socket, ...log, ...(isStrict ? ['--strict'] : [])];
    const weaker = ['--bounding-set', '-sys_admin', process.execPath, CLI, ...serve];
    const daemon = start('setpriv', weaker, { env: world.env });
    await daemon.says('listening on port');
    const controller = new Client({ baseUrl: `unix:${socket}`, timeoutMs: 100_000 });
    try {
      const spawned = (strict: boolean) =>
        controller.spawnSandboxes({ snapshotTag: BASE_TAG, strict }).then(
          (made) => `${made.length} made`,
          ({ message }: Error) => message,
        );
      assert.match(await spawned(true), /strict: this host cannot enforce jail namespaces \(needs CAP_SYS_ADMIN,/);
      assert.match(await spawned(false), isStrict ? /strict: this host cannot enforce/ : /^1 made$/);
    } finally {
      await controller.close();
      daemon.kill('SIGTERM');
      assert.is((await daemon.ended).code, 0);
      world.close();
    }
  }
});

/** In a user namespace of its own, with no more mount namespaces to be had: what it may do says yes, the kernel says no. */
const forbidden = (args: string[], options: CliOptions = {}): Running => {
  const script = 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$0" "$@"';
  return start('unshare', ['--user', '--map-root-user', 'sh', '-c', script, process.execPath, CLI, ...args], options);
};

limits('where the jail is forbidden, what is left is said; --strict refuses', async () => {
  const inside = (...args: string[]) => forbidden(['fork', '--tag', BASE_TAG, ...args]).ended;
  for (const more of [[], ['--cold']]) {
    const lax = await inside('-n', '2', ...more, '--', 'echo', 'ran');
    assert.is(lax.code, 0, lax.stderr);
    assert.match(lax.stderr, /VMs run in no jail but a filter of system calls: .*unshare/);
    assert.is(lax.stdout.match(/ran/g)?.length, 2);
  }
  const strict = await inside('-n', '2', '--strict', '--', 'true');
  assert.is(strict.code, 1);
  assert.match(strict.stderr, /strict: this host cannot enforce/);
});

limits('a daemon says so too, whatever its first VM was for', async () => {
  const world = makeWorld();
  const [socket, kernel] = [join(world.root, 'd.sock'), join(world.root, 'no-kernel')];
  writeFileSync(kernel, 'no kernel');
  const log = ['--audit-log', join(world.root, 'audit.log')];
  const daemon = forbidden(['daemon', '--bind', '127.0.0.1:0', '--socket', socket, ...log], { env: world.env });
  await daemon.says('listening on port');
  const controller = new Client({ baseUrl: `unix:${socket}`, timeoutMs: 100_000 });
  // Its parent is started, and then it boots nothing.
  const made = controller.createSnapshot({ tag: 'none', kernel, initrd: kernel, rootfs: kernel });
  assert.is(
    await made.then(
      () => 0,
      (error: { status: number }) => error.status,
    ),
    500,
  );
  await daemon.says(/VMs run in no jail but a filter of system calls: .*unshare/);
  await controller.close();
  daemon.kill('SIGTERM');
  assert.is((await daemon.ended).code, 0);
  world.close();
});

limits('what is no limit is refused, and nothing is forked', async ({ engine }) => {
  const before = engine.sandboxes.length;
  for (const wrong of [{ cpus: 0 }, { pids: 2 }, { memoryLimitMib: 1.5 }, { ioMibPerS: -1 }]) {
    const refused = await one(engine, wrong).then(
      () => undefined,
      (error: unknown) => ForkdError.from(error).code,
    );
    assert.is(refused, 'REQUEST_REFUSED');
  }
  assert.is(engine.sandboxes.length, before);
});

limits.run();
