import type { BranchTree, LiveChild, TreeNode } from '../../contract/branches.js';
import { ForkdError } from '../../contract/errors.js';
import { parseTag } from '../../contract/names.js';
import { formatAge, formatBytes } from '../../contract/units.js';
import { growTree } from '../../main/branches/tree.js';
import { askDaemon, daemonOptions } from '../ask-daemon.js';
import { branchesHere } from '../branches-here.js';
import type { Command } from '../command.js';
import { line } from '../progress.js';
import { printJson, printLine } from '../render.js';

export const tree: Command = {
  name: 'tree',
  args: '[tag]',
  description: 'Show which snapshot is made of which, and the sandboxes that run from each',
  options: [['--json', 'Print one JSON object'], ...daemonOptions],
  examples: ['forkd tree', 'forkd tree base', 'forkd tree --json | jq -r ".roots[].tag"'],
  run: async (options) => {
    const { positional } = options;
    const top = positional.length === 0 ? undefined : parseTag(options.one('TAG'));
    const whole = await treeOf(options);
    const found = top === undefined ? whole : { roots: [below(whole.roots, top)], strays: [] };
    if (options.flag('json')) {
      printJson(found);
      return 0;
    }
    if (found.roots.length + found.strays.length === 0) {
      line('no snapshots yet; make one with `forkd quickstart` or `forkd snapshot --tag base`');
      return 0;
    }
    draw(found);
    return 0;
  },
};

/** A daemon that was named may be another host's: then all of it is its own to tell. */
const treeOf = async (options: Parameters<Command['run']>[0]): Promise<BranchTree> =>
  options.string('daemon-url') === undefined
    ? growTree(await branchesHere(options))
    : askDaemon(options, (controller) => controller.branchTree());

/** Throws SNAPSHOT_NOT_FOUND. */
const below = (nodes: TreeNode[], tag: string): TreeNode => {
  const queue = [...nodes];
  for (let node = queue.shift(); node; node = queue.shift()) {
    if (node.tag === tag) return node;
    queue.push(...node.children);
  }
  throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag });
};

interface Row {
  name: string;
  size: string;
  age: string;
  notes: string[];
}

const draw = ({ roots, strays }: BranchTree): void => {
  const now = Date.now() / 1000;
  const rows = roots.flatMap((root) => rowsOf(root, now, '', ''));
  if (strays.length > 0) {
    rows.push({ name: '(their snapshot is gone)', size: '', age: '', notes: [] });
    rows.push(...strays.map((one, i) => liveRow(one, now, i === strays.length - 1 ? '└─ ' : '├─ ')));
  }
  const [names, sizes, ages] = [widest(rows, 'name'), widest(rows, 'size'), widest(rows, 'age')];
  for (const { name, size, age, notes } of rows)
    printLine(`${name.padEnd(names)}  ${size.padStart(sizes)}  ${age.padStart(ages)}  ${notes.join(', ')}`.trimEnd());
};

const widest = (rows: Row[], column: 'name' | 'size' | 'age'): number =>
  Math.max(...rows.map((row) => row[column].length));

/** `lead` is before the node itself, `indent` before what is below it. */
const rowsOf = (node: TreeNode, now: number, lead: string, indent: string): Row[] => {
  const rows: Row[] = [
    {
      name: `${lead}${node.tag}`,
      size: formatBytes(node.bytes),
      age: formatAge(now - node.created_at_unix),
      notes: notesOf(node),
    },
  ];
  const count = node.sandboxes.length + node.children.length;
  const branch = (i: number) => (i === count - 1 ? '└─ ' : '├─ ');
  rows.push(...node.sandboxes.map((one, i) => liveRow(one, now, indent + branch(i))));
  node.children.forEach((child, j) => {
    const i = node.sandboxes.length + j;
    rows.push(...rowsOf(child, now, indent + branch(i), `${indent}${i === count - 1 ? '   ' : '│  '}`));
  });
  return rows;
};

const notesOf = ({ branched_from, promoted_from, workspaces, problem }: TreeNode): string[] => [
  ...(promoted_from === undefined ? [] : [`promoted from ${promoted_from}`]),
  ...(branched_from === undefined || branched_from === promoted_from ? [] : [`branched from ${branched_from}`]),
  ...workspaces.map((name) => `state of workspace ${name}`),
  ...(problem === undefined ? [] : [`⚠ ${problem}`]),
];

const liveRow = ({ id, pid, created_at_unix, owner, workspace }: LiveChild, now: number, lead: string): Row => ({
  name: `${lead}● ${id}`,
  size: '',
  age: formatAge(now - created_at_unix),
  notes: [
    `pid ${pid ?? '—'}`,
    owner === 'daemon' ? 'of the daemon' : 'of a command',
    ...(workspace === undefined ? [] : [`workspace ${workspace}`]),
  ],
});
