import type { Command } from '../command.js';

/**
 * In the order in which `forkd --help` lists them: the way a new user meets them. A command's modules are loaded when it is
 * the one that was asked for: all of them together take longer to load than most commands take to run.
 */
const loaders: Record<string, () => Promise<Command>> = {
  quickstart: async () => (await import('./quickstart.js')).quickstart,
  doctor: async () => (await import('./doctor.js')).doctor,
  snapshot: async () => (await import('./snapshot.js')).snapshot,
  'from-image': async () => (await import('./from-image.js')).fromImage,
  recipes: async () => (await import('./recipes.js')).recipes,
  'from-recipe': async () => (await import('./from-recipe.js')).fromRecipe,
  run: async () => (await import('./run.js')).run,
  parent: async () => (await import('./parent.js')).parent,
  fork: async () => (await import('./fork.js')).fork,
  spawn: async () => (await import('./spawn.js')).spawn,
  ls: async () => (await import('./ls.js')).ls,
  limit: async () => (await import('./limit.js')).limit,
  kill: async () => (await import('./kill.js')).kill,
  workspace: async () => (await import('./workspace.js')).workspace,
  exec: async () => (await import('./exec.js')).exec,
  attach: async () => (await import('./attach.js')).attach,
  ps: async () => (await import('./ps.js')).ps,
  cp: async () => (await import('./cp.js')).cp,
  watch: async () => (await import('./watch.js')).watch,
  port: async () => (await import('./port.js')).port,
  eval: async () => (await import('./eval.js')).evaluate,
  ping: async () => (await import('./ping.js')).ping,
  images: async () => (await import('./images.js')).images,
  tree: async () => (await import('./tree.js')).tree,
  diff: async () => (await import('./diff.js')).diff,
  promote: async () => (await import('./promote.js')).promote,
  prune: async () => (await import('./prune.js')).prune,
  'snapshot-diff': async () => (await import('./snapshot-diff.js')).snapshotDiff,
  'snapshot-info': async () => (await import('./snapshot-info.js')).snapshotInfo,
  'snapshot-compact': async () => (await import('./snapshot-compact.js')).snapshotCompact,
  inspect: async () => (await import('./inspect.js')).inspect,
  pack: async () => (await import('./pack.js')).pack,
  unpack: async () => (await import('./unpack.js')).unpack,
  pull: async () => (await import('./pull.js')).pull,
  push: async () => (await import('./push.js')).push,
  rmi: async () => (await import('./rmi.js')).rmi,
  daemon: async () => (await import('./daemon.js')).daemon,
  bench: async () => (await import('./bench.js')).bench,
  mcp: async () => (await import('./mcp.js')).mcp,
  cleanup: async () => (await import('./cleanup.js')).cleanup,
  where: async () => (await import('./where.js')).where,
  'wp-bench': async () => (await import('./wp-bench.js')).wpBench,
};

/** The one of that name; all when there is none, since then a list or an error about them will be shown. */
export const loadCommands = (name?: string): Promise<Command[]> => {
  const loader = name !== undefined && Object.hasOwn(loaders, name) ? loaders[name] : undefined;
  return Promise.all(loader ? [loader()] : Object.values(loaders).map((load) => load()));
};
