/** What an image says about how its programs are run. */
import type { Tree } from './tree.js';

export interface ImageConfig {
  /** `NAME=VALUE`. */
  env: string[];
  workdir: string;
  user: string;
  entrypoint: string[];
  cmd: string[];
}

export const NO_CONFIG: ImageConfig = { env: [], workdir: '/', user: '', entrypoint: [], cmd: [] };

/** Out of an image's configuration. What is not of its type counts as not there. */
export const configOf = (value: unknown): ImageConfig => {
  const { Env, WorkingDir, User, Entrypoint, Cmd } = (value ?? {}) as Record<string, unknown>;
  const texts = (list: unknown): string[] =>
    Array.isArray(list) ? list.filter((one): one is string => typeof one === 'string' && !one.includes('\0')) : [];
  const text = (one: unknown): string => (typeof one === 'string' && !one.includes('\0') ? one : '');
  const workdir = text(WorkingDir);
  return {
    env: texts(Env).filter((one) => /^[^=]+=/.test(one)),
    workdir: workdir.startsWith('/') ? workdir : `/${workdir}`,
    user: text(User),
    entrypoint: texts(Entrypoint),
    cmd: texts(Cmd),
  };
};

/** An image's USER in numbers. */
export interface UserIds {
  uid: number;
  gid: number;
  groups: number[];
  home: string;
}

/** The texts of /etc/passwd and /etc/group. */
export interface Accounts {
  passwd: string;
  group: string;
}

/**
 * `USER`, `USER:GROUP`, by name or number, as the image's own /etc/passwd and /etc/group have them. Throws an Error for a name that is
 * not there.
 */
export const userIds = (user: string, accounts: Accounts): UserIds => {
  const [name = '', group] = user.split(':');
  const rows = (text: string): string[][] => text.split('\n').map((line) => line.split(':'));
  const passwd = rows(accounts.passwd).filter((row) => row.length >= 6);
  const groups = rows(accounts.group).filter((row) => row.length >= 3);
  const known = passwd.find((row) => row[0] === name) ?? passwd.find((row) => row[2] === name);
  const uid = name === '' ? 0 : idOf(known?.[2] ?? name, `user '${name}'`);
  const found = groups.find((row) => row[0] === group) ?? groups.find((row) => row[2] === group);
  const gid =
    group === undefined || group === '' ? Number(known?.[3] ?? 0) : idOf(found?.[2] ?? group, `group '${group}'`);
  const member = known?.[0];
  const more = groups.filter((row) => member !== undefined && (row[3] ?? '').split(',').includes(member));
  const extra = group === undefined ? more.map((row) => Number(row[2])).filter(Number.isInteger) : [];
  return { uid, gid, groups: extra, home: known?.[5] || '/' };
};

const idOf = (text: string, what: string): number => {
  if (!/^\d{1,10}$/.test(text) || Number(text) > 0xffff_fffe)
    throw new Error(`its ${what} is not in /etc/passwd or /etc/group`);
  return Number(text);
};

export const CONFIG_PATH = '/etc/forkd/image.conf';

/**
 * For the agent, one word and a value a line: `env NAME=VALUE`, `cwd PATH`, `uid N`, `gid N`, `groups N N`. A backslash and a line
 * break in a value are `\\\\` and `\\n`.
 */
export const writeConfig = async (tree: Tree, config: ImageConfig, user: UserIds): Promise<void> => {
  const hasHome = config.env.some((one) => one.startsWith('HOME='));
  const lines = [
    ...config.env.map((one) => `env ${one}`),
    ...(hasHome || config.user === '' ? [] : [`env HOME=${user.home}`]),
    `cwd ${config.workdir}`,
    ...(config.user === '' ? [] : [`uid ${user.uid}`, `gid ${user.gid}`, `groups ${user.groups.join(' ')}`]),
  ];
  const escaped = lines.map((line) => line.replaceAll('\\', '\\\\').replaceAll('\n', '\\n'));
  await tree.write(CONFIG_PATH, `${escaped.join('\n')}\n`);
};

/** Where init looks for an interpreter, in this order. */
const PYTHONS = ['/usr/local/bin/python3', '/usr/bin/python3'];
/** The oldest that the agent is written for. */
const PYTHON_MIN = 9;

/** The image's own Python, if the agent can run on it. */
export const findPython = (tree: Tree): string | undefined =>
  PYTHONS.find((path) => {
    const node = tree.find(path);
    const version = /python3\.(\d+)$/.exec(node?.paths[0] ?? '')?.[1];
    return (
      node?.kind === 'file' && (node.mode & 0o111) !== 0 && (version === undefined || Number(version) >= PYTHON_MIN)
    );
  });
