/** Recipes: what they say, and that a child of each does what it is for. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import type { ForkdError } from '../../src/contract/errors.js';
import { Engine } from '../../src/main/engine.js';
import { snapshotRecipe } from '../../src/main/recipes/from-recipe.js';
import { findRecipe, hasDisk, listRecipes, recipeDigest } from '../../src/main/recipes/recipe.js';
import { forkd } from '../support/cli.js';
import { suite } from '../support/suite.js';
import { makeWorld, sharedData, type World } from '../support/world.js';

const test = suite('recipes');
let world: World;
let engine: Engine;

/** The others download packages and build a disk, half a minute each. By hand, or with all: FORKD_TEST_ALL_RECIPES=1. */
const all = process.env['FORKD_TEST_ALL_RECIPES'] !== undefined;
const tried = listRecipes().filter((recipe) => all || !hasDisk(recipe));

test.before(() => {
  world = makeWorld();
  Object.assign(process.env, world.env);
  // What was learnt about KVM on this host.
  const known = join(sharedData(), 'forkd/host.json');
  if (existsSync(known)) cpSync(known, join(world.env.XDG_DATA_HOME, 'forkd/host.json'));
  engine = new Engine();
});

test.after(async () => {
  await engine?.close();
  world?.close();
});

const write = (name: string, toml: string): string => {
  const dir = join(world.root, name);
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'recipe.toml'), toml);
  return dir;
};

const dataVolume = (): string => {
  const [tree, path] = [join(world.root, 'tree'), join(world.root, 'data.ext4')];
  mkdirSync(tree, { recursive: true });
  writeFileSync(join(tree, 'file'), 'data\n');
  execFileSync('/usr/sbin/mkfs.ext4', ['-q', '-F', '-d', tree, path, '4M']);
  return path;
};

const GOOD = 'description = "d"\npackages = ["jq"]\ntry = ["true"]\nanswer = ""\n';

const refusal = (path: string): string => {
  try {
    findRecipe(path);
    return 'found';
  } catch (error) {
    return `${(error as ForkdError).code}: ${(error as ForkdError).message}`;
  }
};

test('those of the reference that Debian has packages for are there', async () => {
  assert.equal(
    listRecipes().map(({ name }) => name),
    ['coding-agent', 'nodejs', 'postgres', 'python-numpy'],
  );
  const { stdout } = await forkd(['recipes', '--json'], { env: world.env });
  const said = JSON.parse(stdout) as { name: string; built: boolean }[];
  assert.ok(said.find(({ name }) => name === 'python-numpy')?.built, 'it is the default guest');
});

test('a recipe of one’s own is a path; what it says is checked', () => {
  const path = write('mine', GOOD);
  assert.equal(findRecipe(path).packages, ['jq']);
  assert.match(refusal('mine'), /^RECIPE_NOT_FOUND/);
  assert.match(refusal('../mine'), /^RECIPE_NOT_FOUND/);
  const wrong: [string, string, RegExp][] = [
    ['packages = ["jq"]', 'packages = ["-o=Dir::Etc=/x"]', /packages is not a list of packages/],
    ['packages', 'pakages', /'pakages' is no key/],
    ['description = "d"', '', /description is missing/],
    ['try = ["true"]', 'try = "true"', /try and answer are missing/],
    ['answer', 'memory_mib = -1\nanswer', /memory_mib/],
    ['answer', 'warm = []\nanswer', /warm is not a list/],
    ['= "d"', '= d', /recipe\.toml: /],
  ];
  for (const [from, to, reason] of wrong) {
    write('mine', GOOD.replace(from, to));
    assert.match(refusal(path), /^RECIPE_INVALID/, to);
    assert.match(refusal(path), reason);
  }
});

test('a root disk is another when a package, the setup or a file of it is', () => {
  const path = write('disk', GOOD);
  const digests = [recipeDigest(findRecipe(path))];
  const changed = (): void => {
    const digest = recipeDigest(findRecipe(path));
    assert.not(digests.includes(digest));
    digests.push(digest);
  };
  write('disk', GOOD.replace('"jq"', '"jq", "make"'));
  changed();
  writeFileSync(join(path, 'setup'), 'true\n');
  changed();
  mkdirSync(join(path, 'files/etc'), { recursive: true });
  changed();
  writeFileSync(join(path, 'files/etc/x'), '1');
  changed();
  writeFileSync(join(path, 'files/etc/x'), '2');
  changed();
  write('disk', GOOD.replace('"jq"', '"jq", "make"').replace('"d"', '"another"'));
  assert.is(recipeDigest(findRecipe(path)), digests.at(-1), 'a description changes nothing');
});

for (const recipe of tried) {
  test(`${recipe.name}: every child does what it is for`, async () => {
    const volumes = [{ host_path: dataVolume(), guest_path: '/data', read_only: true }];
    const { disk } = await snapshotRecipe(engine, { recipe, tag: recipe.name, volumes });
    assert.is(disk !== undefined, hasDisk(recipe));
    const { sandboxes } = await engine.fork({ tag: recipe.name, n: 2 });
    try {
      assert.is(sandboxes.length, 2);
      for (const { id } of sandboxes) {
        const { stdout, stderr, exit_code } = await engine.exec(id, recipe.tryIt, 60);
        assert.equal([stdout, exit_code], [recipe.answer, 0], stderr);
        assert.is((await engine.exec(id, ['cat', '/data/file'], 60)).stdout, 'data\n');
      }
      if (recipe.name === 'nodejs') await requireNode(sandboxes.map(({ id }) => id));
    } finally {
      await engine.kill(sandboxes);
    }
  });
}

/** The one that was started before the snapshot answers, in each child with variables of its own. */
const requireNode = async (ids: string[]): Promise<void> => {
  for (const [i, id] of ids.entries()) await engine.eval(id, `globalThis.mine = ${i}`);
  for (const [i, id] of ids.entries()) {
    const reply = await engine.eval(id, 'Promise.resolve([mine, typeof require])');
    assert.is((reply as { result_json?: string }).result_json, `[${i}, "function"]`);
  }
  const failed = await engine.eval(ids[0] as string, 'nothing.at.all');
  assert.match(failed.error ?? '', /ReferenceError/);
};

test.run();
