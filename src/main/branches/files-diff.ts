/**
 * Files that differ between two guests. Both trees are walked side by side. Writes to the root disk are in an overlay, which init
 * shows under UPPER: where both guests have the same disk, only directories that are in one of their overlays can differ.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { FileChange } from '../../contract/branches.js';
import type { FileEntry } from '../../contract/guest.js';
import { eachOf, type Guest, listOf, piecesOf, textOf, unlessGone } from './guest.js';

/** Of the agent itself: the overlay, and what makes each copy its own machine. */
const OWN = '/run/forkd';
const UPPER = `${OWN}/upper`;
/** What the kernel makes up, and no file system has. */
const MADE_UP =
  /^(proc|sysfs|devtmpfs|devpts|cgroup2?|mqueue|debugfs|tracefs|securityfs|pstore|bpf|configfs|hugetlbfs|fusectl)$/;
/** More than anybody reads. */
export const CHANGES_MAX = 100_000;

export interface FilesDiff {
  changes: FileChange[];
  truncated: boolean;
}

interface Dir {
  path: string;
  /** It is in the overlay of this guest, or in none because everything is to be looked at. */
  a: boolean;
  b: boolean;
  /** Where it is not on the root disk. */
  isWhole: boolean;
}

type Mounts = Map<string, string>;

/** `sameDisk`: both have booted from it. Throws GUEST_OUTDATED, AGENT_ERROR and what asking a guest throws. */
export const diffFiles = async (a: Guest, b: Guest, sameDisk: boolean): Promise<FilesDiff> => {
  const [mountsA, mountsB, upperA, upperB] = await Promise.all([mountsOf(a), mountsOf(b), hasUpper(a), hasUpper(b)]);
  const mounts = new Map([...mountsA, ...mountsB]);
  const changes: FileChange[] = [];
  // Guests of before the overlay was shown are walked through as a whole.
  let level: Dir[] = [{ path: '/', a: true, b: true, isWhole: !(sameDisk && upperA && upperB) }];
  while (level.length > 0 && changes.length <= CHANGES_MAX) {
    const below: Dir[] = [];
    await eachOf(level, async (dir) => {
      const found = await compareDir([a, b], dir, mounts);
      changes.push(...found.changes);
      below.push(...found.below);
    });
    level = below;
  }
  changes.sort((x, y) => (x.path < y.path ? -1 : 1));
  return { changes: changes.slice(0, CHANGES_MAX), truncated: changes.length > CHANGES_MAX };
};

const compareDir = async (
  [a, b]: [Guest, Guest],
  dir: Dir,
  mounts: Mounts,
): Promise<{ changes: FileChange[]; below: Dir[] }> => {
  const { path, isWhole } = dir;
  const written = (guest: Guest, isThere: boolean) =>
    isWhole || !isThere ? Promise.resolve([]) : listOf(guest, join(UPPER, path));
  const [ofA, ofB, upperA, upperB] = await Promise.all([
    dir.a ? listOf(a, path) : [],
    dir.b ? listOf(b, path) : [],
    written(a, dir.a),
    written(b, dir.b),
  ]);
  const [namesA, namesB] = [byName(ofA), byName(ofB)];
  const inOverlay = new Set([...upperA, ...upperB].filter(({ type }) => type === 'dir').map(({ name }) => name));
  const changes: FileChange[] = [];
  const below: Dir[] = [];
  const doubts: [FileEntry, FileEntry][] = [];
  for (const name of new Set([...namesA.keys(), ...namesB.keys()])) {
    const at = join(path, name);
    if (at === OWN) continue;
    const [x, y] = [namesA.get(name), namesB.get(name)];
    const mount = mounts.get(at);
    const isDir = x?.type === 'dir' || y?.type === 'dir';
    // A file of each machine's own that is mounted over one of the disk, such as its host name.
    if (mount !== undefined && (!isDir || MADE_UP.test(mount))) continue;
    if (x && y) {
      const what = compareEntries(x, y);
      if (what.length > 0) changes.push({ path: at, change: 'changed', type: y.type, what, ...sizes(x, y) });
      else if (x.type === 'file' && x.mtime_unix !== y.mtime_unix) doubts.push([x, y]);
    } else {
      const only = (x ?? y) as FileEntry;
      changes.push({ path: at, change: x ? 'removed' : 'added', type: only.type, what: [], ...sizes(x, y) });
    }
    const [inA, inB] = [x?.type === 'dir', y?.type === 'dir'];
    const isNew = mount !== undefined || inA !== inB;
    if (isDir && (isWhole || isNew || inOverlay.has(name) || leadsToMount(at, mounts)))
      below.push({ path: at, a: inA, b: inB, isWhole: isWhole || isNew });
  }
  for (const [x, y] of doubts) {
    const at = join(path, x.name);
    const [one, other] = await Promise.all([hashOf(a, at), hashOf(b, at)]);
    if (one !== other) changes.push({ path: at, change: 'changed', type: 'file', what: ['content'], ...sizes(x, y) });
  }
  return { changes, below };
};

const leadsToMount = (path: string, mounts: Mounts): boolean =>
  [...mounts].some(([at, type]) => at.startsWith(`${path}/`) && !MADE_UP.test(type) && !at.startsWith(OWN));

/** Times are no difference: two guests that have written the same have the same. */
const compareEntries = (x: FileEntry, y: FileEntry): FileChange['what'] => {
  if (x.type !== y.type) return ['type'];
  const what: FileChange['what'] = [];
  if (x.type === 'file' && x.size !== y.size) what.push('content');
  if (x.type === 'link' && x.target !== y.target) what.push('target');
  if (x.mode !== y.mode) what.push('mode');
  if (x.uid !== y.uid || x.gid !== y.gid) what.push('owner');
  return what;
};

const sizes = (x: FileEntry | undefined, y: FileEntry | undefined) => ({
  size_a: x?.type === 'file' ? x.size : null,
  size_b: y?.type === 'file' ? y.size : null,
});

const byName = (entries: FileEntry[]): Map<string, FileEntry> => new Map(entries.map((one) => [one.name, one]));

const hashOf = async (guest: Guest, path: string): Promise<string | undefined> =>
  unlessGone(
    (async () => {
      const hash = createHash('sha256');
      for await (const part of piecesOf(guest, path)) hash.update(part);
      return hash.digest('hex');
    })(),
  );

/** By path: the type of the file system, of the last that is mounted there. */
const mountsOf = async (guest: Guest): Promise<Mounts> => {
  const lines = (await textOf(guest, '/proc/mounts')).split('\n').filter((line) => line !== '');
  return new Map(
    lines.map((line): [string, string] => {
      const [, path = '', type = ''] = line.split(' ');
      return [path.replace(/\\(\d{3})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 8))), type];
    }),
  );
};

const hasUpper = async (guest: Guest): Promise<boolean> =>
  (await unlessGone(guest.ask({ action: 'stat', path: UPPER }))) !== undefined;
