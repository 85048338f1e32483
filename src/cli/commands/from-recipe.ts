import { formatMs } from '../../contract/units.js';
import { DEFAULT_BOOT_WAIT_SECS } from '../../main/make-snapshot.js';
import { snapshotRecipe } from '../../main/recipes/from-recipe.js';
import { findRecipe } from '../../main/recipes/recipe.js';
import type { Command } from '../command.js';
import { tellSnapshot } from '../made-snapshot.js';
import { detail, line, step } from '../progress.js';
import { StepProgress } from '../setup.js';
import { volumeOption, volumesOf } from '../volume-options.js';
import { withEngine } from '../with-engine.js';

export const fromRecipe: Command = {
  name: 'from-recipe',
  args: '<recipe>',
  description: 'Make a snapshot of a recipe: build its root disk, boot it, warm it, save it',
  options: [
    ['--tag <TAG>', 'Name of the snapshot (default: that of the recipe)'],
    ['--mem-size-mib <N>', 'Guest memory, MiB (default: what the recipe says)'],
    ['--vcpus <N>', 'Processors of the guest (default 1)'],
    ['--tap <NAME>', 'Give the guest a network card on this host tap (env FORKD_TAP; default: none)'],
    volumeOption,
    ['--boot-wait-secs <N>', `Longest wait for the agent, seconds (default ${DEFAULT_BOOT_WAIT_SECS})`],
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
    ['--force', 'Replace an existing tag'],
    ['--keep-workdir', 'Keep the work directory with the console log'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd from-recipe postgres',
    "forkd fork --tag postgres -n 3 -- psql -Atc 'select 40 + 2'",
    'forkd from-recipe ./my-recipe --tag mine',
  ],
  run: (options) => {
    const recipe = findRecipe(options.one('RECIPE'));
    const optional = {
      memoryMib: options.count('mem-size-mib'),
      vcpus: options.count('vcpus'),
      tap: options.string('tap', { env: 'FORKD_TAP' }),
      bootWaitSecs: options.count('boot-wait-secs'),
      require: options.requireIsolation(),
    };
    const given = Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined));
    const request = {
      ...(given as Record<string, never>),
      recipe,
      tag: options.string('tag') ?? recipe.name,
      volumes: volumesOf(options),
      force: options.flag('force'),
      keepWorkDir: options.flag('keep-workdir'),
    };
    return withEngine(async (engine, signal) => {
      const steps = new StepProgress();
      const hooks = { signal, onStep: step, onProgress: steps.update };
      const { snapshot, disk } = await snapshotRecipe(engine, request, hooks).finally(() => steps.end());
      detail(`agent up after ${formatMs(snapshot.boot_ms)}`);
      const more = disk ? { rootfs: disk.path, packages: disk.packages } : {};
      tellSnapshot(snapshot, options.flag('json'), { recipe: recipe.name, ...more });
      line(`  try it: forkd fork --tag ${request.tag} -n 3 -- ${recipe.tryIt.map(shown).join(' ')}`);
      return 0;
    });
  },
};

const shown = (word: string): string => (/^[\w./=-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
