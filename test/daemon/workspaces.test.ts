/** Workspaces through the client, with a daemon that is killed in between. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Controller, ControllerError } from '../../src/client/index.js';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { BASE_TAG, eventually, makeWorld, qemusOf } from '../support/world.js';

const world = makeWorld(true);
let daemon: TestDaemon;
let controller: Controller;
const begin = async () => {
  daemon = await startDaemon(world, ['--spares', '0']);
  controller = new Controller({ baseUrl: `unix:${daemon.socketPath}` });
};

const workspaces = suite('workspaces');
workspaces.before(begin);
workspaces.after(async () => {
  await controller.close();
  assert.is(await daemon.stop(), 0);
  world.close();
});

const refusal = async (promise: Promise<unknown>): Promise<[number, string | undefined]> => {
  try {
    await promise;
  } catch (error) {
    if (error instanceof ControllerError) return [error.status, error.code];
    throw error;
  }
  throw new Error('it was not refused');
};

const tags = async () => (await controller.listSnapshots()).map(({ tag }) => tag);
const evaluate = async (id: string | undefined, code: string) => (await controller.evalCode(id ?? '', code)).result;

/** What this daemon has told of workspaces, up to `last`. */
const told = async (last: string): Promise<string[]> => {
  const actions: string[] = [];
  for await (const { action } of controller.events({ kinds: ['workspace'], after: 0 })) {
    actions.push(action);
    if (action === last) break;
  }
  return actions;
};

workspaces('what is suspended comes back, more than once, also in another daemon after kill -9', async () => {
  const made = await controller.createWorkspace({ name: 'w', snapshotTag: BASE_TAG, labels: { a: 'b' } });
  assert.equal([made.name, made.status, made.source_snapshot_tag], ['w', 'running', BASE_TAG]);
  assert.is(made.id, `ws-${made.live_sandbox_id?.slice(0, 16)}`);
  await evaluate(made.live_sandbox_id, "import builtins\nbuiltins.mark = ['one']");
  const first = await controller.suspendWorkspace('w', { diff: true });
  assert.equal([first.status, first.current_state_tag, first.live_sandbox_id], ['suspended', 'ws-w-state', undefined]);
  assert.equal(await controller.listSandboxes(), []);
  const second = await controller.resumeWorkspace('w');
  assert.is(await evaluate(second.live_sandbox_id, 'mark'), "['one']");
  await evaluate(second.live_sandbox_id, "mark.append('two')");
  const again = await controller.suspendWorkspace('w');
  assert.equal(await tags(), [BASE_TAG, again.current_state_tag], 'the old state and what led to the new one are gone');
  assert.is((await controller.snapshotInfo(again.current_state_tag ?? '')).chain_depth, 0);

  process.kill(daemon.pid, 'SIGKILL');
  await controller.close();
  assert.ok(await eventually(() => qemusOf(world.root).length === 0), 'its virtual machines end with it');
  await begin();
  assert.equal(await controller.getWorkspace('w'), again);
  const third = await controller.resumeWorkspace('w');
  assert.is(await evaluate(third.live_sandbox_id, 'mark'), "['one', 'two']");
  assert.equal(
    (await controller.listWorkspaces({ labels: { a: 'b' } })).map(({ name }) => name),
    ['w'],
  );
});

workspaces('a workspace whose sandbox is lost is stale, and starts again from its last state', async () => {
  const { live_sandbox_id: id = '' } = await controller.getWorkspace('w');
  await controller.killSandbox(id);
  assert.is((await controller.getWorkspace('w')).status, 'stale');
  assert.equal(await refusal(controller.suspendWorkspace('w')), [400, 'WORKSPACE_STATE']);
  const back = await controller.resumeWorkspace('w');
  assert.is(await evaluate(back.live_sandbox_id, 'mark'), "['one', 'two']");
  assert.equal(await refusal(controller.resumeWorkspace('w')), [400, 'WORKSPACE_STATE']);
});

workspaces('a call that is under way when the state is taken is not told as done', async () => {
  const { live_sandbox_id: id = '' } = await controller.getWorkspace('w');
  const late = refusal(controller.execCommand(id, ['sleep', '30']));
  const state = controller.suspendWorkspace('w');
  assert.ok([409, 500].includes((await late)[0]));
  await state;
});

workspaces('names, tags and states that do not fit; deletion leaves the source', async () => {
  const make = (name: string, snapshotTag: string) => controller.createWorkspace({ name, snapshotTag });
  assert.equal(await refusal(make('w', BASE_TAG)), [409, 'WORKSPACE_EXISTS']);
  assert.equal(await refusal(make('a b', BASE_TAG)), [400, 'TAG_INVALID']);
  assert.equal(await refusal(make('v', '../x')), [400, 'TAG_INVALID']);
  assert.equal(await refusal(make('v', 'missing')), [404, 'SNAPSHOT_NOT_FOUND']);
  for (const call of ['getWorkspace', 'suspendWorkspace', 'resumeWorkspace', 'deleteWorkspace'] as const)
    assert.equal(await refusal(controller[call]('v')), [404, 'WORKSPACE_NOT_FOUND']);
  await controller.deleteWorkspace('w');
  assert.equal(await told('deleted'), ['resumed', 'stale', 'resumed', 'suspended', 'deleted']);
  assert.equal([await controller.listWorkspaces(), await tags()], [[], [BASE_TAG]]);
});

workspaces.run();
