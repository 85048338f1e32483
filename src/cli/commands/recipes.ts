import { recipeDisksDir } from '../../main/paths.js';
import { diskDir, findDisk } from '../../main/recipes/disk.js';
import { hasDisk, listRecipes, type Recipe } from '../../main/recipes/recipe.js';
import type { Command } from '../command.js';
import { printJson, printTable } from '../render.js';

export const recipes: Command = {
  name: 'recipes',
  description: 'List the guests that forkd knows how to make of Debian packages',
  options: [['--json', 'Print one JSON array']],
  examples: ['forkd recipes', 'forkd from-recipe postgres'],
  run: (options) => {
    const all = listRecipes();
    if (options.flag('json')) {
      printJson(all.map(asJson));
      return 0;
    }
    printTable(
      ['NAME', 'DISK', 'DESCRIPTION'],
      all.map((recipe) => [recipe.name, isBuilt(recipe) ? 'built' : '—', recipe.description]),
    );
    return 0;
  },
};

const isBuilt = (recipe: Recipe): boolean =>
  !hasDisk(recipe) || findDisk(diskDir(recipeDisksDir(), recipe)) !== undefined;

const asJson = (recipe: Recipe) => ({
  name: recipe.name,
  description: recipe.description,
  packages: recipe.packages,
  built: isBuilt(recipe),
  try: recipe.tryIt,
  answer: recipe.answer,
});
