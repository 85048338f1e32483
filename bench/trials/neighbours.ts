import { setTimeout as pause } from 'node:timers/promises';
import { ForkdError } from '../../src/contract/errors.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { round, spread } from '../stats.js';

/** `enemies`: as many as it needs, most need one. Those are to do it for `secs`. */
type Bomb = (engine: Engine, enemies: [Sandbox, ...Sandbox[]], secs: number) => Promise<unknown>;

const program =
  (...args: string[]): Bomb =>
  (engine, [{ id }]) =>
    engine.exec(id, args, NEVER_SECS);

const script = (text: string): Bomb => program('sh', '-c', text);

/** Frames that nobody asked for, written by the agent's own process into its port: the code that is evaluated runs there. */
const AGENT_FLOOD = `
import os
port = next(int(fd) for fd in os.listdir('/proc/self/fd') if 'vport' in os.readlink('/proc/self/fd/' + fd))
frames = bytes.fromhex('464b02004d00000002000000') + b'{}'
while True:
    try: os.write(port, frames * 2000)
    except BlockingIOError: pass
`;

/** Frames of all kinds with bits turned over. The connection is closed at the first that is none. */
const MALFORMED = `
import os, random, struct
port = next(int(fd) for fd in os.listdir('/proc/self/fd') if 'vport' in os.readlink('/proc/self/fd/' + fd))
random.seed(7)
def frame():
    payload = random.randbytes(random.randrange(60))
    return struct.pack('<HBBII', 0x4B46, random.randrange(9), 0, random.randrange(2000), len(payload)) + payload
data = bytearray(b''.join(frame() for _ in range(2000)))
for _ in range(50): data[random.randrange(len(data))] ^= 1 << random.randrange(8)
while True:
    try: os.write(port, data)
    except BlockingIOError: pass
`;
/** Each has one connection to lose. */
const MALFORMED_ENEMIES = 10;

const CLOCK = `
import time
while True:
    for to in (1e5, 4e9): time.clock_settime(time.CLOCK_REALTIME, to)
`;

const NEVER_SECS = 600;

/** What one guest does while another is asked. */
const BOMBS: Record<string, Bomb> = {
  none: async () => undefined,
  cpu: script('while :; do :; done'),
  forks: script('b() { b | b & }; b; sleep 600'),
  memory: script("while :; do python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'; done"),
  disk: script('while :; do dd if=/dev/zero of=/full bs=1M; rm /full; done'),
  console: script('yes >/dev/console'),
  clock: program('python3', '-c', CLOCK),
  output: async (engine, [{ id }]) => {
    let bytes = 0;
    for await (const piece of engine.execStream(id, { args: ['yes'] })) bytes += piece.data.length;
    return bytes;
  },
  frames: (engine, [{ id }]) => engine.eval(id, AGENT_FLOOD, NEVER_SECS * 1000),
  malformed: async (engine, enemies, secs) => {
    for (const one of enemies) {
      engine.eval(one.id, MALFORMED, NEVER_SECS * 1000).catch(() => undefined);
      await pause((secs * 1000 + BEGIN_MS) / enemies.length);
      // What it does without a connection is computing.
      if (one !== enemies.at(-1)) await engine.kill([one]);
    }
    await enemies.at(-1)?.ended;
  },
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
      const count = name === 'malformed' ? MALFORMED_ENEMIES : 1;
      const { sandboxes } = await engine.fork({ tag: BENCH_TAG, n: n + count, firstEval: FIRST_EVAL });
      const [enemies, others] = [sandboxes.slice(0, count) as [Sandbox, ...Sandbox[]], sandboxes.slice(count)];
      // It ends with its VM; one that ends by itself is none.
      let over = name !== 'none';
      const bursting = bomb(engine, enemies, Number(secs))
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
      if (name === 'malformed' && !enemies.some((one) => one.held().length > 0)) failed++;
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
    'console, the output of a program, or its agent with frames, sets its clock far off and back all the time; or ten, one after another, break the ' +
    'protocol. eval_ms: how long an answer took, for each. No limits are set.',
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
