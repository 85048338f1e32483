/** Two processes that use and remove one tag at once: one of them is told, nothing is half there, no tag is orphaned. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { readPages, Subject } from '../support/layers.js';
import { BASE, BEFORE, CHILD, CHUNKS_OF_NOTE, makeBefore, storeOf, WRITTEN } from './crash/world.js';

interface Said {
  value?: unknown;
  code?: string;
  message?: string;
}

/** crash/peer.js: a process of its own. */
class Peer {
  readonly child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(data: string, subject: Subject) {
    const program = fileURLToPath(new URL('./crash/peer.js', import.meta.url));
    const args = [program, data, String(subject.pid)];
    this.child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'], timeout: 120_000 });
    const input = this.child.stdout as NonNullable<typeof this.child.stdout>;
    this.#lines = createInterface({ input })[Symbol.asyncIterator]();
  }

  async #line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('the peer has ended');
    return value;
  }

  async ready(): Promise<this> {
    assert.is(await this.#line(), 'ready');
    return this;
  }

  async ask(...command: string[]): Promise<Said> {
    const answer = this.#line();
    this.child.stdin?.write(`${JSON.stringify(command)}\n`);
    return JSON.parse(await answer) as Said;
  }

  async end(): Promise<void> {
    const closed = once(this.child, 'close');
    this.child.stdin?.end();
    await closed;
  }
}

interface Context {
  root: string;
  before: string;
  data: string;
  subject: Subject;
  one: Peer;
  other: Peer;
}

const races = suite<Context>('two processes, one tag');

races.before(async (context) => {
  context.root = mkdtempSync(join(tmpdir(), 'races-'));
  context.before = join(context.root, 'before');
  context.data = join(context.root, 'data');
  context.subject = await Subject.start();
  await context.subject.write(WRITTEN);
  makeBefore(context.before, context.subject);
  [context.one, context.other] = await Promise.all(
    [0, 1].map(() => new Peer(context.data, context.subject).ready()) as [Promise<Peer>, Promise<Peer>],
  );
});
races.before.each(({ before, data }) => renew(before, data));
races.after(async ({ root, subject, one, other }) => {
  await Promise.all([one.end(), other.end(), subject.end()]);
  rmSync(root, { recursive: true, force: true });
});

const renew = (before: string, data: string): void => {
  rmSync(data, { recursive: true, force: true });
  cpSync(before, data, { recursive: true });
};

const inFull = (value: Record<number, number>) => ({ value: JSON.parse(JSON.stringify(value)) });

/** Every tag that is there is whole, with all its ancestors; nothing half-made is left. Returns the tags. */
const wholeTags = (data: string): string[] => {
  const store = storeOf(data);
  for (const { tag, problem } of store.list()) assert.is(problem, undefined, `${tag}: ${problem}`);
  for (const tag of store.tags()) readPages(store, tag, CHUNKS_OF_NOTE);
  const rest = readdirSync(store.root).filter((name) => name.startsWith('.') && name !== '.locks');
  assert.equal(rest, []);
  return store.tags().sort();
};

races('a tag in use is not removed, nor is what it is made of; the holder is named, and reads on', async (context) => {
  const { one, other, data } = context;
  assert.equal(await one.ask('hold', 'child'), { value: null });
  for (const refused of [await other.ask('remove', 'child'), await other.ask('cascade', 'base')]) {
    assert.is(refused.code, 'SNAPSHOT_IN_USE', JSON.stringify(refused));
    assert.match(refused.message ?? '', new RegExp(`process ${one.child.pid} `));
  }
  assert.is((await other.ask('remove', 'base')).code, 'SNAPSHOT_HAS_DEPENDENTS');
  assert.equal(await one.ask('release'), inFull(CHILD));
  assert.equal(wholeTags(data), ['base', 'child', 'lone']);
  assert.equal(await other.ask('cascade', 'base'), { value: ['child', 'base'] });
  assert.equal(wholeTags(data), ['lone']);
});

races('one that is removed by force while it is used is read to the end by who has it', async (context) => {
  const { one, other, data } = context;
  await one.ask('hold', 'child');
  assert.equal(await other.ask('force', 'child'), { value: ['child'] });
  assert.equal(await other.ask('force', 'base'), { value: ['base'] });
  assert.is((await other.ask('hold', 'child')).code, 'SNAPSHOT_NOT_FOUND');
  assert.equal(await one.ask('release'), inFull(CHILD));
  assert.equal(wholeTags(data), ['lone']);
});

races('a holder that is killed holds no more', async ({ other, data, subject }) => {
  const killed = await new Peer(data, subject).ready();
  await killed.ask('hold', 'child');
  assert.is((await other.ask('remove', 'child')).code, 'SNAPSHOT_IN_USE');
  const closed = once(killed.child, 'close');
  killed.child.kill('SIGKILL');
  await closed;
  assert.equal(await other.ask('remove', 'child'), { value: ['child'] });
});

races('a replaced tag leaves its users the old one', async ({ one, other, data }) => {
  assert.is((await other.ask('replace', 'base')).code, 'SNAPSHOT_HAS_DEPENDENTS');
  await one.ask('hold', 'lone');
  assert.equal(await other.ask('replace', 'lone'), { value: null });
  assert.equal(await one.ask('release'), inFull(BEFORE['lone'] ?? {}));
  assert.equal(await one.ask('read', 'lone'), inFull(BASE));
  assert.equal(wholeTags(data), ['base', 'child', 'lone']);
});

const after = async <T>(ms: number, act: () => Promise<T>): Promise<T> => {
  if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms));
  return act();
};

const busy = ['SNAPSHOT_BUSY', 'SNAPSHOT_IN_USE', 'SNAPSHOT_NOT_FOUND'];

/** Of two commands that start at once, what each may be told when it does not come through. */
const PAIRS: { name: string; commands: [string[], string[]]; told: [string[], string[]]; rounds: number }[] = [
  {
    name: 'fork and rmi',
    commands: [
      ['read', 'child'],
      ['remove', 'child'],
    ],
    told: [busy, busy],
    rounds: 15,
  },
  {
    name: 'fork and rmi --cascade of its base',
    commands: [
      ['read', 'child'],
      ['cascade', 'base'],
    ],
    told: [[...busy, 'PARENT_MISSING'], busy],
    rounds: 15,
  },
  {
    name: 'snapshot-compact and rmi --cascade of its base',
    commands: [
      ['compact', 'child', 'flat'],
      ['cascade', 'base'],
    ],
    told: [[...busy, 'PARENT_MISSING'], busy],
    rounds: 15,
  },
  {
    name: 'snapshot-diff and rmi of its parent',
    commands: [
      ['diff', 'grandchild', 'child'],
      ['remove', 'child'],
    ],
    told: [
      [...busy, 'PARENT_MISSING'],
      [...busy, 'SNAPSHOT_HAS_DEPENDENTS'],
    ],
    rounds: 15,
  },
  {
    name: 'snapshot --force of a tag and snapshot-diff on top of it',
    commands: [
      ['diff', 'more', 'lone'],
      ['replace', 'lone'],
    ],
    told: [
      [...busy, 'PARENT_ALTERED'],
      [...busy, 'SNAPSHOT_HAS_DEPENDENTS'],
    ],
    rounds: 15,
  },
  {
    name: 'two removals, and two snapshots',
    commands: [
      ['remove', 'lone'],
      ['remove', 'lone'],
    ],
    told: [busy, busy],
    rounds: 8,
  },
  {
    name: 'two compactions into one tag',
    commands: [
      ['compact', 'child', 'flat'],
      ['compact', 'base', 'flat'],
    ],
    told: [
      [...busy, 'SNAPSHOT_EXISTS'],
      [...busy, 'SNAPSHOT_EXISTS'],
    ],
    rounds: 8,
  },
];

for (const { name, commands, told, rounds } of PAIRS) {
  races(`${name}, at once`, async ({ before, data, one, other }) => {
    for (let round = 0; round < rounds; round++) {
      renew(before, data);
      // Now the one starts earlier, now the other.
      const said = await Promise.all([
        after(round % 3, () => one.ask(...commands[0])),
        after((round + 1) % 3, () => other.ask(...commands[1])),
      ]);
      for (const [i, { code }] of said.entries()) {
        assert.ok(code === undefined || told[i]?.includes(code), `${commands[i]}: ${JSON.stringify(said[i])}`);
      }
      assert.ok(
        said.some(({ code }) => code === undefined),
        JSON.stringify(said),
      );
      wholeTags(data);
      if (said[0]?.code === undefined && commands[0][0] === 'read') assert.equal(said[0], inFull(CHILD));
      if (said[0]?.code === undefined && commands[0][0] === 'compact')
        assert.ok(existsSync(storeOf(data).dir('flat')), 'it was made');
    }
  });
}

races.run();
