/** What goes wrong while a parent is booted and saved. Each fault gives one clear error and leaves nothing. */
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statfsSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { type Ended, forkd, startCli } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, sharedData, type World } from '../support/world.js';

const faults = suite<{ world: World }>('snapshot faults');

faults.before.each((context) => {
  context.world = makeWorld();
  // What was learnt about the host (does KVM work?) spares each test the question.
  const known = join(sharedData(), 'forkd/host.json');
  if (existsSync(known)) cpSync(known, join(context.world.env.XDG_DATA_HOME, 'forkd/host.json'));
});
faults.after.each(({ world }) => world.close());

const tags = ({ snapshots }: World): string[] => readdirSync(snapshots).filter((name) => name !== '.locks');

const failed = (ended: Ended, world: World, text: RegExp): void => {
  assert.is(ended.code, 1, ended.stderr);
  assert.match(ended.stderr, text);
  assert.match(ended.stderr, /^Hint: /m);
  assert.is((ended.stderr.match(/^Error: /gm) ?? []).length, 1);
  assert.equal(readdirSync(world.env.TMPDIR), []);
  assert.equal(tags(world), []);
  assert.equal(qemusOf(world.root), []);
};

const snapshot = (world: World, ...more: string[]): Promise<Ended> =>
  forkd(['snapshot', '--tag', 'x', ...more], { env: world.env });

faults('no QEMU', async ({ world }) => {
  const bin = join(world.root, 'bin');
  mkdirSync(bin);
  const ended = await forkd(['snapshot', '--tag', 'x'], { env: { ...world.env, PATH: bin } });
  failed(ended, world, /qemu-system-x86_64 is not installed/);
});

faults('a QEMU that is not one', async ({ world }) => {
  const bin = join(world.root, 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'qemu-system-x86_64'), '#!/bin/sh\necho nonsense\n', { mode: 0o755 });
  const ended = await forkd(['snapshot', '--tag', 'x'], {
    env: { ...world.env, PATH: `${bin}:${process.env['PATH']}` },
  });
  failed(ended, world, /cannot read the version/);
});

faults('bad input', async ({ world }) => {
  failed(await snapshot(world, '--kernel', '/nowhere/vmlinuz'), world, /kernel '\/nowhere\/vmlinuz' does not exist/);
  failed(await snapshot(world, '--volume', 'a:b:c:d'), world, /too many parts/);
  failed(await snapshot(world, '--volume', '/nowhere:/data'), world, /file \/nowhere does not exist/);
  for (const args of [
    ['--mem-size-mib', '1'],
    ['--vcpus', '0'],
    ['--require', 'vmx'],
    ['--boot-wait-secs', 'soon'],
    ['--diff'],
  ]) {
    const ended = await snapshot(world, ...args);
    assert.is(ended.code, 2, `${args}: ${ended.stderr}`);
    assert.match(ended.stderr, new RegExp(args[0] as string));
  }
  const badTag = await forkd(['snapshot', '--tag', '../x'], { env: world.env });
  failed(badTag, world, /invalid tag '\.\.\/x'/);
});

faults('a root file system that is none: the guest’s own words are shown', async ({ world }) => {
  const rootfs = join(world.root, 'rootfs.ext4');
  writeFileSync(rootfs, '');
  truncateSync(rootfs, 2 ** 20);
  const ended = await snapshot(world, '--require', 'tcg', '--rootfs', rootfs);
  failed(ended, world, /QEMU ended[\s\S]*its last lines:[\s\S]*cannot mount \/dev\/vda/);
});

faults('a guest kernel that panics while it boots: what it said is shown', async ({ world }) => {
  const initrd = join(world.root, 'initrd');
  writeFileSync(initrd, '');
  const ended = await snapshot(world, '--require', 'tcg', '--initrd', initrd);
  failed(ended, world, /guest kernel panicked: VFS: Unable to mount root fs/);
});

faults('a guest that never answers', async ({ world }) => {
  const ended = await snapshot(world, '--require', 'tcg', '--boot-wait-secs', '1');
  failed(ended, world, /did not answer within 1 s; its VM ran for \d+\.\d s of that, and waited/);
});

faults('a parent that stands still once it has answered: when, and that it did nothing', async ({ world }) => {
  const running = startCli(['snapshot', '--tag', 'x', '--require', 'tcg'], { env: world.env });
  await running.says('agent answered');
  process.kill(qemusOf(world.root)[0] as number, 'SIGSTOP');
  const expected =
    /did not for \d+ s when it was to (take|set|eval|run|seal).*; its VM ran for \d+\.\d s of that.*last lines:\n.*ready after/s;
  failed(await running.ended, world, expected);
});

faults('QEMU dies during the boot', async ({ world }) => {
  const running = startCli(['snapshot', '--tag', 'x', '--require', 'tcg'], { env: world.env });
  await running.says('booting the parent');
  assert.ok(await eventually(() => qemusOf(world.root).length === 1, 60_000));
  process.kill(qemusOf(world.root)[0] as number, 'SIGKILL');
  failed(await running.ended, world, /QEMU ended/);
});

faults('interrupted, and killed, while it boots', async ({ world }) => {
  const interrupted = startCli(['snapshot', '--tag', 'x', '--require', 'tcg'], { env: world.env });
  await interrupted.says('booting the parent');
  interrupted.kill('SIGINT');
  assert.is((await interrupted.ended).code, 130);
  assert.equal([readdirSync(world.env.TMPDIR), tags(world), qemusOf(world.root)], [[], [], []]);

  const killed = startCli(['snapshot', '--tag', 'x', '--require', 'tcg'], { env: world.env });
  await killed.says('booting the parent');
  assert.ok(await eventually(() => qemusOf(world.root).length === 1, 60_000));
  killed.kill('SIGKILL');
  await killed.ended;
  assert.ok(await eventually(() => qemusOf(world.root).length === 0), 'orphans');
  assert.is((await forkd(['cleanup', '--yes'], { env: world.env })).code, 0);
  assert.equal([readdirSync(world.env.TMPDIR), tags(world)], [[], []]);
});

faults('no space', async ({ world }) => {
  const small = join(world.root, 'small');
  mkdirSync(small);
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', small]);
  if (mounted.status !== 0) return;
  try {
    const ended = await forkd(['snapshot', '--tag', 'x', '--require', 'tcg'], {
      env: { ...world.env, XDG_DATA_HOME: small },
    });
    assert.is(ended.code, 1);
    assert.match(ended.stderr, /no space left in .*small/);
    assert.match(ended.stderr, /forkd rmi/);
  } finally {
    spawnSync('umount', [small]);
  }
});

faults('space that runs out while memory is written', async ({ world }) => {
  const small = join(world.root, 'small');
  mkdirSync(small);
  // Enough to begin with: 128 MiB of guest memory, device state and the reserve.
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=400m', 'tmpfs', small]);
  if (mounted.status !== 0) return;
  try {
    const store = join(small, 'forkd/snapshots');
    mkdirSync(store, { recursive: true });
    const known = join(world.env.XDG_DATA_HOME, 'forkd/host.json');
    if (existsSync(known)) cpSync(known, join(small, 'forkd/host.json'));
    cpSync(join(sharedData(), 'forkd/snapshots', BASE_TAG), join(store, 'old'), { recursive: true });
    const before = readFileSync(join(store, 'old/snapshot.json'), 'utf8');
    const args = ['snapshot', '--tag', 'x', '--require', 'tcg', '--mem-size-mib', '192'];
    const run = startCli(args, { env: { ...world.env, XDG_DATA_HOME: small } });
    await run.says('booting the parent');
    // All but 8 MiB goes to somebody else while the parent boots.
    const { bavail, bsize } = statfsSync(small);
    writeFileSync(join(small, 'ballast'), Buffer.alloc(bavail * bsize - 8 * 1024 * 1024));
    const ended = await run.ended;
    assert.is(ended.code, 1, ended.stderr);
    assert.match(ended.stderr, /no space left/);
    assert.match(ended.stderr, /^Hint: /m);
    assert.equal(
      readdirSync(store).filter((name) => name !== '.locks'),
      ['old'],
    );
    assert.is(readFileSync(join(store, 'old/snapshot.json'), 'utf8'), before);
    assert.equal(readdirSync(world.env.TMPDIR), []);
    assert.equal(qemusOf(world.root), []);
  } finally {
    spawnSync('umount', [small]);
  }
});

faults('two snapshots of one tag at once: one makes it, the other is told', async ({ world }) => {
  const both = await Promise.all([snapshot(world, '--require', 'tcg'), snapshot(world, '--require', 'tcg')]);
  const codes = both.map((e) => e.code).sort();
  assert.equal(codes, [0, 1], both.map((e) => e.stderr).join('\n'));
  assert.match(
    both.find((e) => e.code === 1)?.stderr ?? '',
    /is being written or removed by another forkd|already exists/,
  );
  assert.equal(tags(world), ['x']);
  const again = await snapshot(world);
  assert.is(again.code, 1);
  assert.match(again.stderr, /'x' already exists[\s\S]*--force/);
  assert.equal(readdirSync(world.env.TMPDIR), []);
});

faults('an unknown, a damaged and a foreign tag cannot be forked', async ({ world }) => {
  const fork = (tag: string, n = '1') => forkd(['fork', '--tag', tag, '-n', n], { env: world.env });
  failed(await fork('nope'), world, /snapshot 'nope' not found/);
  const copy = join(world.snapshots, 'copy');
  cpSync(join(sharedData(), 'forkd/snapshots', BASE_TAG), copy, { recursive: true });
  const told = async (text: RegExp) => {
    const ended = await fork('copy');
    assert.is(ended.code, 1, ended.stderr);
    assert.match(ended.stderr, text);
    assert.equal([readdirSync(world.env.TMPDIR), qemusOf(world.root)], [[], []]);
  };
  for (const n of ['0', '4001', 'many']) {
    const { code, stderr } = await fork('copy', n);
    assert.is(code, 2, stderr);
    assert.match(
      stderr,
      n === 'many' ? /'many' is not a whole number/ : `cannot fork ${n} children: the count must be between 1 and 4000`,
    );
  }
  const json = join(copy, 'snapshot.json');
  const good = readFileSync(json, 'utf8');
  writeFileSync(json, good.replace(/"version": "\d+/, '"version": "99'));
  await told(/does not fit this host: it was saved by QEMU 99/);
  writeFileSync(json, good.replace(/("rootfs": ")[^"]+/, '$1/nowhere/rootfs.ext4'));
  await told(/root file system \/nowhere\/rootfs\.ext4 is missing/);
  writeFileSync(json, '{');
  await told(/'copy' is damaged/);
  writeFileSync(json, good);
  truncateSync(join(copy, 'memory.layer'), 1_000_000);
  await told(/'copy' is damaged: .*memory\.layer: .*truncated/);
  unlinkSync(join(copy, 'memory.layer'));
  await told(/'copy' is damaged: .*memory\.layer is missing/);
  truncateSync(join(copy, 'vmstate'), 100);
  await told(/damaged/);
});

faults('device state that does not load is a failure of each child, said once', async ({ world }) => {
  const copy = join(world.snapshots, 'copy');
  cpSync(join(sharedData(), 'forkd/snapshots', BASE_TAG), copy, { recursive: true });
  const { length } = readFileSync(join(copy, 'vmstate'));
  writeFileSync(join(copy, 'vmstate'), Buffer.alloc(length, 0xaa));
  const ended = await forkd(['fork', '--tag', 'copy', '-n', '3'], { env: world.env });
  assert.is(ended.code, 1);
  assert.match(ended.stderr, /^Error: /m);
  assert.equal([readdirSync(world.env.TMPDIR), qemusOf(world.root)], [[], []]);
});

faults.run();
