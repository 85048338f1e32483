import type { SnapshotResult } from '../main/make-snapshot.js';
import { line } from './progress.js';
import { printJson } from './render.js';

/** Tells of a snapshot that has been made, and how to go on; with `--json` also as an object, with what else the command knows. */
export const tellSnapshot = ({ manifest, dir, boot_ms }: SnapshotResult, json: boolean, more: object): void => {
  const { tag, isolation } = manifest;
  line(`✓ snapshot '${tag}' (${isolation}) in ${dir}`);
  line(`  fork it: forkd fork --tag ${tag} -n 10`);
  if (json) printJson({ tag, dir, isolation, boot_ms, ...more });
};
