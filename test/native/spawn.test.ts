import { spawn as nodeSpawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { parentOf } from '../../src/main/host/process.js';
import { native, type SpawnOptions, wardenPath } from '../../src/native/binding.js';
import { inChild, scenarioPath } from './in-child.js';
import { exitOf, fdCount, runShell, settledFdCount, spawnSleep } from './process.js';

const test = suite('native spawn');

test('the child has its descriptors and no others', async () => {
  const { output } = await runShell('exec ls /proc/self/fd');
  assert.is(output, '0\n1\n2\n3\n'); // 3 is the folder that ls reads
});

test('a mapping may swap two descriptors', async () => {
  const [left, right] = [native.memfdCreate('left'), native.memfdCreate('right')];
  const { output } = await runShell(`readlink /proc/self/fd/${left} /proc/self/fd/${right}`, {
    fds: [
      [left, right],
      [right, left],
    ],
  });
  assert.is(output, '/memfd:right (deleted)\n/memfd:left (deleted)\n');
  native.fdClose(left);
  native.fdClose(right);
});

test('3 and 4 swap, and a source may be used twice', async () => {
  const [left, right] = [native.memfdCreate('left'), native.memfdCreate('right')];
  const { output } = await runShell('readlink /proc/self/fd/3 /proc/self/fd/4 /proc/self/fd/5 /proc/self/fd/100', {
    fds: [
      [right, 3],
      [left, 4],
      [right, 100],
      [3, 5], // whatever this process has at 3: read before 3 is replaced
    ],
  });
  const [three, four, five, hundred] = output.split('\n');
  assert.equal([three, four, hundred], ['/memfd:right (deleted)', '/memfd:left (deleted)', '/memfd:right (deleted)']);
  assert.is.not(five, three);
  native.fdClose(left);
  native.fdClose(right);
});

test('environment and working folder are those given, and only those', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-native-'));
  const { output } = await runShell('echo "$A|$B|$HOME"; exec readlink /proc/self/cwd', {
    env: ['A=1', 'B=two words', 'PATH=/bin:/usr/bin'],
    cwd: folder,
  });
  assert.is(output, `1|two words|\n${folder}\n`);
  rmSync(folder, { recursive: true });
});

test('it is scheduled as a batch program when that is asked for', async () => {
  const policyOf = async (options: object) => (await runShell('cut -d" " -f41 /proc/self/stat', options)).output;
  const [SCHED_OTHER, SCHED_BATCH] = ['0\n', '3\n'];
  assert.equal([await policyOf({}), await policyOf({ batch: true })], [SCHED_OTHER, SCHED_BATCH]);
});

test('the child leads its own process group, with signals as a fresh process has them', async () => {
  const { output } = await runShell('echo $$; cut -d" " -f5 /proc/self/stat; grep -E "Sig(Blk|Ign)" /proc/self/status');
  const [pid, group, ...signals] = output.trim().split('\n');
  assert.is(group, pid);
  assert.equal(signals, ['SigBlk:\t0000000000000000', 'SigIgn:\t0000000000000000']);
});

test("the score for the OOM killer is the child's alone", async () => {
  const own = readFileSync('/proc/self/oom_score_adj', 'utf8');
  const { output } = await runShell('cat /proc/self/oom_score_adj', { oomScoreAdj: 500 });
  assert.is(output, '500\n');
  assert.is(readFileSync('/proc/self/oom_score_adj', 'utf8'), own);
});

test('a step that fails is named, and leaves nothing behind', async () => {
  const good: SpawnOptions = { file: '/bin/true', args: ['true'], env: [], fds: [] };
  const readOnly = openSync('/dev/null', 'r');
  const cases: [Partial<SpawnOptions>, code: string, syscall: string, path?: string][] = [
    [{ file: '/no/such/program' }, 'ENOENT', 'execve', '/no/such/program'],
    [{ file: '/etc/passwd' }, 'EACCES', 'execve', '/etc/passwd'],
    [{ cwd: '/no/such/folder' }, 'ENOENT', 'chdir', '/no/such/folder'],
    [{ fds: [[999_999, 3]] }, 'EBADF', 'fcntl'],
    [{ fds: [[0, 0x7ffffffe]] }, 'EINVAL', 'fcntl'],
    [{ netns: readOnly }, 'EINVAL', 'setns'],
    [{ cgroups: [readOnly] }, 'EBADF', 'write cgroup.procs'],
  ];
  const before = await settledFdCount();
  for (const [change, code, syscall, path] of cases) {
    assert.throws(
      () => native.spawn({ ...good, ...change }),
      (error: NodeJS.ErrnoException) => {
        assert.equal([error.code, error.syscall, error.path], [code, syscall, path]);
        return true;
      },
    );
  }
  assert.is(fdCount(), before);
  closeSync(readOnly);
  const zombies = await runShell(`cat /proc/${process.pid}/task/*/children`);
  assert.is(zombies.output.trim().split(' ').length, 1); // the shell itself
});

test('the child can be placed in a network namespace', async () => {
  // The namespace of a process that unshared its own; without the right to do so there is nothing to test.
  const holder = native.spawn({
    file: '/usr/bin/unshare',
    args: ['unshare', '--net', 'sleep', '60'],
    env: ['PATH=/usr/bin:/bin'],
    fds: [],
    dieWithParent: true,
  });
  const own = (await runShell('readlink /proc/self/ns/net')).output;
  let theirs = own;
  for (let i = 0; i < 100 && theirs === own; i++) {
    theirs = (await runShell(`sleep 0.02; readlink /proc/${holder.pid}/ns/net || true`)).output;
  }
  if (theirs.startsWith('net:')) {
    const netns = openSync(`/proc/${holder.pid}/ns/net`, 'r');
    assert.is((await runShell('readlink /proc/self/ns/net', { netns })).output, theirs);
    closeSync(netns);
  }
  native.pidfdSignal(holder.pidfd, 9);
  await exitOf(holder.pidfd);
  native.fdClose(holder.pidfd);
});

/** A fresh cgroup, in version 2 or in the pids hierarchy of version 1; undefined where this user may not make one. */
function makeCgroup(): string | undefined {
  const parent = existsSync('/sys/fs/cgroup/cgroup.procs') ? '/sys/fs/cgroup' : '/sys/fs/cgroup/pids';
  const folder = `${parent}/forkd-native-test-${process.pid}`;
  try {
    mkdirSync(folder);
    return folder;
  } catch {
    return undefined;
  }
}

test('the child is in its cgroup from the first instruction, this process is not', async () => {
  const folder = makeCgroup();
  if (!folder) return;
  const procs = openSync(`${folder}/cgroup.procs`, 'w');
  const { output } = await runShell('exec cat /proc/self/cgroup', { cgroups: [procs] });
  assert.match(output, basename(folder));
  assert.not.match(readFileSync('/proc/self/cgroup', 'utf8'), basename(folder));
  closeSync(procs);
  rmdirSync(folder);
});

test('a thousand children come and go', async () => {
  const before = await settledFdCount();
  for (let round = 0; round < 100; round++) {
    const children = Array.from({ length: 10 }, () =>
      native.spawn({ file: '/bin/true', args: ['true'], env: [], fds: [] }),
    );
    for (const { pidfd } of children) {
      assert.equal(await exitOf(pidfd), { code: 0, signal: null });
      native.fdClose(pidfd);
    }
  }
  assert.is(await settledFdCount(), before);
});

test('dieWithParent: the child goes with a parent that is killed', async () => {
  const parent = nodeSpawn(process.execPath, [scenarioPath('spawn-and-stay')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(parent.stdout, 'data')) as [Buffer];
  const { dies, stays } = JSON.parse(String(line)) as { dies: number; stays: number };
  const [diesFd, staysFd] = [native.pidfdOpen(dies), native.pidfdOpen(stays)];
  parent.kill('SIGKILL');
  assert.equal(await exitOf(diesFd), { code: null, signal: null }); // not our child
  assert.is(native.pidfdSignal(staysFd, 0), true);
  native.pidfdSignal(staysFd, 9);
  await exitOf(staysFd);
  native.fdClose(diesFd);
  native.fdClose(staysFd);
});

test('a child spawned by a worker outlives the worker', async () => {
  assert.equal(await inChild('spawn-from-worker'), { aliveAfterWorker: true, status: { code: null, signal: 9 } });
});

test('a signal reaches the child, and a dead one is reported as gone', async () => {
  const { pidfd } = spawnSleep();
  assert.is(native.pidfdSignal(pidfd, 15), true);
  assert.equal(await exitOf(pidfd), { code: null, signal: 15 });
  assert.is(native.pidfdSignal(pidfd, 15), false);
  native.fdClose(pidfd);
});

/** The first process of a namespace needs nothing but the line. */
const INIT = { file: wardenPath, args: [wardenPath, 'stays'], line: 9 };

test('in a pid namespace of its own: both are children of this process, the child the second in there', async () => {
  const before = await settledFdCount();
  const child = native.spawn({ file: '/bin/sleep', args: ['sleep', '60'], env: [], fds: [], init: INIT });
  const { pid, pidfd, inside, init = -1, line } = child;
  const first = native.pidfdPid(init);
  assert.equal([inside, native.pidfdPid(pidfd)], [2, pid]);
  assert.match(readFileSync(`/proc/${pid}/status`, 'utf8'), new RegExp(`^NSpid:\t${pid}\t2$`, 'm'));
  assert.equal([parentOf(pid), parentOf(first)], [process.pid, process.pid]);
  const theirs = native.pidfdGetfd(pidfd, 9);
  assert.is(fstatSync(theirs).ino, line);
  assert.is(readlinkSync(`/proc/${first}/fd/0`), `pipe:[${line}]`);
  native.fdClose(theirs);
  // It waits for the last who holds the line, and that is the child.
  native.pidfdSignal(pidfd, 15);
  assert.equal(await exitOf(pidfd), { code: null, signal: 15 });
  assert.equal(await exitOf(init), { code: 0, signal: null });
  for (const fd of [pidfd, init]) native.fdClose(fd);
  assert.is(await settledFdCount(), before);
});

test('a first process that cannot be started, or a child: named, and neither is left', async () => {
  const before = await settledFdCount();
  const children = () => readdirSync('/proc').filter((name) => parentOf(Number(name)) === process.pid).length;
  const count = children();
  const attempt = (file: string, init: string) => () =>
    native.spawn({ file, args: [file], env: [], fds: [], init: { ...INIT, file: init } });
  assert.throws(attempt('/bin/true', '/nowhere'), /ENOENT.*execve of the init '\/nowhere'/);
  assert.throws(attempt('/nowhere', wardenPath), /ENOENT.*execve '\/nowhere'/);
  assert.equal([children(), await settledFdCount()], [count, before]);
});

test.run();
