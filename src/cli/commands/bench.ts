import { randomBytes } from 'node:crypto';
import type { Controller, SandboxInfo, SnapshotInfo } from '../../client/index.js';
import { formatBytes, formatMs } from '../../contract/units.js';
import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { warn } from '../progress.js';
import { printJson, printLine } from '../render.js';

const TIMEOUT_MS = 60_000;
const EXEC_SECS = 5;
const COMMAND = ['sh', '-c', 'echo bench'];

interface Row {
  label: string;
  ms: number;
  detail: string;
}

export const bench: Command = {
  name: 'bench',
  description: 'Time what the daemon does: spawn, exec, branch, spawn from the branch, kill. Leaves nothing behind',
  options: [
    ['--tag <TAG>', 'The snapshot (default: the first one listed)'],
    ['-n, --n <N>', 'Children of the branch (default 5)'],
    [
      '--per-child-netns <true|false>',
      'Each of them in a namespace forkd-child-K (default: true where there are such namespaces)',
    ],
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: ['forkd bench', 'forkd bench --tag base --n 50 --per-child-netns false', 'forkd bench --json | jq .rows'],
  run: async (options) => {
    const n = options.count('n', 'n') ?? 5;
    if (n < 1) throw options.wrong('--n', 'must be at least 1');
    const netns = yesNo(options, 'per-child-netns');
    const { tag, rows } = await askDaemon(
      options,
      (controller) => measure(controller, { tag: options.string('tag'), n, netns }, options),
      TIMEOUT_MS,
    );
    if (options.flag('json')) printJson({ tag, n, rows });
    else for (const { label, ms, detail } of rows) printLine(`${label.padEnd(16)} ${cell(ms)}  ${grey(detail)}`);
    return 0;
  },
};

/** What is looked at of a ControllerError; the class itself would bring the HTTP library into every `--help`. */
interface Refusal extends Error {
  code?: string;
  status?: number;
}

interface Wanted {
  tag: string | undefined;
  n: number;
  /** Undefined: if the host of the daemon has namespaces. */
  netns: boolean | undefined;
}

const measure = async (
  controller: Controller,
  { tag: asked, n, netns }: Wanted,
  options: Options,
): Promise<{ tag: string; rows: Row[] }> => {
  const tag = asked ?? (await controller.listSnapshots()).find(({ bootable }) => bootable)?.tag;
  if (tag === undefined) throw options.wrong('--tag', 'is required: the daemon has no snapshot to choose');
  const rows: Row[] = [];
  const time = async <T>(label: string, work: () => Promise<T>, detail: (result: T) => string): Promise<T> => {
    const began = performance.now();
    const result = await work();
    rows.push({ label, ms: performance.now() - began, detail: detail(result) });
    return result;
  };
  const made: string[] = [];
  const branchTag = `bench-${randomBytes(6).toString('hex')}`;
  const began = performance.now();
  try {
    // Without a namespace: that one would be restored cold, and could not be branched.
    const [source] = await time('spawn 1', () => controller.spawnSandboxes({ snapshotTag: tag }), noted(made));
    const id = source?.id ?? '';
    await time(
      'exec',
      () => controller.execCommand(id, COMMAND, { timeoutSecs: EXEC_SECS }),
      ({ exit_code }) => `${COMMAND.join(' ')}: exit code ${exit_code}`,
    );
    await time('branch', () => controller.branchSandbox(id, { tag: branchTag, diff: true }), branched);
    const children = (perChildNetns: boolean) =>
      time(`spawn ${n}`, () => controller.spawnSandboxes({ snapshotTag: branchTag, n, perChildNetns }), noted(made));
    try {
      await children(netns ?? true);
    } catch (error) {
      const { code, message } = error as Refusal;
      if (netns !== undefined || code !== 'NETNS_MISSING') throw error;
      warn(`${message}: without namespaces`);
      await children(false);
    }
    const all = [...made];
    await time(
      `kill ${all.length}`,
      () => endAll(controller, made),
      () => 'one after another',
    );
    rows.push({ label: 'total', ms: performance.now() - began, detail: `${tag}, ${all.length} sandboxes` });
  } finally {
    await endAll(controller, made).catch((error: unknown) => warn(`sandboxes stay: ${String(error)}`));
    await controller.deleteSnapshot(branchTag, { force: true }).catch((error: unknown) => {
      if ((error as Refusal).status !== 404) warn(`snapshot '${branchTag}' stays: ${String(error)}`);
    });
  }
  return { tag, rows };
};

const noted =
  (made: string[]) =>
  (sandboxes: SandboxInfo[]): string => {
    made.push(...sandboxes.map(({ id }) => id));
    const [first] = sandboxes;
    return sandboxes.length === 1 ? (first?.id ?? '') : `${sandboxes.length} of ${first?.snapshot_tag}`;
  };

const branched = ({ tag, pause_ms = 0, diff_physical_bytes = 0 }: SnapshotInfo): string =>
  `${tag}: paused for ${pause_ms} ms, ${formatBytes(diff_physical_bytes)} written`;

/** Takes each from the list when it is gone. */
const endAll = async (controller: Controller, made: string[]): Promise<void> => {
  for (let id = made.at(-1); id !== undefined; id = made.at(-1)) {
    await controller.killSandbox(id);
    made.pop();
  }
};

const yesNo = (options: Options, name: string): boolean | undefined => {
  const text = options.string(name);
  if (text === undefined) return undefined;
  if (text !== 'true' && text !== 'false') throw options.wrong(`--${name}`, `'${text}' is neither true nor false`);
  return text === 'true';
};

const cell = (ms: number): string => formatMs(ms).padStart(10);

const grey = (text: string): string => (process.stdout.isTTY ? `\x1b[90m${text}\x1b[0m` : text);
