/** Opens a tag, after checking that it fits this host. */
import { ForkdError } from '../contract/errors.js';
import { parseTag } from '../contract/names.js';
import type { Patience } from '../contract/patience.js';
import type { SnapshotManifest } from '../contract/snapshot.js';
import { tscKhz } from './host/tsc.js';
import { completeSnapshot } from './memory/complete.js';
import type { LoadProgress } from './memory/image.js';
import { canBePartial, LoadedSnapshot } from './memory/loaded.js';
import { hostFile } from './paths.js';
import type { Pool } from './pool.js';
import { misfit } from './store/fit.js';
import type { Store } from './store/store.js';
import { type KvmVerdict, NOT_ASKED } from './vmm/probe.js';
import type { QemuDriver } from './vmm/qemu.js';

export interface LoadOptions {
  hugePages?: boolean;
  lazy?: boolean;
  onLoad?: LoadProgress;
}

/** What a snapshot must fit. */
export interface Host {
  driver: () => Promise<QemuDriver>;
  kvm: () => Promise<KvmVerdict>;
}

export interface LoadContext extends Host {
  store: Store;
  pool: Pool;
  /** With the servers of tags that were pulled lazily. */
  patience?: Partial<Patience> | undefined;
}

/** The caller closes what it gets. */
export const loadSnapshot = async (
  tag: string,
  { hugePages = false, lazy = false, onLoad }: LoadOptions,
  { store, pool, patience, ...host }: LoadContext,
): Promise<LoadedSnapshot> => {
  parseTag(tag);
  if (store.isPartial(tag) && !canBePartial({ lazy, hugePages })) await completeSnapshot(store, tag, pool);
  const chain = store.hold(tag, { partial: true });
  try {
    await requireFit(chain.manifest, host);
  } catch (error) {
    chain.close();
    throw error;
  }
  const more = { ...(onLoad ? { onProgress: onLoad } : {}), ...(patience ? { patience } : {}) };
  return LoadedSnapshot.open(chain, pool, { hugePages, lazy, ...more });
};

/** Throws SNAPSHOT_INCOMPATIBLE. */
const requireFit = async (manifest: SnapshotManifest, host: Host): Promise<void> => {
  const driver = await host.driver();
  const kvm = manifest.isolation === 'kvm' ? await host.kvm() : NOT_ASKED;
  const reason = misfit(manifest, {
    vmmVersion: driver.version,
    machine: driver.machine,
    tscKhz: await tscKhz(hostFile()),
    kvmProblem: kvm.usable ? undefined : kvm.reason,
  });
  if (reason !== undefined) throw new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag: manifest.tag, reason });
};
