import { ForkdError } from '../../contract/errors.js';
import type { ExecReply } from '../../contract/guest.js';
import type { CallResult, Engine, ForkResult } from '../../main/engine.js';
import { Desk } from '../../main/sandbox/desk.js';
import type { Sandbox } from '../../main/sandbox/sandbox.js';
import type { Command } from '../command.js';
import { limitOptions, readLimits } from '../limit-options.js';
import type { Options } from '../options.js';
import type { NetworkWish } from '../../contract/network.js';
import { networkOf, networkOptions } from '../network-options.js';
import { type Bind, isLoopback, parseBind } from '../../main/daemon/bind.js';
import { Bar, line, warn } from '../progress.js';
import { printJson, printLine, printRaw } from '../render.js';
import { sleep, withEngine } from '../with-engine.js';

const DEFAULT_SETTLE_SECS = 2;
const DEFAULT_TIMEOUT_SECS = 600;

/** Exit codes above this have a meaning of their own in shells. */
const EXIT_COUNT_MAX = 125;

export const fork: Command = {
  name: 'fork',
  usage: 'fork --tag <TAG> -n <N> [options] [-- CMD ARGS]',
  description: 'Fork N children from a snapshot; with -- CMD, run it in each and collect the results',
  options: [
    ['--tag <TAG>', 'Snapshot to fork'],
    ['-n, --n <N>', 'Number of children (with --input: the number of lines)'],
    ['--input <FILE>', 'One line for each child: {line} in CMD is replaced by it'],
    ['--timeout-secs <N>', `Longest run of CMD, seconds (default ${DEFAULT_TIMEOUT_SECS})`],
    ['--settle-secs <N>', `Keep the children alive this long, seconds (default ${DEFAULT_SETTLE_SECS}; 0 with CMD)`],
    ...networkOptions,
    [
      '--listen <IP:PORT>',
      'Offer the agent of the one child there, on loopback (default: FORKD_TARGET, where it is such an address)',
    ],
    [
      '--per-child-netns',
      'Child i has the network namespace forkd-child-<i>: one that is there, or --net by that name',
    ],
    ...limitOptions,
    ['--strict', 'Refuse to run where a part of the jail or of the limits cannot be enforced (`forkd doctor`)'],
    ['--live-fork', 'A single child, too, is forked from a template, so that it can be promoted while it runs'],
    ['--hugepages', 'Put the memory image on 2 MiB pages where the host has them (needs --live-fork)'],
    ['--eager', 'Load and check all of the memory first, instead of each part when it is touched'],
    ['--cold', 'Restore each child the stock way instead of forking a warmed template'],
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
    ['--keep-workdir', 'Keep the work directory with the console logs'],
    ['--json', 'Print one JSON object for each child, one a line'],
  ],
  examples: [
    'forkd fork --tag quickstart -n 10',
    "forkd fork --tag quickstart -n 10 --json -- python3 -c 'print({index})'",
    'forkd fork --tag quickstart --input urls.txt -- ./fetch {line}',
    'forkd fork --tag quickstart -n 100 --eager',
  ],
  run: (options) => {
    const job = readJob(options);
    return withEngine(async (engine, signal) => {
      const load = new Bar('loading memory');
      const bar = new Bar('forking');
      const result = await engine.fork(job.request, {
        signal,
        onLoad: (done, total) => load.update(Math.floor(done / 2 ** 20), Math.floor(total / 2 ** 20), ' MiB'),
        onReady: (ready) => bar.update(ready, job.request.n),
        onFallback: (reason) => line(`    cold restore: ${reason}`),
        onWeaker: warn,
        keepWorkDir: options.flag('keep-workdir'),
      });
      bar.end();
      const [first] = result.sandboxes;
      if (job.listen && first) await engine.listen(first, job.listen);
      for (const { index, error } of result.failures) warn(`child ${index}: ${error.message}`);
      return job.command.length > 0 ? runCommand(engine, result, job, signal) : settle(engine, result, job, signal);
    });
  },
};

interface Job {
  request: {
    tag: string;
    n: number;
    perChildNetns: boolean;
    network?: NetworkWish;
    hugePages: boolean;
    eager: boolean;
    cold: boolean;
    branchable: boolean;
    memoryLimitMib?: number;
    cpus?: number;
    ioMibPerS?: number;
    pids?: number;
    strict: boolean;
    require?: 'kvm' | 'tcg';
  };
  command: string[];
  lines: string[] | undefined;
  timeoutSecs: number;
  settleSecs: number;
  listen: Bind | undefined;
  json: boolean;
}

const readJob = (options: Options): Job => {
  const input = options.string('input');
  const lines = input === undefined ? undefined : options.lines(input);
  const given = options.count('n', 'n');
  const n = given ?? lines?.length;
  if (n === undefined) throw options.wrong('-n', 'is required');
  if (lines && lines.length !== n) throw options.wrong('--input', `has ${lines.length} lines, and -n is ${n}`);
  const command = options.rest;
  if (lines && command.length === 0) throw options.wrong('--input', 'needs a command after --');
  if (options.flag('hugepages') && !options.flag('live-fork')) throw options.wrong('--hugepages', 'needs --live-fork');
  const { memoryMib, ...otherLimits } = readLimits(options);
  const require = options.requireIsolation();
  return {
    request: {
      tag: options.required('tag'),
      n,
      perChildNetns: options.flag('per-child-netns'),
      ...networkOf(options),
      hugePages: options.flag('hugepages'),
      eager: options.flag('eager'),
      strict: options.flag('strict'),
      cold: options.flag('cold'),
      branchable: options.flag('live-fork'),
      ...(memoryMib === undefined ? {} : { memoryLimitMib: memoryMib }),
      ...otherLimits,
      ...(require ? { require } : {}),
    },
    command,
    lines,
    timeoutSecs: options.count('timeout-secs') ?? DEFAULT_TIMEOUT_SECS,
    settleSecs: options.count('settle-secs') ?? (command.length > 0 ? 0 : DEFAULT_SETTLE_SECS),
    listen: listenOf(options, n),
    json: options.flag('json'),
  };
};

/** Where the agent is offered without any network; the reference's Python SDK dials what FORKD_TARGET names. */
const listenOf = (options: Options, n: number): Bind | undefined => {
  const given = options.string('listen');
  if (given === undefined) {
    const target = /^(127\.[\d.]+|\[::1\]):\d+$/.exec(process.env['FORKD_TARGET'] ?? '')?.[0];
    return target !== undefined && n === 1 ? parseBind(target, 'FORKD_TARGET') : undefined;
  }
  const bind = parseBind(given, '--listen');
  if (!isLoopback(bind)) throw options.wrong('--listen', 'is on loopback: whoever reaches it is root in the child');
  if (n !== 1) throw options.wrong('--listen', 'is for one child: -n 1');
  return bind;
};

/** Runs the command in every child. Exit status: how many failed. */
const runCommand = async (engine: Engine, result: ForkResult, job: Job, signal: AbortSignal): Promise<number> => {
  const bar = new Bar('running');
  let done = 0;
  let failed = result.failures.length;
  const argsFor = (sandbox: Sandbox) =>
    job.command.map((arg) =>
      arg
        .replaceAll('{index}', String(sandbox.birth.index))
        .replaceAll('{line}', job.lines?.[sandbox.birth.index - 1] ?? '{line}'),
    );
  const onAbort = () => void engine.kill(result.sandboxes);
  signal.addEventListener('abort', onAbort);
  for (const { index, error } of result.failures) if (job.json) printJson({ index, ok: false, error });
  await engine.callAll(
    result.sandboxes,
    (sandbox) => ({ action: 'exec', args: argsFor(sandbox), timeout: job.timeoutSecs }),
    job.timeoutSecs,
    (one) => {
      if (signal.aborted) return;
      const ok = isSuccess(one);
      if (!ok) failed++;
      printResult(one, ok, job.json);
      bar.update(++done, result.sandboxes.length, failed > 0 ? `, ${failed} failed` : '');
    },
  );
  bar.end();
  signal.removeEventListener('abort', onAbort);
  if (signal.aborted) throw new ForkdError('CANCELLED');
  if (job.settleSecs > 0) await settleOnly(engine, result, job, signal);
  tellTried(result.sandboxes);
  if (failed > 0) line(`✗ ${failed} of ${job.request.n} failed`);
  return Math.min(failed, EXIT_COUNT_MAX);
};

const isSuccess = ({ reply, error }: CallResult): boolean =>
  error === undefined && reply !== undefined && reply.error === undefined && reply.exit_code === 0;

const printResult = ({ index, id, ms, reply, error }: CallResult, ok: boolean, json: boolean): void => {
  const exec = reply as ExecReply | undefined;
  if (json) {
    printJson({ index, id, ok, ms: Math.round(ms * 10) / 10, ...exec, ...(error ? { error } : {}) });
    return;
  }
  const prefix = `[${index}] `;
  if (exec?.stdout) printRaw(prefixed(exec.stdout, prefix));
  const problem = error?.message ?? exec?.error ?? (ok ? undefined : `exit code ${exec?.exit_code}`);
  if (exec?.stderr) line(prefixed(exec.stderr, prefix).trimEnd());
  if (problem !== undefined) line(`${prefix}${problem}`);
};

const prefixed = (text: string, prefix: string): string => {
  const whole = text.endsWith('\n') ? text : `${text}\n`;
  return whole.replace(/^/gm, prefix).slice(0, -prefix.length);
};

/** Without a command: keep them for a while, within reach of `forkd exec`, then count those that still answer. */
const settle = async (engine: Engine, result: ForkResult, job: Job, signal: AbortSignal): Promise<number> => {
  const { sandboxes, tag, load_ms, ready_ms, mechanism, isolation } = result;
  const { n } = job.request;
  if (!job.json) {
    printLine(`✓ memory of '${tag}' ready: ${load_ms.toFixed(0)} ms`);
    printLine(`✓ ${sandboxes.length} restores answered in ${ready_ms.toFixed(0)} ms (${mechanism}, ${isolation})`);
    printLine(`✓ total wall-clock: ${(load_ms + ready_ms).toFixed(0)} ms`);
  }
  const alive = await settleOnly(engine, result, job, signal);
  tellTried(sandboxes);
  if (job.json)
    for (const sandbox of sandboxes)
      printJson({ ...sandbox.info(), alive: alive.has(sandbox.id), times: sandbox.times });
  else printLine(`✓ ${alive.size} / ${n} children alive`);
  if (signal.aborted) throw new ForkdError('CANCELLED');
  const [first] = result.failures;
  if (first)
    throw new ForkdError('CHILDREN_FAILED', { failed: result.failures.length, n, reason: first.error.message });
  return alive.size === n ? 0 : 1;
};

/** Targets that are named; a guest that scans tries thousands. */
const DENIED_SHOWN = 8;

/** Children that are named; of a limit that all of them meet, there may be thousands. */
const HELD_SHOWN = 8;

const tellTried = (sandboxes: Sandbox[]): void => {
  const held = new Map<string, number[]>();
  for (const { what, index } of sandboxes.flatMap((one) =>
    one.held().map(({ what }) => ({ what, index: one.birth.index })),
  ))
    held.set(what, [...(held.get(what) ?? []), index]);
  for (const [what, indexes] of held) {
    const more = indexes.length > HELD_SHOWN ? ` and ${indexes.length - HELD_SHOWN} more` : '';
    const who = indexes.slice(0, HELD_SHOWN).join(', ') + more;
    warn(indexes.length === 1 ? `child ${who} was held: ${what}` : `children ${who} were held, each: ${what}`);
  }
  for (const { birth } of sandboxes) {
    const denied = birth.network?.denied() ?? [];
    if (denied.length === 0) continue;
    const shown = denied.slice(0, DENIED_SHOWN).map(({ to, count }) => (count > 1 ? `${to} (${count} times)` : to));
    const more = denied.length > DENIED_SHOWN ? `, and ${denied.length - DENIED_SHOWN} more` : '';
    warn(`child ${birth.index} was not let through: ${shown.join(', ')}${more}`);
  }
};

const settleOnly = async (
  engine: Engine,
  { sandboxes }: ForkResult,
  job: Job,
  signal: AbortSignal,
): Promise<Set<string>> => {
  if (job.settleSecs > 0) {
    await engine.publish(sandboxes);
    const desk = sandboxes[0] && (await Desk.open(engine, sandboxes[0].socket));
    try {
      for (const { id, birth } of sandboxes.slice(0, 3))
        line(`  child ${birth.index}: forkd exec --target ${id} -- uname -a`);
      await sleep(job.settleSecs * 1000, signal);
    } finally {
      // Before the engine, whatever happens: what is under way there needs it.
      await desk?.close();
    }
  }
  const answers = await Promise.allSettled(sandboxes.map(async ({ id }) => ({ id, reply: await engine.ping(id) })));
  return new Set(
    answers.flatMap((answer) => (answer.status === 'fulfilled' && answer.value.reply.pong ? [answer.value.id] : [])),
  );
};
