/**
 * Recipes: a directory each, with what a guest needs beyond the default one. `recipe.toml` says it; `setup`, if there is one, is a shell script that runs
 * in a VM of the root disk; `files/` is copied into the root.
 */
import { createHash } from 'node:crypto';
import { existsSync, lstatSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse } from 'smol-toml';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { isTag } from '../../contract/names.js';

export interface Recipe {
  name: string;
  dir: string;
  description: string;
  /** Of Debian, with all that they need. */
  packages: string[];
  /** Not brought, though a package says that it needs them. */
  without: string[];
  memoryMib?: number;
  /** Run in the parent before it is saved. */
  warm?: string[];
  warmEval?: string;
  /** A command that shows that a child works, and what it prints. */
  tryIt: string[];
  answer: string;
}

/** dist/src/main/recipes/recipe.js -> recipes: they are not compiled. */
export const recipesDir = (): string => fileURLToPath(new URL('../../../../recipes', import.meta.url));

const FILE = 'recipe.toml';
export const SETUP = 'setup';
export const FILES = 'files';

/** All that come with forkd, by name. */
export const listRecipes = (dir = recipesDir()): Recipe[] =>
  readdirSync(dir)
    .sort()
    .filter((name) => existsSync(join(dir, name, FILE)))
    .map((name) => readRecipe(join(dir, name)));

/** One of those, or the one in a directory, whose path has a slash. Throws RECIPE_NOT_FOUND, RECIPE_INVALID. */
export const findRecipe = (name: string, dir = recipesDir()): Recipe => {
  const isPath = name.includes('/');
  const found = isPath ? resolve(name) : join(dir, name);
  if ((!isPath && !isTag(name)) || !existsSync(join(found, FILE))) throw new ForkdError('RECIPE_NOT_FOUND', { name });
  return readRecipe(found);
};

const PACKAGE = /^[a-z0-9][a-z0-9.+-]{1,100}$/;

const readRecipe = (dir: string): Recipe => {
  const name = basename(dir);
  const refuse = (reason: string): never => {
    throw new ForkdError('RECIPE_INVALID', { name, reason });
  };
  const value = readToml(join(dir, FILE), refuse);
  const { description, packages = [], without = [], memory_mib, warm, warm_eval, try: tryIt, answer, ...rest } = value;
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) refuse(`'${unknown}' is no key of ${FILE}`);
  if (!isTag(name)) refuse('the name of its directory cannot be a tag');
  const isText = (one: unknown): one is string => typeof one === 'string' && one !== '' && !one.includes('\0');
  const isList = (list: unknown): list is string[] => Array.isArray(list) && list.every(isText);
  if (!isText(description)) refuse('description is missing');
  for (const [key, list] of Object.entries({ packages, without }))
    if (!isList(list) || !list.every((one) => PACKAGE.test(one))) refuse(`${key} is not a list of packages`);
  if (memory_mib !== undefined && !(Number.isInteger(memory_mib) && Number(memory_mib) > 0))
    refuse('memory_mib is not a number of MiB');
  if (warm !== undefined && (!isList(warm) || warm.length === 0)) refuse('warm is not a list of words');
  if (warm_eval !== undefined && !isText(warm_eval)) refuse('warm_eval is not a text');
  if (!isList(tryIt) || tryIt.length === 0 || typeof answer !== 'string') refuse('try and answer are missing');
  return {
    name,
    dir,
    description: description as string,
    packages: packages as string[],
    without: without as string[],
    ...(memory_mib === undefined ? {} : { memoryMib: memory_mib as number }),
    ...(warm === undefined ? {} : { warm: warm as string[] }),
    ...(warm_eval === undefined ? {} : { warmEval: warm_eval as string }),
    tryIt: tryIt as string[],
    answer: answer as string,
  };
};

const readToml = (path: string, refuse: (reason: string) => never): Record<string, unknown> => {
  try {
    return parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
  } catch (error) {
    return refuse(`${FILE}: ${reasonOf(error)}`);
  }
};

/** It needs a root disk of its own. */
export const hasDisk = ({ dir, packages }: Recipe): boolean =>
  packages.length > 0 || [SETUP, FILES].some((name) => existsSync(join(dir, name)));

/** Of all that decides what its root disk is. */
export const recipeDigest = ({ dir, packages, without }: Recipe): string => {
  const hash = createHash('sha256').update(JSON.stringify([packages, without]));
  const add = (path: string): void => {
    const stat = lstatSync(join(dir, path));
    const content = stat.isFile()
      ? readFileSync(join(dir, path))
      : Buffer.from(stat.isSymbolicLink() ? readlinkSync(join(dir, path)) : '');
    hash.update(`\0${path}\0${stat.mode}\0${content.length}\0`).update(content);
    if (stat.isDirectory()) for (const name of readdirSync(join(dir, path)).sort()) add(join(path, name));
  };
  for (const name of [SETUP, FILES]) if (statSync(join(dir, name), { throwIfNoEntry: false })) add(name);
  return hash.digest('hex');
};
