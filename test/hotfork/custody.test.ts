/** What arrives for a task and is told to nobody is left to nobody. The shim is played by the test, at the other end of its socket. */
import { readdirSync, readlinkSync } from 'node:fs';
import type { Worker } from 'node:worker_threads';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { HOTFORK_MAGIC, HOTFORK_VERSION, Say } from '../../src/contract/hotfork.js';
import type { TaskEvent } from '../../src/contract/task.js';
import { Pool } from '../../src/main/pool.js';
import { native } from '../../src/native/binding.js';
import { eventually } from '../support/world.js';

const WAIT_MS = 10_000;
const NAME = 'custody-test';

const workers = new Set<Worker>();
process.on('worker', (worker) => {
  workers.add(worker);
  worker.once('exit', () => workers.delete(worker));
});

interface Context {
  pool: Pool;
  /** Of the shim. */
  theirs: number;
  ours: number;
  memfd: number;
}

const custody = suite<Context>('custody');

custody.before((context) => {
  context.pool = new Pool();
});
custody.after(({ pool }) => pool.close());
custody.before.each((context) => {
  [context.ours, context.theirs] = native.socketPair('seqpacket');
  context.memfd = native.memfdCreate(NAME);
});
custody.after.each(({ ours, theirs, memfd }) => {
  for (const fd of [ours, theirs, memfd]) native.fdClose(fd);
});

/** How often it is open here, but for the first time. */
const copies = (): number =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes(NAME);
    } catch {
      return false;
    }
  }).length - 1;

const says = ({ theirs, memfd }: Context, type: number, count = 0): void => {
  const packet = new DataView(new ArrayBuffer(24));
  packet.setUint16(0, HOTFORK_MAGIC, true);
  packet.setUint8(2, HOTFORK_VERSION);
  packet.setUint8(3, type);
  packet.setUint32(4, 1, true);
  native.sendFds(theirs, new Uint8Array(packet.buffer), Array(count).fill(memfd), WAIT_MS);
};

const branch = ({ pool, ours: controlFd }: Context, told: TaskEvent[]): Promise<unknown> => {
  const source = { name: 'it', controlFd, control: 3, qmp: 4, agent: 5, consoles: [], taps: [], others: [] };
  return pool
    .run('copy', { source, running: true, frozen: true }, (event) => told.push(event))
    .catch((error: unknown) => ForkdError.from(error).code);
};

custody("what was told of is its new owner's", async (context) => {
  const told: TaskEvent[] = [];
  const done = branch(context, told);
  says(context, Say.child, 4);
  says(context, Say.done);
  await done;
  const [spawned] = told;
  assert.ok(spawned?.type === 'spawned');
  assert.is(copies(), 4);
  const { pidfd, qmpFd, agentFd, controlFd } = spawned.vmm;
  for (const fd of [pidfd, qmpFd, agentFd, controlFd as number]) native.fdClose(fd);
  assert.is(copies(), 0);
});

custody('the worker dies before it has told: they are closed', async (context) => {
  const told: TaskEvent[] = [];
  const done = branch(context, told);
  says(context, Say.child, 4);
  assert.ok(await eventually(() => copies() === 4, WAIT_MS), 'they have arrived');
  const ends = [...workers].map((worker) => worker.terminate());
  // It waits in a system call, which ends with this: what it had received it can tell nobody any more.
  says(context, Say.done);
  assert.is(await done, 'WORKER_DIED');
  await Promise.all(ends);
  assert.equal([told, copies()], [[], 0]);
});

custody('a shim that breaks the protocol: whatever it sends is closed', async (context) => {
  for (const [type, count] of [
    [Say.child, 3],
    [Say.child, 9],
    [Say.done, 4],
    [Say.refused, 4],
  ] as const) {
    const told: TaskEvent[] = [];
    const done = branch(context, told);
    says(context, type, count);
    if (type === Say.child && count < 4) says(context, Say.done);
    assert.is(await done, 'HOTFORK_BROKEN');
    assert.equal([told, copies()], [[], 0]);
  }
});

custody('a conversation that is taken up again drops children', async (context) => {
  const { pool, ours: controlFd } = context;
  says(context, Say.child, 4);
  says(context, Say.done);
  says(context, Say.state);
  assert.equal(await pool.run('regain', { shims: [{ name: 'it', controlFd }] }), { lost: [] });
  assert.is(copies(), 0);
});

custody.run();
