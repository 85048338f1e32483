/** Copies of memory as it was at one instant, while wp-subject.c goes on writing. `instant.js PROGRAM SCENARIO`. */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../../src/contract/page-map.js';
import { type FaultRegion, native } from '../../../src/native/binding.js';
import { Faulter, Served } from '../faults.js';

const PAGE = 4096;
const CHUNKS = 512;
const BYTES = CHUNKS * CHUNK_BYTES;
const PAGES = BYTES / PAGE;
/** As in wp-subject.c. */
const STEP = 2654435761 % 65536;
const PATIENCE_MS = 10_000;

const [program = '', scenario = ''] = process.argv.slice(2);

const pageOf = (store: number): number => (store * STEP) % PAGES;
const firstStore = new Map(Array.from({ length: PAGES }, (_, i) => [pageOf(i + 1), i + 1]));

/** The last of the stores up to `last` that went to this page; 0: none. */
const lastStore = (page: number, last: number): number => {
  const first = firstStore.get(page) as number;
  return first > last ? 0 : first + Math.floor((last - first) / PAGES) * PAGES;
};

class Subject {
  private constructor(
    readonly process: Faulter,
    readonly memfd: number,
    readonly uffd: number,
    readonly regions: FaultRegion[],
  ) {}

  /** It has made `stores` stores, and stands still. */
  static async start(kind: 'shared' | 'private', stores = PAGES): Promise<Subject> {
    const served = new Served(CHUNKS, { sealed: false });
    const faulter = new Faulter(program, served);
    await faulter.must(`map ${kind} ${stores}`);
    const { uffd, regions } = await faulter.hand('regions');
    return new Subject(faulter, served.memfd, uffd, regions);
  }

  arm(privateOf?: number): number {
    return native.instantArm(this.uffd, this.process.pid, this.regions, privateOf);
  }

  /** Waits until a store waits. */
  waited(): void {
    assert.is(native.pollReadable([this.uffd], PATIENCE_MS).length, 1, 'no store has waited');
  }

  async count(): Promise<number> {
    return Number(await this.process.must('count'));
  }

  /** Throws unless its stores go on: nothing holds them up. */
  async goesOn(): Promise<void> {
    const end = Date.now() + PATIENCE_MS;
    const before = await this.count();
    while ((await this.count()) < before + 2 * PAGES) assert.ok(Date.now() < end, 'its stores do not go on');
  }

  /** Its memory now, read by another way than the copy. */
  memory(): Buffer {
    const all = Buffer.alloc(BYTES);
    const mem = openSync(`/proc/${this.process.pid}/mem`, 'r');
    for (const { base, bytes, offset } of this.regions) {
      for (let done = 0; done < bytes; ) done += readSync(mem, all, offset + done, bytes - done, base + done);
    }
    closeSync(mem);
    return all;
  }
}

const contents = (fd: number): Buffer => {
  const all = Buffer.alloc(BYTES);
  assert.is(native.fdSize(fd).bytes, BYTES);
  assert.is(native.fdRead(fd, all, 0), BYTES);
  return all;
};

const code = (call: () => unknown): string => {
  try {
    call();
    return 'no error';
  } catch (error) {
    return String((error as { code?: string }).code ?? error);
  }
};

/** Stopped like a VM whose device state is saved: the copy is the very memory of that moment. */
const stopped = async (kind: 'shared' | 'private'): Promise<void> => {
  const subject = await Subject.start(kind);
  await subject.process.must('write');
  const target = native.memfdCreate('target');
  let byFault = 0;
  for (let round = 0; round < 20 && (round < 3 || byFault === 0); round++) {
    const last = Number(await subject.process.must('stop'));
    const before = subject.memory();
    assert.is(Number(before.readBigUInt64LE(pageOf(last) * PAGE)), last);
    const copy = subject.arm();
    await subject.process.must('go');
    subject.waited();
    const taken = native.instantTake(copy, target, 1 + (round % 3));
    assert.is(taken.byFault + taken.byCopiers, PAGES);
    assert.is(taken.pages, PAGES);
    byFault += taken.byFault;
    native.instantClose(copy);
    await subject.goesOn();
    assert.ok(before.equals(contents(target)), 'the copy is not the memory of the instant');
    assert.not(subject.memory().equals(before), 'nothing was written meanwhile');
  }
  assert.ok(byFault > 0, 'no store was waited for');
  subject.process.kill();
};

const scenarios: Record<string, () => Promise<void>> = {
  stoppedShared: () => stopped('shared'),
  stoppedPrivate: () => stopped('private'),

  /** Not stopped: what the copy holds is what one moment held, to the word. */
  running: async () => {
    const subject = await Subject.start('shared', 0);
    await subject.process.must('write');
    const target = native.memfdCreate('target');
    for (let round = 0; round < 5; round++) {
      const before = await subject.count();
      const copy = subject.arm();
      const after = await subject.count();
      native.instantTake(copy, target, 2);
      native.instantClose(copy);
      const { buffer } = contents(target);
      // No number comes to 2^32: the low halves are enough.
      const words = new Uint32Array(buffer).filter((_, i) => i % 2 === 0);
      const last = words.reduce((a, b) => Math.max(a, b));
      // The store that was the first to wait may have written a part of its page, or nothing.
      assert.ok(last >= before && last <= after + 1, `${before} ${last} ${after}`);
      for (let page = 0; page < PAGES; page++) {
        const expected = lastStore(page, last);
        const older = page === pageOf(last) ? lastStore(page, last - 1) : expected;
        const held = words.subarray((page * PAGE) / 8, ((page + 1) * PAGE) / 8);
        const torn = held.findIndex((word) => word !== expected);
        const wrong = torn < 0 ? -1 : held.findIndex((word, i) => i >= torn && word !== older);
        assert.is(wrong, -1, `page ${page} at word ${wrong}, last store ${last}`);
      }
      await subject.goesOn();
    }
    subject.process.kill();
  },

  /** A VM that maps its image privately: only what it has changed is protected and copied. */
  changes: async () => {
    const subject = await Subject.start('private', 100);
    const before = subject.memory();
    await subject.process.must('stop');
    await subject.process.must('write');
    const copy = subject.arm(subject.memfd);
    await subject.process.must('go');
    const target = native.memfdCreate('target');
    assert.is(native.instantTake(copy, target, 2).pages, 100);
    native.instantClose(copy);
    assert.ok(before.equals(contents(target)));
    await subject.goesOn();
    subject.process.kill();
  },

  /** The file system fills up, or the like: nobody waits for ever. */
  failing: async () => {
    const subject = await Subject.start('shared');
    await subject.process.must('write');
    const copy = subject.arm();
    subject.waited();
    const unwritable = native.memfdCreate('target');
    native.memfdSeal(unwritable, ['write']);
    assert.is(
      code(() => native.instantTake(copy, unwritable, 2)),
      'EPERM',
    );
    await subject.goesOn();
    assert.is(
      code(() => native.instantTake(copy, unwritable, 2)),
      'EINVAL',
    );
    assert.ok(native.instantClose(copy));
    assert.not(native.instantClose(copy));
    subject.process.kill();
  },

  /** Armed and given up. */
  closed: async () => {
    const subject = await Subject.start('shared');
    await subject.process.must('write');
    const copy = subject.arm();
    subject.waited();
    native.instantClose(copy);
    await subject.goesOn();
    subject.process.kill();
  },

  killed: async () => {
    const subject = await Subject.start('shared');
    await subject.process.must('write');
    const copy = subject.arm();
    subject.waited();
    subject.process.kill();
    const target = native.memfdCreate('target');
    while ((await subject.process.answer()) !== null);
    assert.is(
      code(() => native.instantTake(copy, target, 2)),
      'ESRCH',
    );
    native.instantClose(copy);
    assert.is(
      code(() => subject.arm()),
      'ESRCH',
    );
  },

  /** Memory that is given back before it was copied cannot be had any more: said, not papered over. */
  dropped: async () => {
    const subject = await Subject.start('private');
    await subject.process.must('write');
    const copy = subject.arm();
    subject.waited();
    await subject.process.must('drop');
    const target = native.memfdCreate('target');
    // One that stores, and one that drops: it waits until the event is read, which the copy does.
    const waiting = () =>
      readdirSync(`/proc/${subject.process.pid}/task`).filter((thread) =>
        readFileSync(`/proc/${subject.process.pid}/task/${thread}/wchan`, 'utf8').includes('userfault'),
      ).length;
    for (const end = Date.now() + PATIENCE_MS; waiting() < 2; await new Promise((resolve) => setTimeout(resolve, 1)))
      if (Date.now() > end) throw new Error('nobody drops');
    assert.is(
      code(() => native.instantTake(copy, target, 1)),
      'EBUSY',
    );
    native.instantClose(copy);
    await subject.goesOn();
    subject.process.kill();
  },
};

const run = scenarios[scenario];
if (!run) throw new Error(`no scenario '${scenario}'`);
await run();
console.log('null');
process.exit();
