/** Downloads a pack, holds it to the hash that the hub gave, and unpacks it. */
import type { KeyObject } from 'node:crypto';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { type Http, refused, shown } from '../../http/client.js';
import { type DownloadHooks, download } from '../../http/download.js';
import { PartFile } from '../../http/part-file.js';
import type { Pool } from '../pool.js';
import type { Store } from '../store/store.js';
import type { PackSource } from './registry.js';
import type { SidecarSource } from './plain/sidecar.js';
import { type TakenDisk, takeDisk, type Unpacked, unpack } from './unpack.js';

/** What is wanted of a pack that is fetched. */
export interface TakeRequest {
  tag?: string;
  force?: boolean;
  trusted?: KeyObject[];
  identities?: string[];
  /** Only the root disk, into this file. */
  disk?: string;
}

export type PullRequest = PackSource & TakeRequest;

export interface PullHooks {
  signal?: AbortSignal;
  onStep?: (step: string) => void;
  onProgress?: (done: number, total: number) => void;
  onRetry?: (reason: string, waitMs: number) => void;
}

export type Pulled = (Unpacked | TakenDisk) & {
  url: string;
  bytes: number;
};

/** Where parts of downloads wait. */
export const pullsDir = (storeRoot: string): string => join(storeRoot, '.pulls');

/**
 * Throws what `download` and `unpack` throw. A part is kept for the next try, unless the server has shown that it is of no use.
 */
export const pull = async (
  http: Http,
  store: Store,
  request: PullRequest,
  pool: Pool,
  hooks: PullHooks = {},
): Promise<Pulled> => {
  const { url, sha256, bytes } = request;
  const fetch = async (partial: PartFile, more: DownloadHooks): Promise<void> => {
    await download(http, downloadOf(request, bytes), partial, more);
    if (sha256 !== undefined) await requireHash(partial, url, sha256, pool);
  };
  const sidecar = besideUrl(http, store, url, hooks);
  const source = { name: sha256 ?? shown(url), from: shown(url), immutable: sha256 !== undefined, fetch, sidecar };
  return pullWith(store, request, source, hooks);
};

export interface Source {
  /** Stands for what is downloaded. */
  name: string;
  /** For people. */
  from: string;
  /** What the name stands for never changes. */
  immutable: boolean;
  /** Completes the part. */
  fetch: (partial: PartFile, hooks: DownloadHooks) => Promise<void>;
  /** Where a root disk is that belongs beside the pack. */
  sidecar?: SidecarSource;
}

/** As `pull`, from anywhere. */
export const pullWith = async (
  store: Store,
  request: TakeRequest,
  { name, from, immutable, fetch, sidecar }: Source,
  hooks: PullHooks = {},
): Promise<Pulled> => {
  const { tag, force = false, disk } = request;
  // Refused now: after the download it would come too late.
  if (tag !== undefined && store.exists(tag) && !force) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
  const partial = PartFile.open(pullsDir(store.root), name);
  let keep = true;
  try {
    hooks.onStep?.(`downloading ${from}`);
    await fetch(partial, spaced(store, hooks));
    hooks.onStep?.('unpacking');
    const open = { ...request, path: partial.path, ...(sidecar ? { sidecar } : {}) };
    const taken =
      disk === undefined ? await unpack(store, open, hooks) : await takeDisk(store, { ...open, disk }, hooks);
    keep = false;
    return { ...taken, url: from, bytes: partial.bytes };
  } catch (error) {
    const { code } = error as { code?: string };
    keep = !['TRANSFER_REFUSED', 'PACK_INVALID', 'PACK_UNREADABLE', 'PACK_UNTRUSTED'].includes(code ?? '');
    throw code?.startsWith('PACK_') ? renamed(error as ForkdError, from) : error;
  } finally {
    partial.close(keep && (immutable || partial.validator !== undefined));
  }
};

/** The same URL with another last segment. */
const besideUrl =
  (http: Http, store: Store, url: URL, hooks: PullHooks): SidecarSource =>
  async (name) => {
    const from = new URL(name, url);
    const partial = PartFile.open(pullsDir(store.root), shown(from));
    try {
      hooks.onStep?.(`downloading ${shown(from)}`);
      await download(http, { url: from, maxBytes: limits.transferMaxBytes }, partial, spaced(store, hooks));
      return { path: partial.path, close: () => partial.close(false) };
    } catch (error) {
      partial.close(partial.validator !== undefined);
      throw error;
    }
  };

const downloadOf = ({ url, sha256 }: PullRequest, bytes: number | undefined) => ({
  url,
  maxBytes: limits.transferMaxBytes,
  immutable: sha256 !== undefined,
  ...(bytes === undefined ? {} : { bytes }),
});

const spaced = (store: Store, hooks: PullHooks): DownloadHooks => ({
  ...hooks,
  requireSpace: (more) => store.requireSpace(more),
});

const requireHash = async (partial: PartFile, url: URL, sha256: string, pool: Pool): Promise<void> => {
  const [digest] = (await pool.run('hash', { paths: [partial.path] })).digests;
  if (digest?.sha256 !== sha256) throw refused(url, `its SHA-256 is ${digest?.sha256}, not ${sha256}`);
};

/** The name of a part means nothing to anybody. */
const renamed = (error: ForkdError, path: string): ForkdError =>
  new ForkdError(error.code, { ...error.details, path }, error);
