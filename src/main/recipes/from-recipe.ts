/** Snapshots made of recipes. */
import { ForkdError } from '../../contract/errors.js';
import type { Engine, NewSnapshot } from '../engine.js';
import type { SnapshotResult } from '../make-snapshot.js';
import { recipeDisksDir } from '../paths.js';
import { buildDisk, type DiskHooks, type RecipeDisk } from './disk.js';
import { hasDisk, type Recipe } from './recipe.js';

/** What a recipe says gives way to what is asked for. */
export type RecipeRequest = Pick<
  NewSnapshot,
  'memoryMib' | 'vcpus' | 'volumes' | 'bootWaitSecs' | 'tap' | 'require' | 'force' | 'keepWorkDir'
> & { recipe: Recipe; tag: string };

export interface RecipeSnapshot {
  snapshot: SnapshotResult;
  /** Undefined when the default guest has all that it needs. */
  disk?: RecipeDisk;
}

/** Throws what building the disk and making a snapshot throw. */
export const snapshotRecipe = async (
  engine: Engine,
  { recipe, ...request }: RecipeRequest,
  hooks: DiskHooks = {},
): Promise<RecipeSnapshot> => {
  const { signal, onStep, onProgress } = hooks;
  const { tag, force = false } = request;
  if (engine.store.exists(tag) && !force) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
  const disk = hasDisk(recipe)
    ? await buildDisk(recipeDisksDir(), recipe, () => engine.diskContext(signal), hooks)
    : undefined;
  const snapshot = await engine.snapshot(
    {
      ...(recipe.memoryMib === undefined ? {} : { memoryMib: recipe.memoryMib }),
      ...(recipe.warm === undefined ? {} : { warmExec: recipe.warm }),
      ...(recipe.warmEval === undefined ? {} : { warmEval: recipe.warmEval }),
      ...(disk ? { rootfs: disk.path } : {}),
      ...request,
    },
    { ...(signal ? { signal } : {}), ...(onStep ? { onStep } : {}), ...(onProgress ? { onProgress } : {}) },
  );
  return { snapshot, ...(disk ? { disk } : {}) };
};
