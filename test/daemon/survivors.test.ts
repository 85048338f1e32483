/** What a daemon has acknowledged is there after kill -9, and nothing else is. */
import { readdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller, ControllerError } from '../../src/client/index.js';
import { Keeper } from '../../src/main/sandbox/keeper.js';
import { native } from '../../src/native/binding.js';
import { forkd } from '../support/cli.js';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { BASE_TAG, eventually, makeWorld, qemusOf } from '../support/world.js';

/** How often the daemon is killed in the middle of its work. An hour's soak: FORKD_SOAK_ROUNDS=500. */
const ROUNDS = Number(process.env['FORKD_SOAK_ROUNDS'] ?? 2);

const world = makeWorld(true);
const state = join(world.env.XDG_DATA_HOME, 'forkd/state.json');
let daemon: TestDaemon;
let controller: Controller;

const begin = async (args: string[] = []) => {
  daemon = await startDaemon(world, ['--spares', '1', '--log-level', 'warn', ...args]);
  controller = new Controller({ baseUrl: `unix:${daemon.socketPath}`, timeoutMs: 150_000 });
};
const crash = async () => {
  process.kill(daemon.pid, 'SIGKILL');
  await controller.close();
};
const list = async () => (await controller.listSandboxes()).map(({ last_active_unix: _, ...rest }) => rest);
const spawn = (n = 1, labels = {}) => controller.spawnSandboxes({ snapshotTag: BASE_TAG, n, labels });
const evaluate = async (id: string, code: string) => (await controller.evalCode(id, code)).result;
/** Every virtual machine of this world: sandboxes, templates, spares. */
const machines = () => qemusOf(world.root).sort();
const pidsOf = (sandboxes: { pid: number | null }[]) => sandboxes.map(({ pid }) => pid as number).sort();

const both = async <T>(made: Promise<T[]>): Promise<[T, T]> => (await made) as [T, T];

const test = suite('sandboxes that outlive the daemon');
test.before(() => begin());
test.after(async () => {
  await controller.close();
  assert.is(await daemon.stop(), 0);
  assert.equal(machines(), [], 'a daemon that is told to end, ends its sandboxes');
  assert.not(/"sb-/.test((await forkd(['ls', '--json'], { env: world.env })).stdout));
  world.close();
});

test('they run on, and the next daemon has them with all that it knew of them', async () => {
  // One of the two was a spare.
  const made = await spawn(2, { a: 'b' });
  const [one, two] = made.map(({ id }) => id) as [string, string];
  await controller.createWorkspace({ name: 'w', snapshotTag: BASE_TAG });
  await evaluate(one, "import builtins\nbuiltins.mark = ['one']");
  await controller.branchSandbox(one, { tag: 'cut' });
  const gone = (await spawn())[0]?.id ?? '';
  await controller.killSandbox(gone);
  const before = await list();
  await crash();
  assert.ok(
    await eventually(() => machines().length === 3),
    'templates and spares end with the daemon, sandboxes do not',
  );
  assert.equal(machines(), pidsOf(before));
  const cleaned = await forkd(['cleanup', '--yes'], { env: world.env });
  assert.match(cleaned.stdout, /SKIP.*takes its sandboxes back/);
  assert.equal(machines(), pidsOf(before), 'cleanup leaves what a daemon will take back');

  await begin();
  assert.equal(await list(), before);
  assert.is(await evaluate(one, 'mark'), "['one']");
  assert.equal(await controller.execCommand(two, ['hostname']), { stdout: `${two}\n`, stderr: '', exit_code: 0 });
  assert.is((await controller.pingSandbox(two)).released, true);
  const throughSocket = await forkd(['exec', '--target', two, '--', 'hostname'], { env: world.env });
  assert.is(throughSocket.stdout, `${two}\n`);
  await controller.branchSandbox(one, { tag: 'again' });
  const [child] = await controller.spawnSandboxes({ snapshotTag: 'again' });
  assert.is(await evaluate(child?.id ?? '', 'mark'), "['one']");
  await controller.killSandbox(child?.id ?? '');
  assert.is((await controller.getWorkspace('w')).status, 'running');
  assert.is((await controller.suspendWorkspace('w')).status, 'suspended');
});

/** What the daemon tells of a sandbox once it has noticed its end; a process is gone a moment before. */
const whenDead = async (id: string) => {
  const end = Date.now() + 5000;
  for (;;) {
    const seen = await controller.getSandbox(id);
    if (seen.status === 'dead' || Date.now() > end) return seen;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

test('an end is noticed, whoever runs meanwhile; what was deleted stays so', async () => {
  const [one, two] = await both(list());
  process.kill(two.pid ?? 0, 'SIGKILL');
  const seen = await whenDead(two.id);
  assert.equal([seen.status, seen.pid], ['dead', null]);
  const [three] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, ttlSecs: 4 });
  await controller.killSandbox(one.id);
  await crash();
  // Its time is over by the time that somebody looks.
  await eventually(() => Date.now() / 1000 > (three?.expires_at_unix ?? 0), 6000);
  await begin();
  const after = await list();
  assert.equal(after.map(({ id }) => id).sort(), [two.id, three?.id].sort());
  assert.is(after.find(({ id }) => id === two.id)?.reason, seen.reason);
  assert.ok(await eventually(() => machines().length === 0));
  const late = await whenDead(three?.id ?? '');
  assert.is(late.status, 'dead');
  // The second, where a busy host was so slow that the first daemon ended it, and could not write that down any more.
  assert.match(late.reason ?? '', /its time \(ttl_secs\) was over|ended while no daemon ran/);
  for (const { id } of after) await controller.killSandbox(id);
});

test('a request that was cut off in the middle does not cost the sandbox; one that nobody holds ends', async () => {
  const [one, two] = await both(spawn(2));
  // It reads nothing now: a part of the request fills the socket, the rest never comes.
  process.kill(one.pid ?? 0, 'SIGSTOP');
  const call = controller.execCommand(one.id, ['true', 'x'.repeat(1_500_000)]).catch(() => undefined);
  const marks = () =>
    readdirSync(world.env.TMPDIR, { recursive: true }).filter((name) => /\.sending$/.test(String(name)));
  assert.ok(await eventually(() => marks().length === 1));
  // It goes on while the daemon stands still: stopped processes whose parent ends are hung up (SIGHUP).
  process.kill(daemon.pid, 'SIGSTOP');
  process.kill(one.pid ?? 0, 'SIGCONT');
  await crash();
  await call;
  const keeper = new Keeper(`${state}.keeper`, (reason) => assert.unreachable(reason));
  const kept = keeper.takeOver();
  assert.equal([...kept.keys()].sort(), [one.id, two.id].sort());
  for (const fds of kept.values()) for (const fd of Object.values(fds)) native.fdClose(fd);
  keeper.forget([two.id]);
  keeper.close();
  assert.ok(await eventually(() => machines().length === 1));
  await begin();
  assert.is(await evaluate(one.id, '6 * 7'), '42');
  assert.not(marks().length > 0);
  const lost = await controller.getSandbox(two.id);
  assert.is(lost.status, 'dead');
  assert.match(lost.reason ?? '', 'ended while no daemon ran');
  for (const { id } of await list()) await controller.killSandbox(id);
});

test('killed at any moment: all that was acknowledged is there, and nothing runs that is not listed', async () => {
  /** What clients were told. Undefined: nobody knows, since the answer never came. */
  const sandboxes = new Map<string, 'lives' | 'deleted' | undefined>();
  const tags = new Set<string>();
  const workspaces = new Map<string, 'running' | 'suspended' | undefined>();
  let serial = 0;
  const living = () => [...sandboxes].filter(([, fate]) => fate === 'lives').map(([id]) => id);
  /** What the other client is at, too, it does not delete: that two things are done to one sandbox at once is meant. */
  const inUse: string[] = [];
  const withOne = async (work: (id: string) => Promise<void>) => {
    const id = pick(living());
    if (!id) return;
    inUse.push(id);
    try {
      await work(id);
    } finally {
      inUse.splice(inUse.indexOf(id), 1);
    }
  };
  const pick = <T>(all: T[]): T | undefined => all[Math.floor(Math.random() * all.length)];
  const steps: (() => Promise<void>)[] = [
    async () => (await spawn(2)).forEach(({ id }) => void sandboxes.set(id, 'lives')),
    () =>
      withOne(async (id) => {
        assert.is(await evaluate(id, '6 * 7'), '42');
        assert.is((await controller.execCommand(id, ['hostname'])).stdout, `${id}\n`);
      }),
    () =>
      withOne(async (id) => {
        const tag = `b${++serial}`;
        await controller.branchSandbox(id, { tag });
        tags.add(tag);
      }),
    async () => {
      const id = pick(living().filter((one) => !inUse.includes(one)));
      if (!id) return;
      sandboxes.set(id, undefined);
      await controller.killSandbox(id);
      sandboxes.set(id, 'deleted');
    },
    async () => {
      const name = `w${++serial}`;
      await controller.createWorkspace({ name, snapshotTag: BASE_TAG });
      workspaces.set(name, 'running');
    },
    async () => {
      const [name, status] = pick([...workspaces].filter(([, fate]) => fate !== undefined)) ?? [];
      if (!name) return;
      workspaces.set(name, undefined);
      const suspend = status === 'running';
      await (suspend ? controller.suspendWorkspace(name) : controller.resumeWorkspace(name));
      workspaces.set(name, suspend ? 'suspended' : 'running');
    },
  ];
  /** One thing after another, in any order, until the daemon is gone. */
  const client = async () => {
    for (;;) {
      try {
        await pick(steps)?.();
      } catch (error) {
        if (error instanceof ControllerError && error.status === 409) continue;
        if (error instanceof assert.Assertion || error instanceof ControllerError) throw error;
        return;
      }
    }
  };
  for (let round = 0; round < ROUNDS; round++) {
    const clients = [client(), client()];
    await new Promise((resolve) => setTimeout(resolve, 1000 + Math.random() * 1500));
    process.kill(daemon.pid, 'SIGKILL');
    await Promise.all(clients);
    await controller.close();
    await begin();
    const listed = await controller.listSandboxes();
    const running = new Map(listed.filter(({ status }) => status === 'running').map((one) => [one.id, one]));
    for (const [id, fate] of sandboxes) {
      if (fate === 'lives') assert.ok(running.has(id), `${id} was lost`);
      if (fate === 'deleted')
        assert.not(
          listed.some((one) => one.id === id),
          `${id} is back`,
        );
      if (!running.has(id)) sandboxes.delete(id);
      else sandboxes.set(id, 'lives');
    }
    for (const id of living()) assert.is(await evaluate(id, '6 * 7'), '42');
    const known = (await controller.listSnapshots()).filter(({ status }) => status === 'ready').map(({ tag }) => tag);
    for (const tag of tags) assert.ok(known.includes(tag), `${tag} was lost`);
    for (const one of await controller.listWorkspaces()) {
      const fate = workspaces.get(one.name);
      if (fate) assert.is(one.status, fate, `workspace ${one.name}`);
      workspaces.set(one.name, one.status === 'suspended' ? 'suspended' : 'running');
      assert.is.not(one.status, 'stale', `workspace ${one.name}`);
    }
    assert.ok(
      await eventually(() => machines().length === running.size),
      `${machines().length} machines, ${running.size} of them listed`,
    );
    assert.equal(machines(), pidsOf([...running.values()]));
  }
  for (const { name } of await controller.listWorkspaces()) await controller.deleteWorkspace(name);
  for (const { id } of await controller.listSandboxes()) await controller.killSandbox(id);
});

test('at SIGTERM it finishes what is under way and ends its sandboxes, also when nobody reads any more what it says', async () => {
  const [dead, other] = await both(spawn(2));
  daemon.hangUp();
  process.kill(dead.pid ?? 0, 'SIGKILL');
  await whenDead(dead.id);
  // A failure is logged, and the end is announced.
  const failed = await controller.pingSandbox(dead.id).catch((error: ControllerError) => error.status);
  assert.is(failed, 500);
  // What is under way has its time; nothing new is taken.
  const late = controller.execCommand(other.id, ['sh', '-c', 'sleep 1; echo done']);
  assert.is(await evaluate(other.id, '1 + 1'), '2');
  const stopped = daemon.stop();
  assert.is((await late).stdout, 'done\n');
  assert.is(await stopped, 0);
  await controller.close();
  assert.equal(machines(), []);
});

test('at SIGTERM they run on if it was told so; when the state is gone, cleanup ends them', async () => {
  await begin(['--leave-running']);
  const [one] = await spawn();
  await controller.close();
  assert.is(await daemon.stop(), 0);
  assert.equal(machines(), pidsOf(one ? [one] : []));
  // Where its state is, is told without the directory that it was started in.
  await begin(['--leave-running', '--state', relative(process.cwd(), state)]);
  assert.is(await evaluate(one?.id ?? '', '1 + 1'), '2');
  assert.not.match((await forkd(['cleanup'], { env: world.env, cwd: '/' })).stdout, /DEL +process/);
  await crash();
  rmSync(state);
  const { stdout: first } = await forkd(['cleanup', '--yes'], { env: world.env });
  // Processes are the host's: somebody else's cleanup may have been sooner.
  assert.ok(/DEL +process .*keeper of/.test(first) || machines().length === 0, first);
  assert.ok(await eventually(() => machines().length === 0));
  const { stdout: second } = await forkd(['cleanup', '--yes'], { env: world.env });
  assert.match(first + second, /sandbox record/);
  // A young group stays while VMs are being started somewhere, as other suites do.
  let left = '';
  for (let tries = 0; tries < 40 && !left.includes('nothing to remove'); tries++) {
    if (left.includes('DEL')) await forkd(['cleanup', '--yes'], { env: world.env });
    left = (await forkd(['cleanup'], { env: world.env })).stdout;
  }
  assert.match(left, 'nothing to remove');
  await begin();
  assert.equal(await list(), []);
});

test.run();
