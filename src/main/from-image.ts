/** Snapshots made of container images, and one command run in one. */
import { resolve } from 'node:path';
import { ForkdError } from '../contract/errors.js';
import type { ExecReply } from '../contract/guest.js';
import { TAG_MAX } from '../contract/names.js';
import type { Engine, NewSnapshot } from './engine.js';
import { DEFAULT_MEMORY_MIB, type SnapshotResult } from './make-snapshot.js';
import { sha256Of } from './oci/image.js';
import { buildRootfs, type Rootfs, type RootfsHooks, type RootfsRequest } from './oci/rootfs.js';
import { slugOf } from './oci/slug.js';
import { rootfsDir } from './paths.js';

export interface ImageSnapshotRequest extends Omit<NewSnapshot, 'rootfs' | 'agent'>, RootfsRequest {
  /** Where root disks are kept. */
  cacheDir?: string;
}

export interface ImageHooks extends RootfsHooks {
  /** Steps of building the default guest, whose kernel is used. */
  onImage?: (step: string, fraction: number) => void;
}

export interface ImageSnapshot {
  rootfs: Rootfs;
  snapshot: SnapshotResult;
}

/** Building hooks with a VM to install extras in. */
export const withInstall = (engine: Engine, hooks: RootfsHooks): RootfsHooks => ({
  ...hooks,
  install: (disk, image, packages, signal) => engine.installExtras(disk, image, packages, signal),
});

/** Throws what building and snapshot throw. */
export const snapshotImage = async (
  engine: Engine,
  request: ImageSnapshotRequest,
  hooks: ImageHooks = {},
): Promise<ImageSnapshot> => {
  const { tag, force = false } = request;
  if (engine.store.exists(tag) && !force) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
  const rootfs = await buildRootfs(request.cacheDir ?? rootfsDir(), request, withInstall(engine, hooks));
  return { rootfs, snapshot: await snapshotOf(engine, request, rootfs, hooks) };
};

const snapshotOf = (
  engine: Engine,
  { image: _image, sizeMib: _size, extras: _extras, cacheDir: _cache, ...request }: ImageSnapshotRequest,
  { path, record }: Rootfs,
  { signal, onStep, onImage }: ImageHooks,
): Promise<SnapshotResult> => {
  if (record.agent === 'c' && request.warmEval !== undefined)
    throw new ForkdError('ARGUMENT_INVALID', {
      argument: '--warm-eval',
      reason: `needs a Python, and '${record.image}' has none that the agent can use`,
      command: 'from-image',
    });
  return engine.snapshot(
    { ...request, rootfs: path, agent: record.agent },
    {
      ...(signal ? { signal } : {}),
      ...(onStep ? { onStep } : {}),
      ...(onImage ? { onProgress: onImage } : {}),
    },
  );
};

export interface RunRequest extends Omit<ImageSnapshotRequest, 'tag' | 'force'> {
  /** The image's ENTRYPOINT and CMD when empty. */
  args: string[];
  timeoutSecs: number;
}

/** The tag that `run` keeps for an image, so that the next run of it need not boot; one of its own for each warm-up, set of extras and set of volumes. */
export const runTag = ({
  image,
  warmExec,
  warmEval,
  extras,
  volumes = [],
}: Pick<RunRequest, 'image' | 'warmExec' | 'warmEval' | 'extras' | 'volumes'>): string => {
  const isPlain = !warmExec && !warmEval && !extras && volumes.length === 0;
  const places = volumes.map((one) => ({ ...one, host_path: resolve(one.host_path) }));
  const parts = [warmExec, warmEval, extras, ...(places.length > 0 ? [places] : [])];
  const warm = isPlain ? '' : `-${sha256Of(JSON.stringify(parts)).slice(0, 8)}`;
  // An image's name may end in a digest, which tells more than its beginning.
  const slug = slugOf(image).replace(/[^A-Za-z0-9]+/g, '-');
  return `run-${slug.slice(-(TAG_MAX - 4 - warm.length)) || 'image'}${warm}`;
};

/** Runs one command in one child. Throws what `snapshotImage` and `fork` throw, ARGUMENT_INVALID when there is no command. */
export const runImage = async (engine: Engine, request: RunRequest, hooks: ImageHooks = {}): Promise<ExecReply> => {
  const { signal } = hooks;
  const rootfs = await buildRootfs(request.cacheDir ?? rootfsDir(), request, withInstall(engine, hooks));
  const { entrypoint, cmd } = rootfs.record.config;
  const args = request.args.length > 0 ? request.args : [...entrypoint, ...cmd];
  if (args.length === 0)
    throw new ForkdError('ARGUMENT_INVALID', {
      argument: 'CMD',
      reason: 'is missing, and the image has neither ENTRYPOINT nor CMD',
      command: 'run',
    });
  const tag = runTag(request);
  if (!(await isReady(engine, tag, rootfs, request)))
    await snapshotOf(engine, { ...withoutRun(request), tag, force: true }, rootfs, hooks);
  const { sandboxes, failures } = await engine.fork({ tag, n: 1 }, signal ? { signal } : {});
  const [sandbox] = sandboxes;
  const [failure] = failures;
  if (!sandbox) throw failure ? ForkdError.fromData(failure.error) : new ForkdError('INTERNAL', { reason: 'no child' });
  const onAbort = () => void engine.kill([sandbox]);
  signal?.addEventListener('abort', onAbort);
  try {
    return await engine.exec(sandbox.id, args, request.timeoutSecs);
  } catch (error) {
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
    await engine.kill([sandbox]);
  }
};

const withoutRun = ({ args: _args, timeoutSecs: _timeout, ...request }: RunRequest) => request;

/** Is there a snapshot of this very disk that fits this host? */
const isReady = async (engine: Engine, tag: string, { record }: Rootfs, request: RunRequest): Promise<boolean> => {
  try {
    const m = engine.store.manifest(tag);
    if (m.rootfs_digest.blake3 !== record.blake3 || m.memory_mib !== (request.memoryMib ?? DEFAULT_MEMORY_MIB))
      return false;
    if (m.tap !== request.tap || (request.kernel !== undefined && m.kernel.path !== request.kernel)) return false;
    (await engine.load(tag)).close();
    return true;
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === 'SNAPSHOT_NOT_FOUND' || code === 'SNAPSHOT_INCOMPATIBLE' || code === 'SNAPSHOT_CORRUPT') return false;
    throw error;
  }
};
