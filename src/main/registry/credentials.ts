/** Users of registries, as `docker login` and `podman login` leave them: `auths`, or a program that keeps them. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { DOCKER_HUB } from './reference.js';

export type Login = { user: string; password: string } | { identityToken: string };

interface DockerConfig {
  auths?: Record<string, { auth?: string; identitytoken?: string }>;
  credsStore?: string;
  credHelpers?: Record<string, string>;
}

const configPath = (): string =>
  process.env['REGISTRY_AUTH_FILE'] || join(process.env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json');

/** The names under which tools keep a host. */
const namesOf = (host: string): string[] => {
  if (host === DOCKER_HUB) return ['https://index.docker.io/v1/', DOCKER_HUB, 'index.docker.io'];
  return [host, `https://${host}`, `https://${host}/v1/`, `https://${host}/v2/`, `http://${host}`];
};

/** Undefined when nobody has logged in there. Throws CREDENTIALS_UNREADABLE. */
export const loginFor = async (host: string): Promise<Login | undefined> => {
  const path = configPath();
  try {
    const config = readConfig(path);
    const names = namesOf(host);
    const helper =
      names.map((name) => config.credHelpers?.[name]).find((one) => one !== undefined) ?? config.credsStore;
    const kept = helper === undefined ? undefined : await ask(helper, names[0] as string);
    return kept ?? names.map((name) => entryOf(config.auths?.[name])).find((one) => one !== undefined);
  } catch (error) {
    throw new ForkdError('CREDENTIALS_UNREADABLE', { path, reason: reasonOf(error) }, error);
  }
};

const readConfig = (path: string): DockerConfig => {
  try {
    const value = JSON.parse(readFileSync(path, 'utf8')) as unknown;
    if (typeof value !== 'object' || value === null) throw new Error('it is not an object');
    return value;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return {};
    throw error;
  }
};

const entryOf = (entry: { auth?: string; identitytoken?: string } | undefined): Login | undefined => {
  if (entry?.identitytoken) return { identityToken: entry.identitytoken };
  if (!entry?.auth) return undefined;
  const text = Buffer.from(entry.auth, 'base64').toString('utf8');
  const colon = text.indexOf(':');
  if (colon < 1) throw new Error('an auth is not USER:PASSWORD in base64');
  return { user: text.slice(0, colon), password: text.slice(colon + 1) };
};

const HELPER_MS = 20_000;

/** Asks `docker-credential-NAME get`. */
const ask = async (name: string, server: string): Promise<Login | undefined> => {
  if (!/^[\w.-]+$/.test(name)) throw new Error(`'${name}' is not the name of a credential helper`);
  const child = spawn(`docker-credential-${name}`, ['get'], {
    stdio: ['pipe', 'pipe', 'ignore'],
    timeout: HELPER_MS,
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  child.stdin.on('error', () => undefined);
  child.stdin.end(server);
  const parts: Buffer[] = [];
  child.stdout.on('data', (part: Buffer) => parts.push(part));
  // It says so by its exit code when it has none.
  if ((await ended) !== 0) return undefined;
  const { Username, Secret } = JSON.parse(Buffer.concat(parts).toString('utf8')) as Record<string, unknown>;
  if (typeof Username !== 'string' || typeof Secret !== 'string')
    throw new Error(`docker-credential-${name} answers something else`);
  return Username === '<token>' ? { identityToken: Secret } : { user: Username, password: Secret };
};
