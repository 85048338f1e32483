/**
 * apt-get as a resolver and downloader only: it sees an empty dpkg status, so packages that the host happens to have
 * do not hide dependencies, and everything it writes stays in a private directory, so no root is needed.
 */
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { type CommandResult, command, lastLines } from './command.js';

export interface Package {
  name: string;
  version: string;
}

export class Apt {
  readonly #dir: string;
  readonly #signal: AbortSignal | undefined;
  #privateLists = false;

  private constructor(dir: string, signal: AbortSignal | undefined) {
    this.#dir = dir;
    this.#signal = signal;
  }

  static async open(dir: string, signal?: AbortSignal): Promise<Apt> {
    await mkdir(join(dir, 'cache/archives/partial'), { recursive: true });
    await mkdir(join(dir, 'lists/partial'), { recursive: true });
    await writeFile(join(dir, 'status'), '');
    return new Apt(dir, signal);
  }

  /**
   * Runs `work` against the host's package lists; if that fails (no lists yet, or so old that the files are gone from
   * the mirror) fetches lists of our own and tries once more.
   */
  async withFreshLists<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (this.#privateLists || !isDownloadFailure(error)) throw error;
      this.#privateLists = true;
      // A single broken third-party source makes the whole update fail; what counts is whether the work now succeeds.
      await this.#run(['update']);
      return await work();
    }
  }

  /** The packages that an installation of `names` on an empty system would bring. */
  async closure(names: string[]): Promise<Package[]> {
    const result = await this.#run(['install', '--simulate', '--no-install-recommends', ...names]);
    if (result.status !== 0) throw downloadFailed(result);
    return parseSimulation(result.stdout.toString());
  }

  /** The first of `names` that the lists know, with what it needs. */
  async firstClosure(names: string[]): Promise<Package[]> {
    let failure: unknown;
    for (const name of names) {
      try {
        return await this.closure([name]);
      } catch (error) {
        failure ??= error;
      }
    }
    throw failure;
  }

  /** Downloads into `dir`, verified by apt; returns package name to file. */
  async download(packages: Package[], dir: string): Promise<Map<string, string>> {
    await mkdir(dir, { recursive: true });
    const result = await this.#run(['download', ...packages.map(({ name, version }) => `${name}=${version}`)], dir);
    if (result.status !== 0) throw downloadFailed(result);
    const files = new Map((await readdir(dir)).map((file) => [file.slice(0, file.indexOf('_')), join(dir, file)]));
    const missing = packages.find(({ name }) => !files.has(name));
    if (missing) throw new ForkdError('IMAGE_DOWNLOAD_FAILED', { reason: `apt-get did not bring ${missing.name}` });
    return files;
  }

  #run(args: string[], cwd?: string): Promise<CommandResult> {
    const settings = {
      'Dir::State::status': join(this.#dir, 'status'),
      'Dir::Cache': join(this.#dir, 'cache'),
      ...(this.#privateLists ? { 'Dir::State::lists': join(this.#dir, 'lists') } : {}),
      'Debug::NoLocking': '1',
      // The _apt user cannot write into our directory, and warns about it.
      'APT::Sandbox::User': process.getuid?.() === 0 ? 'root' : '',
      'Acquire::Retries': '2',
      // Hooks of the host (apt-listchanges, image-building services) have no business here.
      'APT::Update::Post-Invoke-Success': '',
    };
    const options = Object.entries(settings).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
    return command('apt-get', ['-q', ...options, ...args], {
      ...(cwd === undefined ? {} : { cwd }),
      signal: this.#signal,
    });
  }
}

/** `Inst name (version origin [arch])` lines, in the order of the simulation. */
export const parseSimulation = (text: string): Package[] =>
  [...text.matchAll(/^Inst ([^\s:]+)(?::\S+)? (?:\[\S+\] )?\((\S+) /gm)].map(([, name = '', version = '']) => ({
    name,
    version,
  }));

const downloadFailed = (result: CommandResult): ForkdError =>
  new ForkdError('IMAGE_DOWNLOAD_FAILED', { reason: lastLines(result.stderr || result.stdout.toString()) });

const isDownloadFailure = (error: unknown): boolean =>
  error instanceof ForkdError && error.code === 'IMAGE_DOWNLOAD_FAILED';
