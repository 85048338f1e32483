import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  realpathSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { startTime } from '../../src/main/host/process.js';
import { native } from '../../src/native/binding.js';
import { forkd } from '../support/cli.js';

interface Item {
  action: 'del' | 'skip' | 'fail';
  kind: string;
  path: string;
  bytes: number;
  reason?: string;
}

interface Context {
  root: string;
  temp: string;
  data: string;
  images: string;
  env: Record<string, string>;
}

const test = suite<Context>('forkd cleanup');

test.before.each((context) => {
  context.root = realpathSync(mkdtempSync(join(tmpdir(), 'cleanup-test-')));
  context.temp = join(context.root, 'tmp');
  context.data = join(context.root, 'data/forkd');
  context.images = join(context.root, 'cache/images');
  for (const dir of [context.temp, context.data, context.images]) mkdirSync(dir, { recursive: true });
  context.env = {
    HOME: context.root,
    TMPDIR: context.temp,
    XDG_DATA_HOME: join(context.root, 'data'),
    FORKD_RUN_CACHE: join(context.root, 'cache'),
  };
});
test.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));

/** The pid of a process that has ended. */
const deadPid = (): number => spawnSync('/bin/true').pid;

/** cleanup spares what was made a moment ago. Not further back: a maker's pid counts only if it lived then. */
const backdate = (path: string): void => {
  const at = Date.now() / 1000 - 0.5;
  utimesSync(path, at, at);
};

const makeDir = (parent: string, name: string, lockPid?: number): string => {
  const dir = join(parent, name);
  mkdirSync(join(dir, 'inside'), { recursive: true });
  writeFileSync(join(dir, 'inside/file'), 'x'.repeat(10_000));
  if (lockPid !== undefined) writeFileSync(join(dir, '.lock'), String(lockPid));
  backdate(dir);
  return dir;
};

/** Items below the test's own directories: the host may have other leftovers, which are not the test's. */
const clean = async ({ env, root }: Context, ...args: string[]): Promise<Item[]> => {
  const { code, stdout, stderr } = await forkd(['cleanup', '--json', ...args], { env });
  assert.is(code, 0, stderr);
  return (JSON.parse(stdout) as { items: Item[] }).items.filter(({ path }) => path.includes(root));
};

const summary = (items: Item[]) => Object.fromEntries(items.map(({ path, action }) => [path, action]));

test('a dry run lists and removes nothing; --yes removes exactly what was listed', async (context) => {
  const dead = makeDir(context.temp, 'forkd-fork-base-AAAAAA', deadPid());
  const pulled = makeDir(context.temp, 'forkd-pull-123');
  const foreign = ['forkd', 'forkd-notes', 'forkd-daemon-x', 'other-forkd-fork-x'].map((name) =>
    makeDir(context.temp, name),
  );
  writeFileSync(join(context.temp, 'forkd-fork-file'), 'not a directory');

  const listed = await clean(context);
  assert.equal(summary(listed), { [dead]: 'del', [pulled]: 'del' });
  assert.ok(listed.every(({ bytes }) => bytes >= 10_000));
  assert.ok(existsSync(dead) && existsSync(pulled), 'a dry run removed something');

  assert.equal(summary(await clean(context, '--yes')), { [dead]: 'del', [pulled]: 'del' });
  assert.not(existsSync(dead) || existsSync(pulled));
  for (const path of foreign) assert.ok(existsSync(join(path, 'inside/file')), path);
  assert.ok(existsSync(join(context.temp, 'forkd-fork-file')));
  assert.equal(await clean(context), []);
});

test('the text says what a dry run is, and the size', async (context) => {
  makeDir(context.temp, 'forkd-parent-base-AAAAAA', deadPid());
  const { stdout } = await forkd(['cleanup'], { env: context.env });
  assert.match(stdout, /^DEL {3}work dir .* KiB .*forkd-parent-base-AAAAAA$/m);
  assert.match(stdout, /^dry run: nothing was removed/m);
});

test('a directory whose lock is held is skipped, whatever pid is in it', async (context) => {
  const dir = makeDir(context.temp, 'forkd-fork-live-AAAAAA', deadPid());
  const lock = openSync(join(dir, '.lock'), 'r+');
  assert.ok(native.flockTry(lock, 'exclusive'));
  try {
    assert.equal(summary(await clean(context, '--yes')), { [dir]: 'skip' });
    assert.ok(existsSync(join(dir, 'inside/file')));
  } finally {
    closeSync(lock);
  }
  assert.equal(summary(await clean(context, '--yes')), { [dir]: 'del' });
});

test('a directory whose maker lives and has not locked it yet is skipped', async (context) => {
  const dir = makeDir(context.temp, 'forkd-fork-young-AAAAAA', process.pid);
  assert.equal(summary(await clean(context, '--yes')), { [dir]: 'skip' });
  assert.ok(existsSync(dir));
});

test('a directory without a lock is skipped while a process has something open in it', async (context) => {
  const dir = makeDir(context.temp, 'forkd-unpack-7');
  const open = openSync(join(dir, 'inside/file'), 'r');
  try {
    assert.equal(summary(await clean(context, '--yes')), { [dir]: 'skip' });
  } finally {
    closeSync(open);
  }
  assert.ok(existsSync(dir));
});

test("an image builder's temporary directory of this hour is skipped", async (context) => {
  const dir = makeDir(context.temp, 'forkd-agent-AAAAAA');
  assert.equal(summary(await clean(context, '--yes')), { [dir]: 'skip' });
});

test('links are neither removed nor followed', async (context) => {
  const outside = makeDir(context.root, 'precious');
  symlinkSync(outside, join(context.temp, 'forkd-fork-link-AAAAAA'));
  const dead = makeDir(context.temp, 'forkd-fork-dead-AAAAAA', deadPid());
  symlinkSync(outside, join(dead, 'link'));
  mkdirSync(join(context.data, 'snapshots'), { recursive: true });
  symlinkSync(outside, join(context.data, 'snapshots/.staging-base-AAAAAA'));
  symlinkSync(outside, join(context.images, `.staging-${deadPid()}-AAAAAA`));

  const items = await clean(context, '--yes');
  assert.is(summary(items)[dead], 'del');
  assert.equal(
    items.filter(({ action }) => action === 'del').map(({ path }) => path),
    [dead],
  );
  assert.not(existsSync(dead));
  assert.ok(existsSync(join(outside, 'inside/file')));
  assert.ok(existsSync(join(context.temp, 'forkd-fork-link-AAAAAA')));
});

test("another user's directory is skipped", async (context) => {
  if (process.getuid?.() !== 0) return;
  const dir = makeDir(context.temp, 'forkd-fork-theirs-AAAAAA', deadPid());
  assert.is(spawnSync('chown', ['65534', dir]).status, 0);
  const [item] = await clean(context, '--yes');
  assert.is(item?.action, 'skip');
  assert.match(item?.reason ?? '', /another user/);
  assert.ok(existsSync(dir));
});

test('abandoned staging directories go, those of a live writer stay', async (context) => {
  const snapshots = join(context.data, 'snapshots');
  const abandoned = makeDir(snapshots, '.staging-old-AAAAAA');
  const written = makeDir(snapshots, '.staging-new-BBBBBB');
  const snapshot = makeDir(snapshots, 'old');
  mkdirSync(join(snapshots, '.locks'));
  const lock = openSync(join(snapshots, '.locks/new.lock'), 'a+');
  assert.ok(native.flockTry(lock, 'exclusive'));
  const unbuilt = makeDir(context.images, `.staging-${deadPid()}-AAAAAA`);
  const building = makeDir(context.images, `.staging-${process.pid}-BBBBBB`);
  const image = makeDir(context.images, '5a1191faa684a607c8372c8991fb7ed6');
  try {
    assert.equal(summary(await clean(context, '--yes')), { [abandoned]: 'del', [unbuilt]: 'del', [building]: 'skip' });
  } finally {
    closeSync(lock);
  }
  assert.equal([abandoned, unbuilt].map(existsSync), [false, false]);
  assert.equal([written, snapshot, building, image].map(existsSync), [true, true, true, true]);
});

test('of another store, only what is in it is looked at', async (context) => {
  const own = makeDir(join(context.data, 'snapshots'), '.staging-own-AAAAAA');
  const other = join(context.root, 'other');
  const staged = makeDir(other, '.staging-half-AAAAAA');
  assert.equal(summary(await clean(context, '--yes', '--snapshot-root', other)), { [staged]: 'del' });
  assert.equal([own, staged].map(existsSync), [true, false]);
});

test('a half-made file goes when its writer is gone, and only if it is what its record says', async (context) => {
  const records = join(context.data, 'snapshots/.halves');
  mkdirSync(records, { recursive: true });
  const record = (id: string, path: string): string => {
    writeFileSync(join(records, id), path);
    return path;
  };
  const named = (id: string): string => join(context.root, `base.tar.zst.${id}.part`);
  const half = (id: string): string => {
    writeFileSync(named(id), 'x'.repeat(10_000));
    return record(id, named(id));
  };
  const abandoned = half('00000000000a');
  const written = half('00000000000b');
  const lock = openSync(join(records, '00000000000b'), 'r');
  assert.ok(native.flockTry(lock, 'exclusive'));
  const precious = join(context.root, 'precious');
  writeFileSync(precious, 'kept');
  record('00000000000c', precious);
  symlinkSync(precious, named('00000000000d'));
  const link = record('00000000000d', named('00000000000d'));
  const unborn = record('00000000000e', named('00000000000e'));
  try {
    assert.equal(summary(await clean(context)), { [abandoned]: 'del', [link]: 'skip', [unborn]: 'del' });
    assert.ok(existsSync(abandoned), 'a dry run removed something');
    await clean(context, '--yes');
    assert.equal([abandoned, written, precious, link].map(existsSync), [false, true, true, true]);
  } finally {
    closeSync(lock);
  }
  assert.equal(summary(await clean(context, '--yes')), { [written]: 'del', [link]: 'skip' });
});

test('records of ended sandboxes go, those of live ones and of live engines stay', async (context) => {
  const dir = join(context.data, 'sandboxes');
  mkdirSync(dir);
  const start = startTime(process.pid) ?? 0;
  let engines = 0;
  const records = (engine: number, ...sandboxes: { id: string; pid: number; start_time: number }[]): string => {
    const path = join(dir, `${engine}-${engine === process.pid ? start : 1}-${++engines}.jsonl`);
    writeFileSync(path, sandboxes.map((one) => `${JSON.stringify(one)}\n`).join(''));
    backdate(path);
    return path;
  };
  const ended = { id: 'sb-aa-0001', pid: deadPid(), start_time: 1 };
  const reused = { id: 'sb-aa-0002', pid: process.pid, start_time: start - 1 };
  const live = { id: 'sb-aa-0003', pid: process.pid, start_time: start };
  const kept = [records(process.pid, ended), records(deadPid(), ended, live)];
  const left = records(deadPid(), ended, reused);
  writeFileSync(join(dir, 'notes.jsonl'), '{}');
  assert.equal(summary(await clean(context, '--yes')), { [left]: 'del' });
  assert.ok([...kept, join(dir, 'notes.jsonl')].every((path) => existsSync(path)));
});

/** A process that looks like a VM of ours. */
const fakeQemu = (dir: string, output: number | 'ignore' = 'ignore'): ChildProcess =>
  spawn(
    process.execPath,
    ['-e', 'setInterval(() => {}, 1000)', '--', '-chardev', `file,id=console,path=${dir}/child-1.console,append=on`],
    { argv0: 'qemu-system-x86_64', stdio: ['ignore', output, 'ignore'] },
  );

test('a VM whose engine is gone is ended with --yes only, and then its directory goes; one of a live engine stays', async (context) => {
  const orphaned = makeDir(context.temp, 'forkd-fork-orphan-AAAAAA', deadPid());
  const held = makeDir(context.temp, 'forkd-fork-held-BBBBBB', process.pid);
  const lock = openSync(join(held, '.lock'), 'r+');
  assert.ok(native.flockTry(lock, 'exclusive'));
  let orphan = fakeQemu(orphaned);
  const child = fakeQemu(held);
  // Hot-forked: the template whose command line it has is gone. It has been taken over, by somebody with another temp dir.
  const elsewhere = makeDir(context.root, 'forkd-fork-elsewhere-CCCCCC', process.pid);
  const keptLock = openSync(join(elsewhere, '.lock'), 'r+');
  assert.ok(native.flockTry(keptLock, 'exclusive'));
  const console = openSync(join(elsewhere, 'child-1.console'), 'a');
  const takenOver = fakeQemu(orphaned, console);
  try {
    const expected = () => ({ [`pid ${orphan.pid} (${orphaned})`]: 'del', [orphaned]: 'del', [held]: 'skip' });
    const lives = () => (orphan.exitCode ?? orphan.signalCode) === null;
    // Suites that run beside this one clean up too, and daemons do so at their start: an orphan is anybody's to end.
    let dry = summary(await clean(context));
    for (let tries = 0; tries < 5 && !lives(); tries++) {
      orphan = fakeQemu(orphaned);
      dry = summary(await clean(context));
    }
    assert.ok(lives(), 'a dry run killed it');
    assert.equal(dry, expected());
    const ended = once(orphan, 'exit') as Promise<[number | null, string | null]>;
    const { [`pid ${orphan.pid} (${orphaned})`]: byUs = 'del', ...others } = summary(await clean(context, '--yes'));
    assert.equal([byUs, others], ['del', { [orphaned]: 'del', [held]: 'skip' }]);
    assert.equal(await ended, [null, 'SIGKILL']);
    assert.not(existsSync(orphaned));
    assert.is(child.exitCode ?? child.signalCode, null, 'a VM of a live engine was killed');
    assert.is(takenOver.exitCode ?? takenOver.signalCode, null, 'a VM that was taken over was killed');
  } finally {
    orphan.kill('SIGKILL');
    child.kill('SIGKILL');
    takenOver.kill('SIGKILL');
    for (const fd of [lock, keptLock, console]) closeSync(fd);
  }
});

test.run();
