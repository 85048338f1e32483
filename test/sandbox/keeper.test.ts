/** The keeper process: what one client gives, the next one gets. No VMs: a socket pair stands for each. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Keeper, type KeptFds } from '../../src/main/sandbox/keeper.js';
import { native } from '../../src/native/binding.js';
import { eventually } from '../support/world.js';

const test = suite<{ root: string; path: string; told: string[] }>('keeper');

test.before.each((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'keeper-'));
  // An address of a Unix socket holds 107 bytes.
  const deep = join(context.root, 'x'.repeat(100));
  mkdirSync(deep);
  context.path = join(deep, 'state.json.keeper');
  context.told = [];
});
test.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));

/** Pids of keepers of this path. */
const keepers = (path: string): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(path);
      } catch {
        return false;
      }
    });

/** Something with two ends: the machine's, and what is kept of it. */
const machine = (): { fds: KeptFds; end: () => void; hears: () => string } => {
  const [life, theirs] = native.socketPair('seqpacket');
  const [qmp, agent, lock] = [1, 2, 3].map((n) => native.memfdCreate(`kept ${n}`)) as [number, number, number];
  return {
    fds: { life, qmp, agent, lock },
    end: () => native.fdClose(theirs),
    hears: () => new TextDecoder().decode(native.recvFds(theirs, 100, 0, 2000).data),
  };
};
const close = (fds: KeptFds) => Object.values(fds).forEach((fd) => void native.fdClose(fd));

test('what was kept and not dropped is there for the next one, however many', async ({ path, told }) => {
  const first = new Keeper(path, (reason) => told.push(reason));
  assert.is(first.takeOver().size, 0);
  const machines = Array.from({ length: 150 }, machine);
  first.keep(machines.map(({ fds }, i) => [`m${i}`, fds]));
  first.keep([['again', (machines[0] as { fds: KeptFds }).fds]]);
  first.drop(['m1', 'again', 'unknown']);
  first.close();
  for (const { fds } of machines) close(fds);
  // Nobody holds it: its machine ends, which the keeper would notice too.
  assert.is(machines[1]?.hears(), '');
  machines[2]?.end();

  const second = new Keeper(path, (reason) => told.push(reason));
  const found = second.takeOver();
  assert.ok(found.has('m0') && !found.has('m1') && !found.has('again'));
  const { life, ...others } = found.get('m149') as KeptFds;
  native.sendFds(life, new TextEncoder().encode('hello'), [], 1000);
  assert.is(machines[149]?.hears(), 'hello');
  for (const fd of Object.values(others)) assert.is(native.fdSize(fd).bytes, 0);
  assert.is(keepers(path).length, 1);
  second.forget([...found.keys()]);
  for (const fds of found.values()) close(fds);
  second.close();
  assert.ok(await eventually(() => keepers(path).length === 0), 'it ends when there is nothing to keep');
  assert.not(existsSync(path));
  assert.equal(told, []);
});

test('a keeper whose machines have ended, ends', async ({ path, told }) => {
  const keeper = new Keeper(path, (reason) => told.push(reason));
  const { fds, end } = machine();
  keeper.keep([['one', fds]]);
  keeper.close();
  close(fds);
  assert.is(keepers(path).length, 1);
  end();
  assert.ok(await eventually(() => keepers(path).length === 0));
});

test('a keeper that was killed is replaced, and the new one holds the same', async ({ path, told }) => {
  const keeper = new Keeper(path, (reason) => told.push(reason));
  const [one, two] = [machine(), machine()];
  keeper.keep([['one', one.fds]]);
  const [pid = 0] = keepers(path);
  process.kill(pid, 'SIGKILL');
  assert.ok(await eventually(() => told.length > 0));
  assert.match(told[0] ?? '', 'another was started');
  // In the same moment as it is needed, before anybody has noticed.
  const [next = 0] = keepers(path);
  process.kill(next, 'SIGKILL');
  keeper.keep([['two', two.fds]]);
  keeper.close();
  const last = new Keeper(path, () => undefined);
  const found = last.takeOver();
  last.close();
  assert.equal([...found.keys()].sort(), ['one', 'two']);
  for (const fds of [one.fds, two.fds, ...found.values()]) close(fds);
  one.end();
  two.end();
  assert.ok(await eventually(() => keepers(path).length === 0));
});

test('what cannot be kept is said', ({ root }) => {
  const nowhere = new Keeper(join(root, 'missing/state.keeper'), () => undefined);
  const { fds, end } = machine();
  assert.throws(
    () => nowhere.keep([['one', fds]]),
    (error: { code?: string; message: string }) =>
      error.code === 'KEEPER_FAILED' && /cannot listen/.test(error.message),
  );
  close(fds);
  end();
});

test.run();
