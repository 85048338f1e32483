/**
 * kill -9 between any two steps of what changes the store. crash-points.c stops the process before each system call that changes
 * a file, and copies the store as it is then: as a kill at that moment would leave it. What every copy holds is looked at here.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { readPages, Subject } from '../support/layers.js';
import {
  BEFORE,
  CHUNKS_OF_NOTE,
  cleanUp,
  leaveThings,
  makeBefore,
  operations,
  storeOf,
  type Tags,
  WRITTEN,
} from './crash/world.js';

interface Context {
  root: string;
  program: string;
  before: string;
  subject: Subject;
  /** Runs to the end, by operation. */
  whole: Map<string, { steps: string[]; files: string[][] }>;
}

const crash = suite<Context>('killed at any step');

crash.before(async (context) => {
  context.root = mkdtempSync(join(tmpdir(), 'crash-'));
  context.program = join(context.root, 'crash-points');
  const source = fileURLToPath(new URL('../../../test/support/crash-points.c', import.meta.url));
  execFileSync('gcc', ['-D_GNU_SOURCE', '-std=gnu11', '-O2', '-o', context.program, source]);
  context.whole = new Map();
  context.subject = await Subject.start();
  await context.subject.write(WRITTEN);
  context.before = join(context.root, 'before');
  makeBefore(context.before, context.subject);
});
crash.after(async ({ root, subject }) => {
  await subject.end();
  rmSync(root, { recursive: true, force: true });
});

/** Random parts of names, as mkdtemp makes them. */
const named = (text: string): string => text.replace(/(\.(?:staging|trash)-\w+-)\w{6}/g, '$1XXXXXX');

interface Run {
  steps: string[];
  data: string;
  states: string;
}

/** `killAt` 0: to the end, with a copy of each step. */
const run = ({ root, program, before, subject }: Context, name: string, killAt = 0): Run => {
  const world = mkdtempSync(join(root, 'run-'));
  const [data, states, log] = [join(world, 'data'), join(world, 'states'), join(world, 'log')];
  cpSync(before, data, { recursive: true });
  mkdirSync(states);
  if (name === 'cleanup') leaveThings(data);
  // The subject is given by its pid: what it maps is what a diff is made of.
  const operate = fileURLToPath(new URL('./crash/operate.js', import.meta.url));
  const command = [process.execPath, operate, name, data, String(subject.pid)];
  const { status, stderr } = spawnSync(program, [data, states, log, String(killAt), ...command], { timeout: 60_000 });
  assert.is(status, killAt === 0 ? 0 : 137, String(stderr));
  const steps = named(readFileSync(log, 'utf8')).split('\n').slice(0, -1);
  return { steps, data, states };
};

/** What is in a store, read and checked; everything, or the chunks in which tags differ. */
const tagsOf = (data: string, chunks?: number[]): Tags => {
  const store = storeOf(data);
  for (const { tag, problem } of store.list()) assert.is(problem, undefined, tag);
  return Object.fromEntries(store.tags().map((tag) => [tag, readPages(store, tag, chunks)]));
};

const leftoversOf = (data: string): string[] =>
  readdirSync(storeOf(data).root).filter((name) => name.startsWith('.') && name !== '.locks');

/** Which of an operation's states a store is in. */
const stateOf = (data: string, states: Tags[], step: string): number => {
  const tags = tagsOf(data, CHUNKS_OF_NOTE);
  const at = states.findIndex((state) => {
    try {
      assert.equal(tags, state);
      return true;
    } catch {
      return false;
    }
  });
  assert.is.not(at, -1, `before ${step} the store holds ${JSON.stringify(tags)}`);
  return at;
};

/** Paths and sizes; what depends on the process or the clock is left out. */
const filesOf = (data: string): string[] =>
  readdirSync(data, { recursive: true, encoding: 'utf8' })
    .filter((path) => !path.includes('.locks/'))
    .map((path) => `${named(path)} ${lstatSync(join(data, path)).isFile() ? lstatSync(join(data, path)).size : 'dir'}`)
    .sort();

for (const [name, { states, run: again }] of Object.entries(operations)) {
  crash(`${name}: every tag whole or absent, whatever the step, and cleanup takes the rest`, async (context) => {
    const { steps, data, states: copies } = run(context, name);
    assert.is(readdirSync(copies).length, steps.length);
    const files = steps.map((_, i) => filesOf(join(copies, String(i + 1))));
    context.whole.set(name, { steps, files });
    const seen: number[] = [];
    for (const [i, step] of steps.entries()) {
      const copy = join(copies, String(i + 1));
      const before = stateOf(copy, states, step);
      await cleanUp(copy);
      assert.equal(leftoversOf(copy), [], `before ${step}`);
      assert.is(stateOf(copy, states, step), before);
      // What was not done can be done again.
      if (before < states.length - 1) {
        await again(copy, context.subject);
        assert.is(stateOf(copy, states, step), states.length - 1, `before ${step}`);
        assert.equal(leftoversOf(copy), []);
      }
      seen.push(before);
    }
    // Every state was met, one after the other, and the last one is the end.
    assert.equal(
      [...new Set(seen)],
      states.map((_, i) => i),
      steps.join('\n'),
    );
    assert.equal(seen, [...seen].sort());
    assert.equal(tagsOf(data), states.at(-1));
    assert.equal(leftoversOf(data), []);
  });
}

crash('a process that is really killed leaves what the copy of that step holds', async (context) => {
  for (const name of ['diff', 'compact', 'snapshot --force', 'rmi --cascade']) {
    const { steps, files } = context.whole.get(name) ?? { steps: [], files: [] };
    const renamed = steps.findIndex((step) => step.startsWith('rename '));
    for (const at of [Math.floor(renamed / 2), renamed, renamed + 1]) {
      const killed = run(context, name, at + 1);
      assert.equal(killed.steps, steps.slice(0, at + 1));
      assert.equal(filesOf(killed.data), files[at], `${name}: ${steps[at]}`);
    }
  }
});

crash('the store that all this starts from is what it should be', ({ before }) => {
  assert.equal(tagsOf(before), BEFORE);
});

crash.run();
