/** Who has taken over a VMM in jail: what he tries is refused, or ends the VMM he holds. The jail is the one of QEMU, the program is not. */
import { existsSync, mkdtempSync, readFileSync, rmdirSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { limits } from '../../src/contract/limits.js';
import { Cgroup } from '../../src/main/host/cgroup/cgroup.js';
import { eventually } from '../support/world.js';
import { hasOldGate, Hostile, type Outcome } from './hostile.js';

const hostile = suite<{ inside: Hostile }>('hostile');

hostile.before((context) => {
  context.inside = new Hostile();
});
hostile.after(({ inside }) => inside.close());

const OLD_GATE = 32;

/** Numbers of hostile.c. */
const DEADLY: Record<string, number> = {
  'its own memory by way of /proc, to write': 5,
  'a new file': 6,
  "a sibling's memory, by process_vm_readv": 9,
  'a sibling, by ptrace': 10,
  'SIGKILL to a sibling': 11,
  'SIGKILL to a thread of a sibling': 12,
  'signals to a sibling by F_SETOWN': 14,
  'a pidfd of a sibling': 15,
  'an Internet socket': 16,
  'a Unix socket': 17,
  'a connection': 18,
  'another user': 19,
  'unshare of a user namespace': 20,
  'clone of a user namespace': 21,
  'another program': 23,
  'a mount': 24,
  'another root': 25,
  bpf: 26,
  io_uring: 27,
  perf_event_open: 28,
  keyctl: 29,
  setns: 30,
  'a call of the x32 table': 31,
  'a call by the gate of 32-bit programs': OLD_GATE,
  'to be dumpable again': 33,
  'higher limits': 34,
  userfaultfd: 35,
};

for (const [title, what] of Object.entries(DEADLY)) {
  hostile(`${title}: ends it with SIGSYS`, async ({ inside }) => {
    const victim = inside.copy();
    // Some kernels, of virtual machines above all, have no such gate for anybody.
    const signal = what === OLD_GATE && !hasOldGate() ? 'SIGSEGV' : 'SIGSYS';
    assert.equal(await inside.attempt(what, victim.inside), { signal });
    victim.kill();
    assert.is((await victim.ended).signal, 9, 'the sibling lived on');
  });
}

hostile('what it sees: an empty root, of /proc only itself, a user that nobody has', async ({ inside }) => {
  const read = async (what: number) => (await inside.attempt(what)) as Exclude<Outcome, { signal: string }>;
  assert.is((await read(1)).text, 'proc ');
  const self = inside.copy();
  const { text } = (await inside.attempt(2, 0, self)) as { text: string };
  assert.equal(text.trim().split(' ').sort(), [String(self.inside), 'self', 'thread-self'].sort());
  assert.ok((await read(0)).result >= limits.jailUidFirst);
  for (const what of [3, 4]) assert.is((await read(what)).error, 'ENOENT');
});

hostile(
  "a sibling's files in /proc: not there; a signal that it takes for a stray one: it lives on",
  async ({ inside }) => {
    const victim = inside.copy();
    for (const what of [7, 8]) {
      const { error } = (await inside.attempt(what, victim.inside)) as { error: string };
      assert.ok(['ENOENT', 'EACCES', 'EPERM'].includes(error), error);
    }
    victim.kill();
    await victim.ended;
  },
);

hostile('a fork bomb: held by the limit of its group, counted, and gone with it', async ({ inside }) => {
  const cgroup = Cgroup.create('sb-00000000-0000b0b0', { pids: 100 });
  if (!cgroup) throw new Error('this host has no cgroups');
  const bomb = inside.copy(cgroup.procs);
  const { result, text } = (await inside.attempt(36, 0, bomb)) as { result: number; text: string };
  // Two of its own threads are counted too.
  assert.ok(result >= 90 && result < 100, text);
  assert.match(text, new RegExp(` ${constants.errno.EAGAIN}$`));
  const { pids, pids_refused: refused } = cgroup.usage();
  assert.ok((pids ?? 0) >= 90, 'its processes outlive it');
  assert.ok((refused ?? 0) > 0);
  const dir = cgroup.procs[0]?.replace(/\/cgroup.procs$/, '') ?? '';
  cgroup.remove();
  assert.not(existsSync(dir));
});

hostile('clone3, whose arguments no filter can see, is not there', async ({ inside }) => {
  assert.equal(await inside.attempt(22), { result: -1, error: 'ENOSYS', text: '' });
});

hostile('a child joins a group of cgroup v2, whose file the engine has opened', async ({ inside }) => {
  const v2 = /^\S+ (\S+) cgroup2 /m.exec(readFileSync('/proc/self/mounts', 'utf8'))?.[1];
  if (v2 === undefined) return;
  const dir = mkdtempSync(join(v2, 'forkd-test-'));
  const procs = join(dir, 'cgroup.procs');
  try {
    const born = inside.copy([procs]);
    await inside.attempt(0, 0, born);
    const other = inside.copy([procs]);
    assert.ok(await eventually(() => readFileSync(procs, 'utf8').trim() === String(other.pid)));
    other.kill();
    await other.ended;
  } finally {
    rmdirSync(dir);
  }
});

hostile.run();
