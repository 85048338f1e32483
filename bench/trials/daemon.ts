import { setTimeout as pause } from 'node:timers/promises';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BenchDaemon } from '../daemon.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

/** The same thing, done by an engine in this process and through the REST API of a daemon, in turns. */
interface Both {
  direct: number[];
  rest: number[];
}

interface Trial {
  fresh: Both;
  spawn1: Both;
  fan: Both;
  eval: Both;
  exec: Both;
  ping: Both;
  evals: number;
  load_secs: number;
  many: { made: number; spawn_ms: number; list_ms: number; scrape_ms: number; kill_ms: number };
  cycles: { made: number; secs: number; grown_kib: number; grown_descriptors: number };
  errors: number;
  first_error: string | null;
}

const EVAL = { code: FIRST_EVAL };
const EXEC = { args: ['/bin/true'] };
/** Calls before the clock counts: the child's translated code for them is part of being warm. */
const WARM_CALLS = 50;
/** A sandbox's first calls copy what it has in common with its template. */
const LOAD_WARM_MS = 2000;
/** Of a daemon that has just begun, whose own code is not compiled yet. */
const FRESH_CALLS = 50;
/** Requests under way at once where sandboxes are killed. */
const KILLERS = 8;
/** Between two spawns: what died is cleared away. */
const REST_MS = 20;
/** Longest that spares may take to be made anew. */
const FILL_MS = 10_000;

const timed = async (times: number[], work: () => Promise<unknown>): Promise<void> => {
  const began = performance.now();
  await work();
  times.push(performance.now() - began);
};

const spawn = async (daemon: BenchDaemon, n: number): Promise<string[]> => {
  const body = { snapshot_tag: BENCH_TAG, n };
  const made = await daemon.json<{ id: string; status: string }[]>('POST', '/v1/sandboxes', body);
  daemon.expect(made?.length === n, `${made?.length} of ${n} sandboxes`);
  return (made ?? []).map(({ id }) => id);
};

const kill = async (daemon: BenchDaemon, ids: string[]): Promise<void> => {
  const left = [...ids];
  const work = async () => {
    for (let id = left.pop(); id !== undefined; id = left.pop()) await daemon.text('DELETE', `/v1/sandboxes/${id}`);
  };
  await Promise.all(Array.from({ length: KILLERS }, work));
};

const evaluate = async (daemon: BenchDaemon, id: string): Promise<void> => {
  const reply = await daemon.json<{ result: string }>('POST', `/v1/sandboxes/${id}/eval`, EVAL);
  daemon.expect(reply === undefined || reply.result === FIRST_ANSWER, `eval answered ${reply?.result}`);
};

/** A spawn that comes while spares are made waits for them: neither side is to be measured so. */
const rested = async (spares: number, have: () => Promise<number>): Promise<void> => {
  await pause(REST_MS);
  for (const end = performance.now() + FILL_MS; (await have()) < spares && performance.now() < end; )
    await pause(REST_MS);
};

const sparesOf = async (daemon: BenchDaemon): Promise<number> =>
  Number(/^forkd_spares (\d+)$/m.exec((await daemon.text('GET', '/metrics')) ?? '')?.[1] ?? 0);

interface Sides {
  engine: Engine;
  daemon: BenchDaemon;
  spares: number;
}

const spawns = async ({ engine, daemon, spares }: Sides, n: number, count: number): Promise<Both> => {
  const both: Both = { direct: [], rest: [] };
  for (let i = 0; i < count; i++) {
    await timed(both.direct, async () => {
      const { failures } = await engine.fork({ tag: BENCH_TAG, n });
      daemon.expect(failures.length === 0, `${failures.length} of ${n} children failed`);
    });
    await engine.kill(engine.sandboxes);
    await rested(spares, async () => engine.state().spares);
    let ids: string[] = [];
    await timed(both.rest, async () => {
      ids = await spawn(daemon, n);
    });
    await kill(daemon, ids);
    await rested(spares, () => sparesOf(daemon));
  }
  return both;
};

/** Calls by the engine of one sandbox, and through the daemon of another, in turns. */
class Pair {
  private constructor(
    readonly engine: Engine,
    readonly daemon: BenchDaemon,
    readonly here: Sandbox,
    readonly there: string,
  ) {}

  static async make({ engine, daemon }: Sides): Promise<Pair> {
    const { sandboxes } = await engine.fork({ tag: BENCH_TAG, n: 1 });
    const [there = ''] = await spawn(daemon, 1);
    return new Pair(engine, daemon, sandboxes[0] as Sandbox, there);
  }

  async end(): Promise<void> {
    await this.engine.kill([this.here]);
    await kill(this.daemon, [this.there]);
  }

  eval = (count: number) =>
    this.#both(
      count,
      () => this.engine.eval(this.here.id, FIRST_EVAL),
      () => evaluate(this.daemon, this.there),
    );

  exec = (count: number, warm = WARM_CALLS) =>
    this.#both(
      count,
      () => this.engine.exec(this.here.id, EXEC.args),
      () => this.daemon.text('POST', `/v1/sandboxes/${this.there}/exec`, EXEC),
      warm,
    );

  ping = (count: number) =>
    this.#both(
      count,
      () => this.engine.ping(this.here.id),
      () => this.daemon.text('POST', `/v1/sandboxes/${this.there}/ping`),
    );

  /** Until the daemon is as it is when it has served for a while: what it runs for each request is compiled. */
  async serve(evals: number): Promise<void> {
    for (let i = 0; i < evals; i++) await evaluate(this.daemon, this.there);
  }

  async #both(count: number, direct: () => Promise<unknown>, rest: () => Promise<unknown>, warm = WARM_CALLS) {
    const times: Both = { direct: [], rest: [] };
    for (let i = 0; i < count + warm; i++) {
      await timed(times.direct, direct);
      await timed(times.rest, rest);
    }
    return { direct: times.direct.slice(warm), rest: times.rest.slice(warm) };
  }
}

/** Each sandbox has a caller that asks again as soon as it has its answer. */
const load = async (daemon: BenchDaemon, sandboxes: number, secs: number): Promise<number> => {
  const ids = await spawn(daemon, sandboxes);
  let evals = 0;
  const during = async (ms: number) => {
    evals = 0;
    const end = performance.now() + ms;
    const caller = async (id: string) => {
      while (performance.now() < end) {
        await evaluate(daemon, id);
        evals++;
      }
    };
    await Promise.all(ids.map(caller));
  };
  await during(LOAD_WARM_MS);
  await during(secs * 1000);
  await kill(daemon, ids);
  return evals;
};

const manySandboxes = async (daemon: BenchDaemon, n: number): Promise<Trial['many']> => {
  const took: number[] = [];
  let ids: string[] = [];
  await timed(took, async () => {
    ids = await spawn(daemon, n);
  });
  await timed(took, async () => {
    const listed = await daemon.json<object[]>('GET', '/v1/sandboxes');
    daemon.expect(listed?.length === ids.length, `${listed?.length} listed`);
  });
  await timed(took, async () => {
    const text = await daemon.text('GET', '/metrics');
    const private_ = text?.match(/^forkd_sandbox_memory_bytes\{.*kind="private"\} [1-9]/gm)?.length;
    daemon.expect(private_ === ids.length, `${private_} scraped`);
  });
  await timed(took, () => kill(daemon, ids));
  const left = await daemon.json<object[]>('GET', '/v1/sandboxes');
  daemon.expect(left?.length === 0, `${left?.length} left`);
  const [spawn_ms = 0, list_ms = 0, scrape_ms = 0, kill_ms = 0] = took;
  return { made: ids.length, spawn_ms, list_ms, scrape_ms, kill_ms };
};

/**
 * Spawn and kill, one after another; the first tenth is not counted: caches fill. Memory is the least that was seen in a tenth
 * of them, the second and the last: between two collections of garbage it goes up and down by more than a leak would show.
 */
const manyCycles = async (daemon: BenchDaemon, count: number): Promise<Trial['cycles']> => {
  const tenth = async () => {
    let least = daemon.state();
    for (let i = 0; i < count / 10; i++) {
      await kill(daemon, await spawn(daemon, 1));
      const now = daemon.state();
      if (now.anon_kib < least.anon_kib) least = now;
    }
    return least;
  };
  await tenth();
  const began = performance.now();
  const before = await tenth();
  let after = before;
  for (let i = 0; i < 8; i++) after = await tenth();
  return {
    made: count,
    secs: (performance.now() - began) / 1000,
    grown_kib: after.anon_kib - before.anon_kib,
    grown_descriptors: after.descriptors - before.descriptors,
  };
};

/** Says what a step found as soon as it has: the whole takes minutes. */
const told = async <T>(step: string, work: () => Promise<T>): Promise<T> => {
  const result = await work();
  const texts = JSON.stringify(result, (_, value) => (Array.isArray(value) ? spread(value as number[]) : value));
  process.stderr.write(`==> ${step}: ${texts}\n`);
  return result;
};

const trial = async (parameters: Parameters): Promise<Trial> => {
  const {
    n,
    spawns: singles,
    fans,
    calls: count,
    sandboxes,
    load_secs,
    many,
    cycles,
    spares,
    served,
  } = parameters as Record<string, number>;
  const engine = new Engine({ resident: true, eager: true, spares: spares as number });
  const daemon = await BenchDaemon.start(['--eager', '--spares', String(spares), '--log-level', 'warn']);
  const sides = { engine, daemon, spares: spares as number };
  try {
    await spawns(sides, 1, 3);
    const pair = await Pair.make(sides);
    await pair.exec(0);
    const fresh = await told('exec of a fresh daemon', () => pair.exec(FRESH_CALLS, 0));
    await pair.serve(served as number);
    const called = {
      eval: await told('eval', () => pair.eval(count as number)),
      exec: await told('exec', () => pair.exec(count as number)),
      ping: await told('ping', () => pair.ping(count as number)),
    };
    await pair.end();
    await rested(sides.spares, () => sparesOf(daemon));
    const spawn1 = await told('spawn 1', () => spawns(sides, 1, singles as number));
    const fan = await told(`spawn ${n}`, () => spawns(sides, n as number, fans as number));
    await engine.close();
    const evals = await told('load', () => load(daemon, sandboxes as number, load_secs as number));
    const crowd = await told(`${many} sandboxes`, () => manySandboxes(daemon, many as number));
    const lived = await told(`${cycles} cycles`, () => manyCycles(daemon, cycles as number));
    const { errors, firstError } = daemon;
    return {
      ...{ fresh, spawn1, fan, ...called, evals, load_secs: load_secs as number, many: crowd, cycles: lived, errors },
      first_error: firstError ?? null,
    };
  } finally {
    await daemon.stop();
    await engine.close();
  }
};

const beside = ({ direct, rest }: Both) => ({ direct: spread(direct), rest: spread(rest) });
const ratio = ({ direct, rest }: Both) => median(rest) / median(direct);
const overhead = ({ direct, rest }: Both) => median(rest) - median(direct);

export const daemonBench: Bench<Trial> = {
  name: 'daemon',
  description:
    'What the daemon adds, load from a second process over its Unix socket. Each pair is measured in turns with an engine in that process, ' +
    'with a template and spares of its own, all of which are there again before the next spawn. spawn1_ratio, spawnN_ratio: POST /v1/sandboxes until 201 with the children ready over ' +
    'Engine.fork, p50. *_overhead_ms: a call through REST less the same call by the engine, p50, of a daemon that has answered `served` evals: by then its code is compiled; fresh_exec_overhead_ms of one that has just begun. evals_per_s: a caller for each of ' +
    '`sandboxes`, after two seconds of the same. many: so many sandboxes spawned at once, listed, scraped and killed. cycles: spawn and kill, and what the daemon has grown by. ' +
    'errors: answers that were not 2xx or were wrong.',
  full: {
    ...{ n: 100, trials: 1, spawns: 100, fans: 7, calls: 500, served: 3000 },
    ...{ sandboxes: 50, load_secs: 10, many: 1000, cycles: 2000, spares: 4 },
  },
  smoke: {
    ...{ n: 3, trials: 1, spawns: 2, fans: 1, calls: 5, served: 5 },
    ...{ sandboxes: 3, load_secs: 1, many: 5, cycles: 3, spares: 2 },
  },
  trial,
  summarise: (trials, { n }) => {
    const mid = (pick: (t: Trial) => number) => round(median(trials.map(pick)));
    const errors = trials.reduce((sum, t) => sum + t.errors, 0);
    return {
      n,
      spawn1_ratio: mid((t) => ratio(t.spawn1)),
      [`spawn${n}_ratio`]: mid((t) => ratio(t.fan)),
      eval_overhead_ms: mid((t) => overhead(t.eval)),
      exec_overhead_ms: mid((t) => overhead(t.exec)),
      ping_overhead_ms: mid((t) => overhead(t.ping)),
      fresh_exec_overhead_ms: mid((t) => overhead(t.fresh)),
      evals_per_s: mid((t) => t.evals / t.load_secs),
      errors,
      failed: errors,
      first_error: trials.find((t) => t.first_error !== null)?.first_error ?? null,
      spawn1_ms: trials.map((t) => beside(t.spawn1)),
      spawn_n_ms: trials.map((t) => beside(t.fan)),
      eval_ms: trials.map((t) => beside(t.eval)),
      fresh_exec_ms: trials.map((t) => beside(t.fresh)),
      exec_ms: trials.map((t) => beside(t.exec)),
      ping_ms: trials.map((t) => beside(t.ping)),
      many: trials.map((t) => t.many),
      cycles: trials.map((t) => t.cycles),
    };
  },
};
