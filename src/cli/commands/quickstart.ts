import { ForkdError } from '../../contract/errors.js';
import type { EvalReply } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import type { Isolation } from '../../contract/snapshot.js';
import { formatMs } from '../../contract/units.js';
import type { CallResult, Engine, ForkResult } from '../../main/engine.js';
import { type CheckResult, planFixes, preflight } from '../../main/host/doctor/index.js';
import type { Sandbox } from '../../main/sandbox/sandbox.js';
import type { Command } from '../command.js';
import { Bar, detail, line, step, warn } from '../progress.js';
import { printJson, printLine, printTable } from '../render.js';
import { applyWithProgress, confirmFixes, StepProgress } from '../setup.js';
import { withEngine } from '../with-engine.js';

const TAG = 'quickstart';
const DEFAULT_N = 10;
const EVAL_SECS = 30;
/** Rows of the table; a thousand would bury the summary. */
const ROWS_MAX = 20;

const ISOLATION_SAID: Record<Isolation, string> = {
  kvm: 'KVM: each child is a virtual machine of its own, held apart by the processor',
  tcg: 'emulation (TCG): each child is a virtual machine of its own, held apart by QEMU in software; slower, and a weaker wall than KVM',
};

export const quickstart: Command = {
  name: 'quickstart',
  description: 'From nothing to N forked children on this machine: install, build, snapshot, fork, prove it',
  options: [
    ['-n, --n <N>', `Number of children (default ${DEFAULT_N})`],
    ['-y, --yes', 'Install what is missing without asking'],
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
    ['--image <IMAGE>', 'Accepted for compatibility: the embedded image (Debian, Python, numpy) is used'],
    ['--eager', 'Load and check all of the memory first, instead of each part when it is touched'],
    ['--json', 'Print one JSON object'],
  ],
  examples: ['forkd quickstart', 'forkd quickstart -n 100 --yes'],
  run: (options) => {
    const n = options.count('n', 'n') ?? DEFAULT_N;
    // Refused now: at the fork it would come after minutes of building.
    if (n < 1 || n > limits.childrenMax) throw new ForkdError('COUNT_INVALID', { n, max: limits.childrenMax });
    const require = options.requireIsolation();
    const image = options.string('image');
    if (image !== undefined) warn(`--image ${image} is not used: the one guest image is Debian with Python and numpy`);
    return withEngine(async (engine, signal) => {
      const job: Job = { engine, signal, n, require, yes: options.flag('yes'), eager: options.flag('eager') };
      const result = await reach(job, reasonToMake(engine, require));
      const proofs = await prove(job, result);
      if (options.flag('json')) printJson(asJson(result, proofs, n));
      else show(result, proofs, n);
      return judge(result, proofs, n);
    });
  },
};

interface Job {
  engine: Engine;
  signal: AbortSignal;
  n: number;
  require: Isolation | undefined;
  yes: boolean;
  eager: boolean;
}

/** Running children, by way of a new snapshot when there is a reason to make one, or when the old one turns out not to fit. */
const reach = async (job: Job, reason: string | undefined): Promise<ForkResult> => {
  await prepareHost(job, reason !== undefined);
  if (reason !== undefined) await makeSnapshot(job, reason);
  step(`forking ${job.n} children`);
  try {
    return await forkChildren(job);
  } catch (error) {
    if (reason === undefined && error instanceof ForkdError && isRemakeable(error)) return reach(job, error.message);
    throw error;
  }
};

/** Why the snapshot has to be made, or undefined when there is one. Whether it fits is seen when it is opened. */
const reasonToMake = (engine: Engine, require: Isolation | undefined): string | undefined => {
  try {
    const { isolation } = engine.store.open(TAG);
    const isUnwanted = require !== undefined && isolation !== require;
    return isUnwanted ? `it runs under ${isolation}, and ${require} was asked for` : undefined;
  } catch (error) {
    if (!(error instanceof ForkdError && isRemakeable(error))) throw error;
    return error.code === 'SNAPSHOT_NOT_FOUND' ? 'there is none' : error.message;
  }
};

const isRemakeable = ({ code }: ForkdError): boolean =>
  code === 'SNAPSHOT_NOT_FOUND' || code === 'SNAPSHOT_CORRUPT' || code === 'SNAPSHOT_INCOMPATIBLE';

/** Checks what must hold and installs what is missing. Throws HOST_UNFIT, PACKAGES_MISSING, NOT_CONFIRMED. */
const prepareHost = async ({ engine, signal, yes }: Job, makesSnapshot: boolean): Promise<void> => {
  step('checking this host');
  const results = await preflight(makesSnapshot);
  const fixes = planFixes(results);
  refuse(results.filter(({ fix }) => fix === undefined));
  if (fixes.length === 0) return;
  if (process.getuid?.() !== 0) {
    const packages = fixes.flatMap((fix) => (fix.kind === 'packages' ? fix.packages : []));
    throw new ForkdError('PACKAGES_MISSING', { packages: packages.join(' ') });
  }
  await confirmFixes(fixes, yes, signal);
  for (const fix of fixes) await applyWithProgress(fix, engine, signal);
  refuse(await preflight(makesSnapshot));
};

const refuse = (results: CheckResult[]): void => {
  for (const { name, status, detail: text, hint } of results) {
    if (status !== 'warn' && status !== 'fail') continue;
    warn(`${name}: ${text}`);
    if (hint) detail(hint);
  }
  const failed = results.filter(({ status }) => status === 'fail');
  const reason = failed.map(({ name, detail: text }) => `${name}: ${text}`).join('; ');
  if (failed.length > 0) throw new ForkdError('HOST_UNFIT', { reason });
};

const makeSnapshot = async ({ engine, signal, require }: Job, reason: string): Promise<void> => {
  step(`making the snapshot '${TAG}': ${reason}`);
  const progress = new StepProgress();
  await engine.image(progress.update, signal).finally(() => progress.end());
  await engine.snapshot({ tag: TAG, force: true, ...(require ? { require } : {}) }, { signal, onStep: detail });
};

const forkChildren = async ({ engine, signal, n, require, eager }: Job): Promise<ForkResult> => {
  const load = new Bar('    loading memory');
  const bar = new Bar('    forking');
  try {
    return await engine.fork(
      { tag: TAG, n, eager, ...(require ? { require } : {}) },
      {
        signal,
        onLoad: (done, total) => load.update(Math.floor(done / 2 ** 20), Math.floor(total / 2 ** 20), ' MiB'),
        onReady: (ready) => bar.update(ready, n),
      },
    );
  } finally {
    load.end();
    bar.end();
  }
};

/** What a child said, and whether it was right and unlike what every other said. */
interface Proof {
  index: number;
  id: string;
  ms: number;
  ok: boolean;
  answer?: string;
  random?: string;
  numpy_random?: string;
  hostname?: string;
  error?: string;
}

/**
 * A sum that the host knows as well (warm numpy), and what must differ between children: the kernel's random numbers,
 * numpy's, and the name. Separated by spaces, so that its repr is itself in quotes.
 */
const question = (index: number): string =>
  [
    'import os, socket, numpy',
    `' '.join([str(int(numpy.arange(1000 * ${index} + 1).sum())), os.urandom(8).hex(), numpy.random.bytes(8).hex(), socket.gethostname()])`,
  ].join('\n');

const expected = (index: number): string => String((1000 * index * (1000 * index + 1)) / 2);

const prove = async ({ engine, signal }: Job, { sandboxes }: ForkResult): Promise<Proof[]> => {
  step('asking each for a numpy sum, random bytes and its name');
  const onAbort = () => void engine.kill(sandboxes);
  signal.addEventListener('abort', onAbort);
  try {
    const ask = ({ birth }: Sandbox) => ({ action: 'eval' as const, code: question(birth.index) });
    const results = await engine.callAll(sandboxes, ask, EVAL_SECS);
    if (signal.aborted) throw new ForkdError('CANCELLED');
    return unique(results.map(read));
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
};

const read = ({ index, id, ms, reply, error }: CallResult): Proof => {
  const { result, error: guestError } = (reply ?? {}) as Partial<EvalReply>;
  const [answer, random, numpyRandom, hostname] = result?.replace(/^'|'$/g, '').split(' ') ?? [];
  const told = { index, id, ms };
  if (answer === undefined || random === undefined || numpyRandom === undefined || hostname === undefined) {
    return { ...told, ok: false, error: error?.message ?? guestError ?? `the answer was ${result ?? 'empty'}` };
  }
  const ok = answer === expected(index);
  const said = { ...told, ok, answer, random, numpy_random: numpyRandom, hostname };
  return ok ? said : { ...said, error: `${expected(index)} was expected` };
};

/** Two children that say the same are one too many: the later is marked. */
const unique = (proofs: Proof[]): Proof[] => {
  const seen = new Map<string, number>();
  return proofs.map((proof) => {
    for (const value of [proof.random, proof.numpy_random, proof.hostname]) {
      const other = value === undefined ? undefined : seen.get(value);
      if (other !== undefined) return { ...proof, ok: false, error: `says the same '${value}' as child ${other}` };
      if (value !== undefined) seen.set(value, proof.index);
    }
    return proof;
  });
};

const show = (result: ForkResult, proofs: Proof[], n: number): void => {
  const good = proofs.filter(({ ok }) => ok);
  const row = ({ index, answer = '', random = '', hostname = '', ms }: Proof) => [
    String(index),
    answer,
    random,
    ms.toFixed(1),
    hostname,
  ];
  printTable(['CHILD', 'ANSWER', 'RANDOM', 'MS', 'HOSTNAME'], good.slice(0, ROWS_MAX).map(row));
  if (good.length > ROWS_MAX) printLine(`... and ${good.length - ROWS_MAX} more`);
  printLine();
  const { ready_ms, load_ms, isolation, mechanism } = result;
  const how = `memory loaded in ${formatMs(load_ms)}, ${mechanism}`;
  printLine(
    `${good.length === n ? '✓' : '✗'} ${good.length} of ${n} children: ready ${formatMs(ready_ms)} after the request (${how})`,
  );
  printLine(`  isolation: ${ISOLATION_SAID[isolation]}`);
};

const asJson = ({ isolation, mechanism, load_ms, ready_ms, failures }: ForkResult, proofs: Proof[], n: number) => ({
  tag: TAG,
  n,
  ok: proofs.filter(({ ok }) => ok).length,
  isolation,
  mechanism,
  load_ms: tenths(load_ms),
  ready_ms: tenths(ready_ms),
  children: proofs.map((proof) => ({ ...proof, ms: tenths(proof.ms) })),
  failures,
});

const tenths = (ms: number): number => Math.round(ms * 10) / 10;

/** Throws CHILDREN_FAILED. */
const judge = ({ failures }: ForkResult, proofs: Proof[], n: number): number => {
  const bad = proofs.filter(({ ok }) => !ok);
  for (const { index, error } of failures) warn(`child ${index}: ${error.message}`);
  for (const { index, error } of bad) warn(`child ${index}: ${error}`);
  const reason = failures[0]?.error.message ?? bad[0]?.error;
  const failed = failures.length + bad.length;
  if (reason !== undefined) throw new ForkdError('CHILDREN_FAILED', { failed, n, reason });
  line('\nThe children have ended; the snapshot stays. Next:');
  line(`  forkd fork --tag ${TAG} -n 100 -- python3 -c 'import numpy; print({index}, numpy.random.random())'`);
  line(`  forkd snapshot --tag mine --warm-eval 'import json, numpy.linalg'`);
  line('  forkd images');
  return 0;
};
