// The fault server against processes that fault (faulter.c): `faults.js FAULTER SCENARIO`. Prints `null`, or fails.
import * as assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as after } from 'node:timers/promises';
import { ABSENT, CHUNK_BYTES, PRESENT } from '../../../src/contract/page-map.js';
import { type FaultCounts, faultCounts, faultLatenciesNs } from '../../../src/contract/fault-stats.js';
import { native } from '../../../src/native/binding.js';
import { ALL_FEATURES, chunkIsZero, FEATURES, Faulter, makeImage, makeLayer, Served } from '../faults.js';
import { exitOf, settledFdCount } from '../process.js';

const PER = CHUNK_BYTES / 4096;
const CHUNKS = 256;
const PAGES = CHUNKS * PER;
/** Longer than any thread waits for a processor. */
const PATIENT_US = 60_000_000;
const SIGKILL = 9;
const SIGBUS = 7;
const [program = '', scenario = ''] = process.argv.slice(2);

const dataChunks = (chunks = CHUNKS) => Array.from({ length: chunks }, (_, i) => i).filter((i) => !chunkIsZero(i));

/** Until it is so; the server's threads change it. */
const until = async (what: string, isSo: () => boolean): Promise<void> => {
  const deadline = Date.now() + 10_000;
  while (!isSo()) {
    if (Date.now() > deadline) throw new Error(`never: ${what}`);
    await after(1);
  }
};

/** Until a thread of it waits for a page. */
const untilWaiting = (faulter: Faulter) =>
  until('it waits', () =>
    readdirSync(`/proc/${faulter.pid}/task`).some((thread) =>
      readFileSync(`/proc/${faulter.pid}/task/${thread}/wchan`, 'utf8').includes('userfault'),
    ),
  );

const untilCount = (served: Served, name: keyof FaultCounts, n: number) =>
  until(`${name} reaches ${n}`, () => faultCounts(served.stats)[name] >= n);

const scenarios: Record<string, () => Promise<void>> = {
  async threads() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving);
    await faulter.must(`check 0 ${PAGES} 8 1`);
    // Every chunk with data was read once, in the order that is written down, and the zeros cost no memory.
    const counts = faultCounts(served.stats);
    assert.equal(counts.filled, dataChunks().length);
    assert.equal(counts.failed, 0);
    assert.equal(counts.faults, counts.answered);
    assert.deepEqual(
      [...served.faultOrder].sort((a, b) => a - b),
      dataChunks(),
    );
    assert.equal(native.fdSize(served.memfd).allocated, dataChunks().length * CHUNK_BYTES);
    assert.equal(faultLatenciesNs(served.stats).length, counts.answered);
    assert.ok(faultLatenciesNs(served.stats).every((ns) => ns > 0));
    assert.equal(served.map.counts().present, CHUNKS);
    await serving.close(); // it may: all is there
    await faulter.must(`check 0 ${PAGES} 1 2`);
  },

  async twoThreads() {
    const served = new Served(CHUNKS);
    // Patient: a thread that is not let run for a while would have its chunk taken over, and rightly filled by both.
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) }, 2, PATIENT_US);
    const faulter = await new Faulter(program, served).join(serving);
    await faulter.must(`check 0 ${PAGES} 8 1`);
    const { filled, takenOver } = faultCounts(served.stats);
    assert.deepEqual({ filled, takenOver }, { filled: dataChunks().length, takenOver: 0 });
    await serving.close();
  },

  /** Two servers of one image, from a layer and from a file, each for two processes. */
  async twoServers() {
    const served = new Served(CHUNKS);
    const image = makeImage(CHUNKS);
    const servings = [
      served.serve({ source: native.sourceOpen([makeLayer(image)]) }),
      served.serve({ sourceFd: image }, 2),
    ];
    const faulters = await Promise.all([0, 1, 0, 1].map((i) => new Faulter(program, served).join(servings[i]!)));
    await Promise.all(faulters.map((faulter, i) => faulter.must(`check 0 ${PAGES} 4 ${i}`)));
    const { filled, takenOver } = faultCounts(served.stats);
    assert.ok(filled >= dataChunks().length && filled <= dataChunks().length + takenOver);
    for (const serving of servings) await serving.close();
  },

  async layer() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ source: native.sourceOpen([makeLayer(makeImage(CHUNKS))]) });
    const faulter = await new Faulter(program, served).join(serving);
    await faulter.must(`check 0 ${PAGES} 2 1`);
    await faulter.must(`write 0 ${PAGES}`);
    assert.equal(faultCounts(served.stats).filled, dataChunks().length);
    await serving.close();
  },

  async fork() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) }, 2);
    const faulter = await new Faulter(program, served).join(serving);
    await faulter.must('fork 3');
    assert.equal(faultCounts(served.stats).forks, 3);
    await faulter.must(`check 0 ${PAGES} 1 1`);
    await serving.close();
  },

  /** A hundred children that touch and end, several times: no descriptor stays. */
  async leaks() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving);
    const before = await settledFdCount();
    for (let round = 1; round <= 4; round++) {
      const pids = (await faulter.must('forks 100')).trim().split(' ').map(Number);
      await untilCount(served, 'forks', round * 100);
      assert.equal(native.faultSweep(serving.handle), 101);
      for (const pid of pids) process.kill(pid, SIGKILL);
      await faulter.must('reap');
      assert.equal(native.faultSweep(serving.handle), 1);
    }
    // Fewer, where one that was closing was still counted before.
    assert.ok((await settledFdCount()) <= before);
    await faulter.must(`check 0 ${PAGES} 1 1`);
    await serving.close();
  },

  /** What ended is let go without being asked, when there is much of it. */
  async selfSweep() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving);
    const before = await settledFdCount();
    for (let round = 1; round <= 10; round++) {
      const pids = (await faulter.must('forks 20')).trim().split(' ').map(Number);
      await untilCount(served, 'forks', round * 20);
      for (const pid of pids) process.kill(pid, SIGKILL);
      await faulter.must('reap');
    }
    assert.ok((await settledFdCount()) - before < 64);
    await faulter.must(`check 0 ${PAGES} 1 1`);
    await serving.close();
  },

  /** Dropped pages of a memfd come back as the image. */
  async remove() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving);
    await faulter.must(`check 0 ${PAGES / 2} 1 1`);
    await faulter.must(`drop 8 ${PAGES / 2 + 100}`);
    await faulter.must(`check 0 ${PAGES} 2 1`);
    assert.ok(faultCounts(served.stats).changes > 0);
    await serving.close();
  },

  async move() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving);
    // Across the border of the two regions, and not aligned to chunks.
    await faulter.must(`move ${PAGES / 2 - 40} 100`);
    await faulter.must(`check 0 ${PAGES / 2 - 40} 1 1`);
    await faulter.must(`check ${PAGES / 2 + 60} ${PAGES / 2 - 60} 1 1`);
    await serving.stop();
    faulter.kill();
    await exitOf(faulter.pidfd);
    native.faultClose(serving.handle, served.map.states);
  },

  async copy() {
    const served = new Served(CHUNKS, { copies: true });
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) }, 2);
    const faulter = await new Faulter(program, served).join(serving, 'anonymous');
    const other = await new Faulter(program, served).join(serving, 'anonymous');
    await faulter.must(`check 0 ${PAGES / 2} 4 1`);
    await faulter.must('fork 3');
    await other.must(`check 0 ${PAGES} 4 1`);
    await faulter.must(`check 0 ${PAGES} 4 1`);
    assert.equal(native.fdSize(served.memfd).allocated, 0);
    assert.deepEqual(
      [...served.faultOrder].sort((a, b) => a - b),
      dataChunks(),
    );
    await serving.stop();
    assert.throws(() => native.faultClose(serving.handle, served.map.states), /EBUSY/);
    native.faultClose(serving.handle, served.map.states, true);
    faulter.kill();
    other.kill();
  },

  /** Dropped pages of anonymous memory come back as zeros, and only those. */
  async copyRemove() {
    const served = new Served(CHUNKS, { copies: true });
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving, 'anonymous');
    await faulter.must(`check 0 20 1 1`);
    await faulter.must('drop 10 100');
    await faulter.must('zero 60 50');
    await faulter.must('zero 10 100');
    await faulter.must('check 0 10 1 1');
    await faulter.must(`check 110 ${PAGES - 110} 2 1`);
    // Chunk 0 was there but for what was dropped; of the chunk of page 109 the rest comes from the image.
    faulter.kill();
    await exitOf(faulter.pidfd);
    await serving.close();
  },

  async copyMove() {
    const served = new Served(CHUNKS, { copies: true });
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving, 'anonymous');
    await faulter.must('move 100 60');
    await faulter.must('check 0 100 1 1');
    await serving.stop();
    faulter.kill();
    await exitOf(faulter.pidfd);
    native.faultClose(serving.handle, served.map.states);
  },

  /** Killed while it waits for a page that nobody serves yet. */
  async killed() {
    const served = new Served(CHUNKS);
    const image = makeImage(CHUNKS);
    const serving = served.serve({ sourceFd: image }, 0);
    const victim = await new Faulter(program, served).join(serving);
    const other = await new Faulter(program, served).join(serving);
    for (const faulter of [victim, other]) faulter.tell(`check 0 ${PAGES} 4 1`);
    for (const faulter of [victim, other]) await untilWaiting(faulter);
    victim.kill();
    await exitOf(victim.pidfd);
    serving.addThread();
    assert.equal(await other.answer(), 'ok');
    assert.equal(native.faultSweep(serving.handle), 1);
    await serving.close();
  },

  /** Killed at any moment, while the servers work for it. */
  async killedAnytime() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) }, 2);
    for (let round = 0; round < 20; round++) {
      const victim = await new Faulter(program, served).join(serving);
      victim.tell(round % 2 ? 'fork 3' : `check 0 ${PAGES} 4 ${round}`);
      await after(round);
      victim.kill();
      await exitOf(victim.pidfd);
    }
    const last = await new Faulter(program, served).join(serving);
    await last.must(`check 0 ${PAGES} 4 1`);
    assert.equal(faultCounts(served.stats).failed, 0);
    await until('only the last lives', () => native.faultSweep(serving.handle) === 1);
    await serving.close();
  },

  /** A thread that claimed a chunk and ended: after a while another fills it. One that gives up is followed at once. */
  async vanished() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) }, 1, 20_000);
    const faulter = await new Faulter(program, served).join(serving);
    assert.ok(served.map.claim(0) && served.map.claim(1));
    faulter.tell(`check ${PER} ${PER} 1 1`);
    await untilCount(served, 'waited', 1);
    served.map.settle(1, false);
    assert.equal(await faulter.answer(), 'ok');
    assert.equal(faultCounts(served.stats).takenOver, 0);
    const began = performance.now();
    await faulter.must(`check 0 ${PER} 1 1`);
    assert.ok(performance.now() - began >= 19);
    assert.equal(faultCounts(served.stats).takenOver, 1);
    assert.equal(served.map.states[0], PRESENT);
    assert.equal(served.map.settle(0, false), false); // the first comes back too late to spoil it
    await faulter.must(`check 0 ${PAGES} 4 1`);
    await serving.close();
  },

  /** Damage in one chunk ends whoever touches it, with the reason; others live. */
  async damaged() {
    const served = new Served(CHUNKS);
    const layer = makeLayer(makeImage(CHUNKS));
    const bad = dataChunks().at(-1)!;
    const frameBytes = (PER - 1) * 4096; // one page of each is zero
    const at = 4096 + (dataChunks().length - 1) * frameBytes + 5_000;
    const byte = new Uint8Array(1);
    native.fdRead(layer, byte, at);
    native.fdWrite(layer, Uint8Array.of((byte[0] ?? 0) ^ 1), at);
    const serving = served.serve({ source: native.sourceOpen([layer]) });
    const [victim, other] = [new Faulter(program, served), new Faulter(program, served)];
    await victim.join(serving);
    await other.join(serving);
    await victim.must(`check 0 ${PAGES / 2} 1 1`);
    victim.tell(`check ${bad * PER} 1 1 1`);
    assert.equal((await exitOf(victim.pidfd)).signal, SIGKILL);
    const [failure, ...more] = native.faultFailures(serving.handle);
    assert.match(failure?.reason ?? '', /hash mismatch/);
    assert.deepEqual({ ...failure, reason: '' }, { pid: victim.pid, chunk: bad, reason: '', outcome: 'killed' });
    assert.deepEqual(more, []);
    await other.must(`check 0 ${bad * PER} 2 1`);
    assert.deepEqual(native.faultFailures(serving.handle), []);
    assert.equal(served.map.states[bad], ABSENT);
    // A child is ended alone: its parent, who has not touched the chunk, hears of it.
    assert.match((await other.ask('fork 1')) ?? '', /a child ended with 0x9$/);
    await other.must(`check 0 ${bad * PER} 2 1`);
    await serving.close(true);
  },

  /** Someone who reads the memory of another is not to blame for it, and may be anyone: even this process. */
  async damagedForAnother() {
    const served = new Served(CHUNKS);
    const source = makeImage(CHUNKS);
    const serving = served.serve({ sourceFd: source });
    const faulter = await new Faulter(program, served).join(serving);
    const reader = new Faulter(program, served);
    const base = Number(await faulter.must('where'));
    native.fdResize(source, 16 * CHUNK_BYTES);
    assert.equal(await reader.ask(`peek ${faulter.pid} ${base}`), 'ok');
    assert.match((await reader.ask(`peek ${faulter.pid} ${base + 20 * CHUNK_BYTES}`)) ?? '', /^fail process_vm_readv/);
    // It is written down after the reader was answered.
    const failures: unknown[] = [];
    await until('the failure is told', () => failures.push(...native.faultFailures(serving.handle)) > 0);
    assert.deepEqual(failures, [{ pid: null, chunk: 20, reason: 'the file has become shorter', outcome: 'poisoned' }]);
    await faulter.must(`check 0 ${16 * PER} 1 1`);
    faulter.tell(`check ${20 * PER} 1 1 1`);
    assert.equal((await exitOf(faulter.pidfd)).signal, SIGBUS);
    await serving.close();
  },

  /** Without thread ids the process is the one that the caller knows. */
  async withoutThreadId() {
    const served = new Served(CHUNKS);
    const source = makeImage(CHUNKS);
    const serving = served.serve({ sourceFd: source });
    const faulter = new Faulter(program, served);
    await faulter.must('map private 0');
    const { uffd, regions } = await faulter.hand('regions');
    assert.throws(() => native.faultAdopt(serving.handle, uffd, regions), /made without thread_id/);
    native.faultAdopt(serving.handle, uffd, regions, faulter.pidfd);
    native.fdClose(uffd);
    await faulter.must(`check 0 ${PAGES / 2} 2 1`);
    native.fdResize(source, CHUNK_BYTES);
    faulter.tell(`check ${PAGES / 2} ${PAGES / 2} 1 1`);
    assert.equal((await exitOf(faulter.pidfd)).signal, SIGKILL);
    assert.equal(native.faultFailures(serving.handle)[0]?.pid, faulter.pid);
    await until('it was let go', () => native.faultSweep(serving.handle) === 0);
    await serving.close();
  },

  async features() {
    const served = new Served(CHUNKS, { copies: true });
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = new Faulter(program, served);
    await faulter.must(`map anonymous ${FEATURES.eventFork.toString(16)}`);
    const { uffd, regions } = await faulter.hand('regions');
    assert.throws(() => native.faultAdopt(serving.handle, uffd, regions), {
      code: 'ENOTSUP',
      message: 'the userfaultfd was made without event_remove thread_id',
    });
    // A fork leaves the pidfd behind.
    assert.throws(() => native.faultAdopt(serving.handle, uffd, regions, faulter.pidfd), /event_remove thread_id/);
    const [region] = regions;
    assert.throws(() => native.faultAdopt(serving.handle, uffd, []), /at least one region/);
    assert.throws(() => native.faultAdopt(serving.handle, uffd, [{ ...region!, offset: 1 }]), /whole pages/);
    assert.throws(() => native.faultAdopt(serving.handle, uffd, [{ ...region!, offset: 1e15 }]), /offset/);
    assert.throws(() => native.faultAdopt(serving.handle, uffd, [{ ...region!, bytes: 1 << 30 }]), /inside the image/);
    assert.throws(() => native.faultAdopt(serving.handle, served.memfd, regions), /EINVAL.*fdinfo/);
    assert.throws(() => native.faultAdopt(99, uffd, regions), /server: expected/);
    native.fdClose(uffd);
    await serving.close();
  },

  async handshakes() {
    const served = new Served(CHUNKS);
    const faulter = new Faulter(program, served);
    await faulter.must(`map private ${ALL_FEATURES.toString(16)}`);
    const before = await settledFdCount();
    await assert.rejects(faulter.hand('{"not": "an array"}'), { code: 'MEMORY_HANDSHAKE', message: /not an array/ });
    assert.equal(await settledFdCount(), before);
    faulter.kill();
  },

  /** Chunks that were filled ahead: no fault reads them again. Stopping ends a fill. */
  async ahead() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ source: native.sourceOpen([makeLayer(makeImage(CHUNKS))]) });
    const faulter = await new Faulter(program, served).join(serving);
    const all = Uint32Array.from({ length: CHUNKS }, (_, i) => CHUNKS - 1 - i);
    const { states } = served.map;
    native.threadIdlePriority(true);
    assert.deepEqual(native.faultFill(serving.handle, states, served.stats, all.subarray(0, CHUNKS / 2)), {
      filled: CHUNKS / 2,
      skipped: 0,
    });
    native.threadIdlePriority(false);
    await faulter.must(`check 0 ${PAGES} 2 1`);
    assert.equal(faultCounts(served.stats).filled, dataChunks().length);
    assert.ok(served.faultOrder.every((chunk) => chunk < CHUNKS / 2));
    assert.deepEqual(native.faultFill(serving.handle, states, served.stats, all), { filled: 0, skipped: CHUNKS });
    assert.throws(() => native.faultFill(serving.handle, states, served.stats, Uint32Array.of(CHUNKS)), /chunks/);
    await serving.stop();
    states.fill(0);
    assert.equal(native.faultFill(serving.handle, states, served.stats, all).filled, 0);
    faulter.kill();
    await exitOf(faulter.pidfd);
    await serving.close();
  },

  /** A process that maps the memfd without a server makes pages of zeros. They do not stay. */
  async pollution() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const into = new Uint8Array(CHUNK_BYTES);
    const faulter = new Faulter(program, served);
    await faulter.join(serving);
    const stranger = new Faulter(program, served);
    await stranger.must('map private 0');
    const { uffd } = await stranger.hand('regions');
    native.fdClose(uffd); // nobody serves it: its memory is what the memfd has
    await stranger.must(`zero 0 ${PAGES}`);
    native.fdRead(served.memfd, into, 0);
    assert.ok(into.every((value) => value === 0));
    native.faultFill(
      serving.handle,
      served.map.states,
      served.stats,
      Uint32Array.from({ length: CHUNKS }, (_, i) => i),
    );
    await faulter.must(`check 0 ${PAGES} 2 1`);
    await stranger.must(`check 0 ${PAGES} 2 1`);
    await serving.close();
  },

  /** Not while someone would read zeros instead of waiting. */
  async closing() {
    const served = new Served(CHUNKS);
    const serving = served.serve({ sourceFd: makeImage(CHUNKS) });
    const faulter = await new Faulter(program, served).join(serving);
    await faulter.must(`check 0 ${PER} 1 1`);
    assert.throws(() => native.faultClose(serving.handle, served.map.states), { code: 'EBUSY' });
    assert.throws(() => native.faultClose(serving.handle, served.map.states, true), { code: 'EBUSY' });
    await serving.stop();
    assert.throws(() => native.faultClose(serving.handle, served.map.states), { code: 'EBUSY' });
    faulter.tell(`check ${PER} ${PER} 1 1`);
    await untilWaiting(faulter);
    native.faultClose(serving.handle, served.map.states, true);
    assert.equal((await exitOf(faulter.pidfd)).signal, SIGKILL);
    assert.throws(() => native.faultClose(serving.handle, served.map.states), /server: expected/);
  },
};

const run = scenarios[scenario];
if (!run) throw new Error(`no scenario '${scenario}'`);
await run();
console.log('null');
process.exit();
