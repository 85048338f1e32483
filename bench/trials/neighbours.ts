import { setTimeout as pause } from 'node:timers/promises';
import { ForkdError } from '../../src/contract/errors.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { round, spread } from '../stats.js';

type Bomb = (engine: Engine, child: Sandbox) => Promise<unknown>;

const program =
  (script: string): Bomb =>
  (engine, { id }) =>
    engine.exec(id, ['sh', '-c', script], NEVER_SECS);

/** Frames that nobody asked for, written by the agent's own process into its port: the code that is evaluated runs there. */
const AGENT_FLOOD = `
import os
port = next(int(fd) for fd in os.listdir('/proc/self/fd') if 'vport' in os.readlink('/proc/self/fd/' + fd))
frames = bytes.fromhex('464b02004d00000002000000') + b'{}'
while True:
    try: os.write(port, frames * 2000)
    except BlockingIOError: pass
`;

const NEVER_SECS = 600;

/** What one guest does while another is asked. */
const BOMBS: Record<string, Bomb> = {
  none: async () => undefined,
  cpu: program('while :; do :; done'),
  forks: program('b() { b | b & }; b; sleep 600'),
  memory: program("while :; do python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'; done"),
  disk: program('while :; do dd if=/dev/zero of=/full bs=1M; rm /full; done'),
  console: program('yes >/dev/console'),
  output: async (engine, { id }) => {
    let bytes = 0;
    for await (const piece of engine.execStream(id, { args: ['yes'] })) bytes += piece.data.length;
    return bytes;
  },
  frames: (engine, { id }) => engine.eval(id, AGENT_FLOOD, NEVER_SECS * 1000),
};

/** It has begun by then. */
const BEGIN_MS = 500;
const PAUSE_MS = 5;

interface Trial {
  latencies: Record<string, number[]>;
  failed: number;
}

const trial = async ({ n, secs }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true });
  const latencies: Record<string, number[]> = {};
  let failed = 0;
  try {
    for (const [name, bomb] of Object.entries(BOMBS)) {
      const { sandboxes } = await engine.fork({ tag: BENCH_TAG, n: n + 1, firstEval: FIRST_EVAL });
      const [one, ...others] = sandboxes as [Sandbox, ...Sandbox[]];
      // It ends with its VM; one that ends by itself is none.
      let over = name !== 'none';
      const bursting = bomb(engine, one)
        .catch((error: unknown) => ForkdError.from(error))
        .finally(() => {
          over = !over;
        });
      await pause(BEGIN_MS);
      const times: number[] = [];
      for (const end = performance.now() + Number(secs) * 1000; performance.now() < end; await pause(PAUSE_MS)) {
        const asked = performance.now();
        const { result } = await engine.eval((others[times.length % n] as Sandbox).id, FIRST_EVAL);
        times.push(performance.now() - asked);
        if (result !== FIRST_ANSWER) failed++;
      }
      latencies[name] = times;
      if (!over) failed++;
      await engine.kill(sandboxes);
      await bursting;
    }
    return { latencies, failed };
  } finally {
    await engine.close();
  }
};

export const neighbours: Bench<Trial> = {
  name: 'neighbours',
  description:
    'Ask n sandboxes, in turn, over and over while another, forked beside them, does its worst: computes, forks, fills its memory or disk, floods its ' +
    'console, the output of a program, or its agent with frames. eval_ms: how long an answer took, for each. No limits are set.',
  full: { n: 2, trials: 3, secs: 5 },
  smoke: { n: 1, trials: 1, secs: 0.3 },
  trial,
  summarise: (trials, { n }) => {
    const all = Object.keys(BOMBS).map((name) => [name, trials.flatMap((t) => t.latencies[name] ?? [])] as const);
    const spreads = Object.fromEntries(all.map(([name, times]) => [name, spread(times)]));
    const worst = Math.max(...Object.values(spreads).map(({ p99 }) => p99));
    return {
      n,
      eval_ms: spreads,
      worst_p99_ms: round(worst),
      answers: all.reduce((sum, [, times]) => sum + times.length, 0),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
