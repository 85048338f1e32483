/** Sandboxes that were restored cold, without the shim, have a tether instead: as under KVM, and in network namespaces. */
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Engine } from '../../src/main/engine.js';
import { isRunning } from '../../src/main/host/process.js';
import { Keeper } from '../../src/main/sandbox/keeper.js';
import type { SandboxRecord } from '../../src/main/sandbox/take-over.js';
import { start } from '../support/cli.js';
import { eventually, makeWorld, qemusOf } from '../support/world.js';

const world = makeWorld(true);
Object.assign(process.env, world.env);
const path = join(world.root, 'state.keeper');

const test = suite('sandboxes without a shim');
test.after(() => world.close());

test('one that is kept outlives its engine and is taken over; one that is not ends, and so does the first with its last holder', async () => {
  const scenario = join(import.meta.dirname, 'scenario/engine.js');
  const killed = start(process.execPath, [scenario, path], { env: world.env });
  const said = await killed.says(/^\{.*\}$/m);
  const { id, record, other } = JSON.parse(/^\{.*\}$/m.exec(said)?.[0] ?? '') as {
    id: string;
    record: SandboxRecord;
    other: number;
  };
  killed.kill('SIGKILL');
  await killed.ended;
  assert.ok(await eventually(() => !qemusOf(world.root).includes(other)), 'one that nobody holds ends');
  assert.equal(qemusOf(world.root), [record.process?.pid]);

  const keeper = new Keeper(path, (reason) => assert.unreachable(reason));
  const engine = new Engine({ tied: true });
  // Neither another process of that pid, nor one of an earlier boot of this host.
  const { process: real } = record;
  for (const wrong of [
    { ...real, start_time: 1 },
    { ...real, boot_id: 'another' },
  ]) {
    const claim = { id, record: { ...record, process: wrong as typeof real }, fds: undefined };
    const [taken] = await engine.takeOver([claim], (reason) => assert.unreachable(reason));
    assert.match(taken && 'reason' in taken ? taken.reason : '', 'ended while no daemon ran');
  }
  assert.ok(real && isRunning(real));
  const claim = { id, record, fds: keeper.takeOver().get(id) };
  await engine.takeOver([claim], (reason) => assert.unreachable(reason));
  assert.is((await engine.eval(id, '6 * 7')).result, '42');
  assert.is((await engine.exec(id, ['hostname'])).stdout, `${id}\n`);
  const code = await engine.branch(id).then(
    () => '',
    (error: { code: string }) => error.code,
  );
  assert.is(code, 'BRANCH_UNSUPPORTED');
  await engine.close({ leave: true });
  assert.ok(isRunning(real));
  keeper.forget([id]);
  keeper.close();
  // This process holds its end still: what an engine owns closes with its process, or with the sandbox.
  await engine.kill(engine.sandboxes);
  assert.ok(await eventually(() => qemusOf(world.root).length === 0));
});

test.run();
