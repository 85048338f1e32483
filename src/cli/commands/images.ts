import type { SnapshotSummary } from '../../contract/snapshot.js';
import { formatAge, formatBytes } from '../../contract/units.js';
import { snapshotsDir } from '../../main/paths.js';
import { Store } from '../../main/store/store.js';
import type { Command } from '../command.js';
import { line } from '../progress.js';
import { printJson, printLine, printTable } from '../render.js';

export const images: Command = {
  name: 'images',
  description: 'List the snapshots on this host, newest first',
  options: [['--json', 'Print one JSON array']],
  examples: ['forkd images', "forkd images --json | jq -r '.[].tag'"],
  run: (options) => {
    const snapshots = new Store(snapshotsDir()).list();
    if (options.flag('json')) {
      printJson(snapshots);
      return 0;
    }
    if (snapshots.length === 0) {
      line('no snapshots yet; make one with `forkd quickstart` or `forkd snapshot --tag base`');
      return 0;
    }
    const now = Date.now() / 1000;
    printTable(
      ['TAG', 'SIZE', 'SHARED', 'MEMORY', 'CREATED', 'ROOTFS', 'DEPTH', 'PARENT'],
      snapshots.map((snapshot) => row(snapshot, now)),
    );
    printLine(`${snapshots.length} snapshots, ${formatBytes(snapshots.reduce((sum, s) => sum + s.bytes, 0))}`);
    for (const { problem } of snapshots) if (problem !== undefined) line(`⚠ ${problem}`);
    return 0;
  },
};

/** SIZE is what the tag itself takes on disk, SHARED what it needs of its ancestors. */
const row = (s: SnapshotSummary, now: number): string[] => [
  s.tag,
  formatBytes(s.bytes),
  s.chain_depth === 0 ? '—' : formatBytes(s.shared_bytes),
  formatBytes(s.memory_bytes),
  formatAge(now - s.created_at_unix),
  s.rootfs ? 'yes' : '—',
  String(s.chain_depth),
  s.parent_tag ?? '—',
];
