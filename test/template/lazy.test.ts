/** Memory that is loaded when it is touched. Everything here is a real QEMU whose memory the fault server serves. */
import { closeSync, cpSync, ftruncateSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { WORKING_SET_FILE } from '../../src/contract/snapshot.js';
import { Engine } from '../../src/main/engine.js';
import { LazyImage } from '../../src/main/memory/lazy.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { inspect } from '../../src/main/store/inspection.js';
import { detail } from '../../src/main/store/listing.js';
import { Template } from '../../src/main/template/template.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, type World } from '../support/world.js';

const NUMPY = 'numpy.zeros(5).tolist()';
const ZEROS = '[0.0, 0.0, 0.0, 0.0, 0.0]';
/** What a child keeps, 8 MiB of which no page is like another, and how it is touched. */
const KEPT = 2 ** 20;
const KEEP = `import builtins; builtins.kept = numpy.arange(${KEPT})`;
const SUM = 'import builtins; int(builtins.kept.sum())';
/** Walks the guest's kernel and disk, far beyond what a template touches while it warms up. */
const WANDER = [
  'sh',
  '-c',
  'find / -xdev | wc -l; cat /proc/slabinfo /proc/kallsyms | wc -c; python3 -c "import email, json, decimal"',
];

const lazy = suite<{ world: World; engine: Engine }>('lazy');

lazy.before((context) => {
  context.world = makeWorld(true);
  process.env['XDG_DATA_HOME'] = context.world.env.XDG_DATA_HOME;
});
lazy.after(({ world }) => world.close());
lazy.before.each((context) => {
  context.engine = new Engine();
});
lazy.after.each(({ engine }) => engine.close());

interface Started {
  template: Template;
  memory: LazyImage;
}

/** A template of which only what it touched itself is loaded. `prepare` is called before it starts. */
const start = async (engine: Engine, prepare?: (memory: LazyImage) => void, tag = BASE_TAG): Promise<Started> => {
  const snapshot = await engine.load(tag, { lazy: true });
  const { memory } = snapshot;
  if (!(memory instanceof LazyImage)) throw new Error('this host cannot load memory lazily');
  prepare?.(memory);
  try {
    const options = { pool: engine.pool, driver: await engine.driver(), snapshot, rounds: 2, width: 1 };
    return { template: await Template.start({ ...options, firstEval: NUMPY }), memory };
  } catch (error) {
    snapshot.close();
    throw error;
  }
};

const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'no error',
    (error: unknown) => (error instanceof ForkdError ? error.code : String(error)),
  );

/** As a value: uvu cannot print a ForkdError. */
const answerOf = async (engine: Engine, { id }: Sandbox, code: string): Promise<string | undefined> =>
  engine.eval(id, code).then(
    ({ result }) => result ?? undefined,
    (error: unknown) => String(error),
  );

const answersOf = async (engine: Engine, children: Sandbox[]): Promise<(string | undefined)[]> =>
  Promise.all(children.map((child) => answerOf(engine, child, NUMPY)));

/** The layer file of a tag, open for damage. */
const withLayer = (world: World, tag: string, use: (fd: number) => void): void => {
  const fd = openSync(join(world.snapshots, tag, 'memory.layer'), 'r+');
  use(fd);
  closeSync(fd);
};

/** One bit in the frame of every chunk that is stored whole: a program's own data, and hardly ever what a kernel needs to go on. */
const flipBits = (fd: number): void => {
  const header = Buffer.alloc(40);
  readSync(fd, header, 0, 40, 0);
  const index = Buffer.alloc(Number(header.readBigUInt64LE(32)) * 56);
  readSync(fd, index, 0, index.length, Number(header.readBigUInt64LE(24)));
  const byte = Buffer.alloc(1);
  const flipped = new Set<number>();
  for (let entry = 0; entry < index.length; entry += 56) {
    const at = Number(index.readBigUInt64LE(entry + 8)) + 5000;
    if (index.readUInt16LE(entry + 4) !== 0xf || flipped.has(at)) continue;
    // Equal frames are stored once: a second flip would mend it.
    flipped.add(at);
    readSync(fd, byte, 0, 1, at);
    byte.writeUInt8(byte.readUInt8(0) ^ 1, 0);
    writeSync(fd, byte, 0, 1, at);
  }
};

const copyTag = (world: World, from: string, tag: string): string => {
  cpSync(join(world.snapshots, from), join(world.snapshots, tag), { recursive: true });
  return tag;
};

lazy(
  'a template starts from a part of the image; idle time brings the rest, and the server ends',
  async ({ engine }) => {
    const { template, memory } = await start(engine);
    const { storedBytes } = memory.source.info;
    const { readBytes, faults, failed } = memory.counts;
    assert.ok(readBytes > 0 && readBytes < storedBytes * 0.75, `${readBytes} of ${storedBytes}`);
    assert.ok(faults > 0);
    assert.is(failed, 0);
    const { sandboxes, failures } = await engine.forkFrom(template, { n: 3, firstEval: NUMPY });
    assert.equal(failures, []);
    // On a quick host the image can be whole, and its server gone, before the forks.
    assert.ok(memory.server === undefined || memory.counts.forks >= 3, 'every fork was followed');
    assert.ok(await eventually(() => memory.server === undefined, 20_000), 'the image is never whole');
    assert.is(memory.pages.counts().present, memory.pages.states.length);
    // Nobody serves any more: these find everything in the memfd.
    const more = await engine.forkFrom(template, { n: 2 });
    assert.equal(
      await answersOf(engine, [...sandboxes, ...more.sandboxes]),
      Array.from({ length: 5 }, () => ZEROS),
    );
    const [first] = sandboxes as [Sandbox];
    assert.is((await engine.exec(first.id, WANDER, 60)).exit_code, 0);
    await template.retire();
  },
);

lazy('what a lazily loaded child changed is a diff, and the chain loads lazily too', async ({ engine }) => {
  const { template, memory } = await start(engine);
  const { sandboxes } = await engine.forkFrom(template, { n: 1 });
  const [child] = sandboxes as [Sandbox];
  await engine.eval(child.id, KEEP);
  const { written } = await engine.branchInto(child.id, { tag: 'diff' });
  // Pages of zeros that the server placed are private to the child: they are stored as zeros, which take no room.
  const { written_bytes } = await written;
  assert.ok(written_bytes < KEPT * 8 + memory.bytes / 32, `${written_bytes}`);
  await engine.close();
  await template.retire();

  const fresh = new Engine();
  try {
    const again = await start(fresh, undefined, 'diff');
    assert.ok(again.memory.counts.readBytes > 0);
    const { sandboxes: made } = await fresh.forkFrom(again.template, { n: 2 });
    for (const one of made) assert.is(await answerOf(fresh, one, SUM), String((KEPT * (KEPT - 1)) / 2));
    await again.template.retire();
  } finally {
    await fresh.close();
  }
});

lazy(
  'a bit that flips in a layer in use: who touches the chunk is ended with the reason, others are not',
  async ({ world, engine }) => {
    const { template, memory } = await start(engine, undefined, copyTag(world, 'diff', 'flipped'));
    withLayer(world, 'flipped', flipBits);
    const { sandboxes, failures } = await engine.forkFrom(template, { n: 2, firstEval: NUMPY });
    assert.equal(failures, []);
    const [victim, other] = sandboxes as [Sandbox, Sandbox];
    assert.match((await answerOf(engine, victim, SUM)) ?? '', 'a part of its memory cannot be loaded');
    assert.match(victim.death().message, /^child 1 was ended: .*memory\.layer: chunk \d+: hash mismatch/);
    assert.is(victim.death().code, 'MEMORY_LOST');
    assert.equal(await answersOf(engine, [other]), [ZEROS]);
    // Nothing more is made of it, once that is known.
    assert.is(await codeOf(memory.complete()), 'SNAPSHOT_CORRUPT');
    assert.is(await codeOf(engine.forkFrom(template, { n: 1 })), 'SNAPSHOT_CORRUPT');
    await template.retire();
  },
);

lazy(
  'a layer that is cut off while it is in use ends the children that need the rest, one by one',
  async ({ world, engine }) => {
    const { template, memory } = await start(engine, undefined, copyTag(world, 'diff', 'cut'));
    withLayer(world, 'cut', (fd) => ftruncateSync(fd, 4096));
    const refused = await engine.forkFrom(template, { n: 2, firstEval: SUM }).catch((error: ForkdError) => error);
    assert.instance(refused, ForkdError);
    assert.match((refused as ForkdError).message, /^child \d was ended: .*chunk \d+: truncated/);
    assert.is(engine.sandboxes.length, 0);
    assert.is(await codeOf(memory.complete()), 'SNAPSHOT_CORRUPT');
    await template.retire();
  },
);

lazy(
  'a tag whose chunks are damaged does not start, lazily or not, and nothing hangs or is left',
  async ({ world, engine }) => {
    withLayer(world, copyTag(world, BASE_TAG, 'damaged'), flipBits);
    for (const eager of [false, true]) {
      assert.is(await codeOf(engine.fork({ tag: 'damaged', n: 2, eager })), 'SNAPSHOT_CORRUPT');
    }
    assert.equal(qemusOf(world.root), []);
  },
);

lazy(
  'a reader that dies while it fills: another takes over, for faults and for what idle time brings',
  async ({ engine }) => {
    const { template, memory } = await start(engine, ({ pages }) => {
      // Every third chunk belongs to a reader that will never finish.
      for (let chunk = 0; chunk < pages.states.length; chunk += 3) pages.claim(chunk);
    });
    assert.ok(memory.counts.takenOver > 0);
    const { sandboxes } = await engine.forkFrom(template, { n: 2 });
    assert.equal(await answersOf(engine, sandboxes), [ZEROS, ZEROS]);
    assert.ok(await eventually(() => memory.server === undefined, 20_000), 'the image is never whole');
    await template.retire();
  },
);

lazy('what the first children touched is recorded, and loaded first by the next start', async ({ world, engine }) => {
  const tag = copyTag(world, BASE_TAG, 'recorded');
  const file = join(world.snapshots, tag, WORKING_SET_FILE);
  const recorded = () => inspect(engine.store, tag).working_set;
  writeFileSync(file, 'a stranger wrote this');
  assert.is(recorded(), null);
  const first = await start(engine, undefined, tag);
  const { faults } = first.memory.counts;
  await engine.forkFrom(first.template, { n: 2, firstEval: NUMPY });
  const { chunks } = recorded() ?? { chunks: 0 };
  assert.ok(chunks > 0 && chunks < first.memory.pages.states.length / 2, `${chunks}`);
  assert.is(detail(engine.store, tag).working_set_bytes, chunks * CHUNK_BYTES);
  await engine.kill(engine.sandboxes);
  await first.template.retire();

  const written = readFileSync(file);
  const second = await start(engine, undefined, tag);
  // It was all there, or on its way, when it was touched.
  assert.ok(second.memory.counts.filled + second.memory.counts.zeroed > 0);
  assert.ok(second.memory.counts.faults < faults / 2, `${second.memory.counts.faults} of ${faults}`);
  const { sandboxes } = await engine.forkFrom(second.template, { n: 2 });
  assert.equal(await answersOf(engine, sandboxes), [ZEROS, ZEROS]);
  // The order stays; what only this start touched comes after it.
  assert.ok(readFileSync(file).subarray(0, written.length).equals(written));
  await engine.kill(engine.sandboxes);
  await second.template.retire();
});

lazy('children outlive their template, and still find what nobody had loaded', async ({ engine }) => {
  const { template, memory } = await start(engine);
  const before = memory.counts.filled;
  const { sandboxes } = await engine.forkFrom(template, { n: 1 });
  await template.retire();
  const [child] = sandboxes as [Sandbox];
  assert.is((await engine.exec(child.id, WANDER, 60)).exit_code, 0);
  assert.ok(memory.counts.filled > before);
});

lazy('eagerly: all is there before the template starts, and nobody serves', async ({ engine }) => {
  const template = await engine.warm(BASE_TAG, { eager: true });
  assert.is(template.snapshot?.memory.server, undefined);
  assert.not.instance(template.snapshot?.memory, LazyImage);
});

lazy.run();
