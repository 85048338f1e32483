/** `snapshot --force` that is interrupted, and one that is killed, while it writes memory: the tags are as they were, and cleanup takes the rest. */
import { cpSync, existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Store } from '../../src/main/store/store.js';
import { forkd, type Running, startCli } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, sharedData, type World } from '../support/world.js';

const killed = suite<{ world: World }>('snapshot, killed');

const BOOT_MS = 120_000;
const TAGS = ['interrupted', 'killed'] as const;

killed.before((context) => {
  context.world = makeWorld();
  const { snapshots, env } = context.world;
  for (const tag of TAGS)
    cpSync(join(sharedData(), 'forkd/snapshots', BASE_TAG), join(snapshots, tag), { recursive: true });
  const known = join(sharedData(), 'forkd/host.json');
  if (existsSync(known)) cpSync(known, join(env.XDG_DATA_HOME, 'forkd/host.json'));
});
killed.after(({ world }) => world.close());

const stagingOf = (world: World, tag: string): string[] =>
  readdirSync(world.snapshots).filter((name) => name.startsWith(`.staging-${tag}-`));

/** Stops the command in the middle of writing memory; what it has not done by then it has not done. */
const stopped = async (world: World, tag: string): Promise<Running> => {
  const args = ['snapshot', '--tag', tag, '--force', '--require', 'tcg', '--mem-size-mib', '256'];
  const running = startCli(args, { env: world.env, timeoutMs: BOOT_MS + 60_000 });
  const layers = () => stagingOf(world, tag).map((name) => join(world.snapshots, name, 'memory.layer'));
  const begun = () => layers().some((path) => (statSync(path, { throwIfNoEntry: false })?.size ?? 0) > 0);
  assert.ok(await eventually(begun, BOOT_MS), 'it has written no memory');
  running.kill('SIGSTOP');
  return running;
};

killed('while memory is written, the old snapshot stays', async ({ world }) => {
  const read = () => TAGS.map((tag) => readFileSync(join(world.snapshots, tag, 'snapshot.json'), 'utf8'));
  const before = read();
  const [interrupted, dead] = (await Promise.all(TAGS.map((tag) => stopped(world, tag)))) as [Running, Running];
  assert.equal(read(), before);
  for (const tag of TAGS) assert.is(stagingOf(world, tag).length, 1);
  interrupted.kill('SIGINT');
  interrupted.kill('SIGCONT');
  dead.kill('SIGKILL');

  const ended = await interrupted.ended;
  assert.is(ended.code, 130, ended.stderr);
  assert.match(ended.stderr, /interrupted/);
  assert.equal(stagingOf(world, 'interrupted'), []);
  assert.is((await dead.ended).signal, 'SIGKILL');
  assert.ok(await eventually(() => qemusOf(world.root).length === 0), 'orphans');
  assert.is(stagingOf(world, 'killed').length, 1);

  const cleaned = await forkd(['cleanup', '--yes'], { env: world.env });
  assert.is(cleaned.code, 0, cleaned.stderr);
  assert.match(cleaned.stdout, /snapshot staging/);
  assert.equal(
    readdirSync(world.snapshots)
      .filter((name) => name !== '.locks')
      .sort(),
    [...TAGS],
  );
  assert.equal(readdirSync(world.env.TMPDIR), []);
  assert.equal(read(), before);
  for (const { tag, problem } of new Store(world.snapshots).list()) assert.is(problem, undefined, tag);
});

killed.run();
