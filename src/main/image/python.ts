/** Runs the guest's own Python on the host, for one purpose: bytecode that the guest need not compile under emulation. */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { mustRun } from './command.js';
import type { GuestSource } from './sources.js';

/** Guest interpreters come with their loader and libraries, so host and guest may be different distributions. */
const runPython = async (tree: string, args: string[], signal?: AbortSignal): Promise<Buffer> => {
  const interpreter = await findPython(tree);
  const libraries = ['usr/lib/x86_64-linux-gnu', 'usr/lib64', 'usr/lib'].map((path) => join(tree, path)).join(':');
  const loader = join(tree, 'usr/lib64/ld-linux-x86-64.so.2');
  const real = existsSync(loader) ? loader : join(tree, 'usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2');
  // -S -E -s: nothing of the host's Python may leak in.
  return await mustRun(real, ['--library-path', libraries, interpreter, '-S', '-E', '-s', ...args], {
    signal,
    env: { PYTHONHOME: join(tree, 'usr') },
  });
};

export const findPython = async (tree: string): Promise<string> => {
  const names = (await readdir(join(tree, 'usr/bin'))).filter((name) => /^python3\.\d+$/.test(name));
  const name = names.sort().at(-1);
  if (name === undefined) throw new ForkdError('IMAGE_BUILD_FAILED', { reason: 'the packages bring no python3' });
  return join(tree, 'usr/bin', name);
};

export const pythonVersionOf = async (tree: string): Promise<string> =>
  basename(await findPython(tree)).slice('python'.length);

/** unchecked-hash: the image is read-only, so no import needs to look at a source file's time. */
const COMPILE = ['-m', 'compileall', '-q', '--invalidation-mode', 'unchecked-hash'];

export const compileTree = async (tree: string, signal?: AbortSignal): Promise<void> => {
  const version = await pythonVersionOf(tree);
  const roots = [`usr/lib/python${version}`, 'usr/lib/python3']
    .map((path) => join(tree, path))
    .filter((path) => existsSync(path));
  await runPython(tree, [...COMPILE, '-j', '0', '-s', tree, '-p', '/', ...roots], signal);
};

/** The agent's modules as the files of a __pycache__ directory. */
export const compileAgent = async (
  tree: string,
  sources: GuestSource[],
  signal?: AbortSignal,
): Promise<Map<string, Buffer>> => {
  const dir = await mkdtemp(join(tmpdir(), 'forkd-agent-'));
  try {
    await mkdir(join(dir, 'forkd_agent'));
    for (const { path, data } of sources)
      await writeFile(join(dir, basename(path) === path ? path : `forkd_agent/${basename(path)}`), data);
    await runPython(
      tree,
      [...COMPILE, '-s', join(dir, 'forkd_agent'), '-p', '/run/forkd/forkd_agent', join(dir, 'forkd_agent')],
      signal,
    );
    const cache = join(dir, 'forkd_agent/__pycache__');
    const names = await readdir(cache);
    return new Map(await Promise.all(names.map(async (name) => [name, await readFile(join(cache, name))] as const)));
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};
