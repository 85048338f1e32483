import { DIFF_PARTS, type DiffReport, type FileChange } from '../../contract/branches.js';
import { isSandboxId } from '../../contract/names.js';
import { formatBytes } from '../../contract/units.js';
import { diffBranches, type LiveSide } from '../../main/branches/diff.js';
import type { AgentClient } from '../../main/agent/client.js';
import { sandboxesDir } from '../../main/paths.js';
import { living } from '../../main/sandbox/registry.js';
import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { agentAt, publishedAt } from '../guest-link.js';
import type { Options } from '../options.js';
import { printJson, printLine } from '../render.js';
import { withEngine } from '../with-engine.js';

/** Two forks, and reading every file of two guests that were made before their overlay was shown. */
const TIMEOUT_MS = 600_000;
const ASK_MS = 60_000;

export const diff: Command = {
  name: 'diff',
  args: '[...branches]',
  usage: 'diff [options] A B',
  description: 'List files, processes and memory that differ between two branches: tags, or sandboxes that run',
  options: [
    ['--files', 'Only files; with the others, those that are named'],
    ['--processes', 'Only processes'],
    ['--memory', 'Only memory: of two tags, without a VM'],
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: [
    'forkd diff base attempt-1',
    'forkd diff sb-6743b1c2-9f31c2aa sb-6743b1c2-1b07d3e4 --files',
    'forkd diff --memory base attempt-1 --json',
  ],
  run: async (options) => {
    const [a, b, ...more] = options.positional;
    if (a === undefined || b === undefined || more.length > 0) throw options.wrong('A and B', 'are both required');
    const report = await compare(options, a, b);
    if (options.flag('json')) printJson(report);
    else show(report);
    return 0;
  },
};

const compare = async (options: Options, a: string, b: string): Promise<DiffReport> => {
  const named = DIFF_PARTS.filter((part) => options.flag(part));
  const parts = named.length > 0 ? named : [...DIFF_PARTS];
  const records = new Map(living(sandboxesDir()).map((one) => [one.id, one]));
  const isElsewhere = [a, b].some((name) => isSandboxId(name) && !records.has(name));
  if (isElsewhere || options.string('daemon-url') !== undefined)
    return askDaemon(options, (controller) => controller.diffBranches(a, b, parts), TIMEOUT_MS);
  const agents: AgentClient[] = [];
  const live = (name: string): LiveSide | undefined => {
    const record = records.get(name);
    if (!record) return undefined;
    const agent = agentAt(publishedAt(record), name);
    agents.push(agent);
    return {
      guest: { ask: (request) => agent.ask(request, ASK_MS), open: (request) => agent.open(request) },
      snapshotTag: record.snapshot_tag,
      ...(record.snapshot_root === undefined ? {} : { snapshotRoot: record.snapshot_root }),
      pid: record.pid,
    };
  };
  try {
    return await withEngine((engine) => diffBranches(engine, [a, b], parts, live));
  } finally {
    for (const agent of agents) agent.close();
  }
};

const SIGN = { added: '+', removed: '-', changed: 'M' } as const;

const show = ({ a, b, files, files_truncated, processes, memory }: DiffReport): void => {
  if (files) {
    printLine(`files: ${counted(files.length, 'differs', 'differ')}${files_truncated ? ', and more' : ''}`);
    for (const one of files) printLine(`  ${SIGN[one.change]} ${pathOf(one)}${detailOf(one)}`);
  }
  if (processes) {
    printLine(`processes: ${counted(processes.length, 'differs', 'differ')}`);
    for (const { change, pid, command } of processes) printLine(`  ${SIGN[change]} ${pid}  ${command}`);
  }
  if (memory) {
    const { pages, bytes, image_bytes, private_bytes_a, private_bytes_b } = memory;
    printLine(
      `memory: ${formatBytes(bytes)} of ${formatBytes(image_bytes)} differ, ${counted(pages, 'page', 'pages')}`,
    );
    for (const [name, own] of [
      [a, private_bytes_a],
      [b, private_bytes_b],
    ] as const)
      if (own > 0) printLine(`  ${name} has ${formatBytes(own)} of its own`);
  }
};

const counted = (n: number, one: string, many: string): string => `${n} ${n === 1 ? one : many}`;

const pathOf = ({ path, type }: FileChange): string => (type === 'dir' ? `${path}/` : path);

const detailOf = ({ change, what, size_a, size_b }: FileChange): string => {
  const size = size_b ?? size_a;
  if (change !== 'changed') return size === null ? '' : `  ${size < 1024 ? `${size} bytes` : formatBytes(size)}`;
  const sizes = size_a === null || size_b === null || size_a === size_b ? '' : `  ${size_a} -> ${size_b} bytes`;
  return `  (${what.join(', ')})${sizes}`;
};
