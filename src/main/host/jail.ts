/**
 * The jail that this process can put a VMM into: what each part needs, and what is missing here. docs/internals/jail.md says how
 * it is built.
 */
import { randomInt } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import type { ForkdError } from '../../contract/errors.js';
import {
  JAIL_ANY_CALL,
  JAIL_PIDS,
  JAIL_ROOT,
  JAIL_SOCKETS,
  JAIL_USER,
  type JailTerms,
} from '../../contract/hotfork.js';
import { limits } from '../../contract/limits.js';
import type { Confinement } from '../../contract/task.js';
import { wardenPath } from '../../native/binding.js';
import { VmmFd } from '../vmm/driver.js';

/** The parts, in the order in which `forkd doctor` lists them. */
export const JAIL_PARTS = ['namespaces', 'pids', 'user', 'seccomp'] as const;
export type JailPart = (typeof JAIL_PARTS)[number];

export interface JailAbility {
  /** Why a part cannot be had, by part; a part that is not here can. */
  missing: Partial<Record<JailPart, string>>;
  /** The namespaces come by way of a user namespace: this user has no capability of his own for them. */
  byUserNamespace: boolean;
}

/** capabilities(7) */
const CAP = { DAC_OVERRIDE: 1, KILL: 5, SETGID: 6, SETUID: 7, SYS_CHROOT: 18, SYS_PTRACE: 19, SYS_ADMIN: 21 } as const;
type Cap = keyof typeof CAP;

/** To make the namespaces and to empty the root. */
const FOR_NAMESPACES: Cap[] = ['SYS_ADMIN', 'SYS_CHROOT'];
/** To become another user; and, for this process, to end it and to read its memory all the same. */
const FOR_USER: Cap[] = ['SETUID', 'SETGID', 'KILL', 'SYS_PTRACE', 'DAC_OVERRIDE'];

/** `unshare(2)` */
const CLONE_NEWNS = 0x00020000;
const CLONE_NEWUTS = 0x04000000;
const CLONE_NEWIPC = 0x08000000;
const CLONE_NEWNET = 0x40000000;

/** `setrlimit(2)` */
const RLIMIT_FSIZE = 1;
const RLIMIT_CORE = 4;
const RLIMIT_NPROC = 6;
const RLIMIT_NOFILE = 7;

export const jailAbility = (status = readFileSync('/proc/self/status', 'utf8')): JailAbility => {
  const held = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`);
  const lacking = (caps: Cap[]) => caps.filter((cap) => (held & (1n << BigInt(CAP[cap]))) === 0n);
  const missing: JailAbility['missing'] = {};
  const namespaces = lacking(FOR_NAMESPACES);
  // With it a VM has memory loaded when it is touched (memory/lazy.ts); root of a user namespace has no such right.
  const keeps = lacking(['SYS_PTRACE']).length === 0 ? 'CAP_SYS_PTRACE would be lost in one' : undefined;
  const problem = namespaces.length > 0 ? (keeps ?? userNamespaceProblem(status)) : undefined;
  if (problem !== undefined) missing.namespaces = `needs ${named(namespaces)}, or user namespaces: ${problem}`;
  const pids = missing.namespaces ?? pidNamespaceProblem(namespaces.length > 0);
  if (pids !== undefined) missing.pids = pids;
  const user = lacking(FOR_USER);
  if (user.length > 0) missing.user = `needs ${named(user)}`;
  else if (uidRange() === undefined) missing.user = 'no range of user ids is mapped into this user namespace';
  if (!/^Seccomp:/m.test(status)) missing.seccomp = 'this kernel has no seccomp';
  return { missing, byUserNamespace: namespaces.length > 0 && problem === undefined };
};

/** Why an ordinary user may make no user namespace, as far as settings tell; or undefined. Root without capabilities was meant to have none. */
const userNamespaceProblem = (status: string): string | undefined => {
  if (/^Uid:\s*\d+\s+0\b/m.test(status)) return 'not for root';
  if (setting('user/max_user_namespaces') === '0') return 'user.max_user_namespaces is 0';
  if (setting('kernel/unprivileged_userns_clone') === '0') return 'kernel.unprivileged_userns_clone is 0';
  if (setting('kernel/apparmor_restrict_unprivileged_userns') === '1')
    return 'kernel.apparmor_restrict_unprivileged_userns is 1';
  return undefined;
};

/** Why a VM cannot have a pid namespace where it can have the others. Its shim has to see a /proc of that namespace. */
const pidNamespaceProblem = (byUserNamespace: boolean): string | undefined => {
  if (setting('user/max_pid_namespaces') === '0') return 'user.max_pid_namespaces is 0';
  if (!existsSync(wardenPath)) return `${wardenPath} is missing`;
  // The kernel lets a user namespace mount one only where a whole one can be seen already (mount_too_revealing); systems mount on
  // directories that are there for that and always empty.
  const covered = byUserNamespace || !isMappedWhole() ? coveredProc() : [];
  return covered.length === 0 ? undefined : `parts of /proc are hidden here (${covered[0]})`;
};

/** In the first user namespace of the host. */
const isMappedWhole = (): boolean => /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync('/proc/self/uid_map', 'utf8'));

const coveredProc = (): string[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((path) => path.startsWith('/proc/') && !['/proc/sys/fs/binfmt_misc', '/proc/fs/nfsd'].includes(path));

const setting = (name: string): string | undefined => {
  try {
    return readFileSync(`/proc/sys/${name}`, 'utf8').trim();
  } catch {
    return undefined;
  }
};

const named = (caps: Cap[]): string => caps.map((cap) => `CAP_${cap}`).join(', ');

/** What a VMM is started with, and what is asked of the shim in it; a user id of its own each time. */
export interface Jail {
  confinement: Confinement;
  terms: JailTerms;
}

const NOTHING: JailAbility = {
  missing: { namespaces: 'refused', pids: 'refused', user: 'refused' },
  byUserNamespace: false,
};

export interface JailWishes {
  /** It uses no network namespace that is there, so it gets an empty one of its own. */
  ownNetwork?: boolean;
  /** It makes a disk: it reaches the network of this host by sockets of its own, and its files may be large. */
  builds?: boolean;
  /** What it calls is not known well enough to be listed. */
  anyCall?: boolean;
  /** VMs live on without their engine, and so does what their namespaces end with. */
  outlivesEngine?: boolean;
  /** The kernel has refused it a pid namespace of its own. */
  sharesPids?: boolean;
  /** The kernel has refused the rest: no_new_privs, limits and the filter of system calls, which need nobody's leave. */
  callsOnly?: boolean;
}

export type MakeJail = (wishes?: JailWishes) => Jail;

export const makeJail: MakeJail = (wishes = {}) => {
  const {
    ownNetwork = true,
    builds = false,
    anyCall = false,
    outlivesEngine = false,
    sharesPids = false,
    callsOnly = false,
  } = wishes;
  const { missing, byUserNamespace } = callsOnly ? NOTHING : jailAbility();
  const namespaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (ownNetwork && !builds ? CLONE_NEWNET : 0);
  const range = missing.user === undefined ? uidRange() : undefined;
  const anyUid = () => (range ? range.first + randomInt(range.count) : 0);
  const uid = anyUid();
  const ownPids = missing.pids === undefined && !sharesPids;
  const init = {
    file: wardenPath,
    args: [wardenPath, outlivesEngine ? 'stays' : 'dies', ...(range ? [String(anyUid())] : [])],
    line: VmmFd.line,
  };
  return {
    confinement: {
      ...(ownPids ? { init } : {}),
      ...(missing.namespaces === undefined ? { unshare: namespaces, ownUserNamespace: byUserNamespace } : {}),
      limits: [
        [RLIMIT_CORE, 0],
        ...(builds ? [] : ([[RLIMIT_FSIZE, limits.jailFileBytes]] as [number, number][])),
        [RLIMIT_NOFILE, limits.jailDescriptors],
        // Counted for each user: where the user is not its own, it would count what else he runs.
        ...(range ? ([[RLIMIT_NPROC, limits.jailTasks]] as [number, number][]) : []),
      ],
    },
    terms: {
      flags:
        (missing.namespaces === undefined ? JAIL_ROOT : 0) |
        (ownPids ? JAIL_PIDS : 0) |
        (range ? JAIL_USER : 0) |
        (builds ? JAIL_SOCKETS : 0) |
        (anyCall ? JAIL_ANY_CALL : 0),
      uid,
      gid: uid,
    },
  };
};

/**
 * User ids that belong to nobody: one is taken at random for each template, so that no list has to be kept of those in use. Where
 * a user namespace does not map the range, the last ids that it does map.
 */
const uidRange = (): { first: number; count: number } | undefined => {
  const { jailUidFirst: first, jailUids: count } = limits;
  const maps = ['uid_map', 'gid_map'].map((name) =>
    readFileSync(`/proc/self/${name}`, 'utf8')
      .trim()
      .split('\n')
      .map((line) => line.trim().split(/\s+/).map(Number) as [number, number, number]),
  );
  const covers = (from: number, n: number) =>
    maps.every((map) => map.some(([inside, , length]) => inside <= from && from + n <= inside + length));
  if (covers(first, count)) return { first, count };
  const last = Math.min(...maps.map((map) => Math.max(...map.map(([inside, , length]) => inside + length))));
  const few = limits.jailUidsMapped;
  return last > 2 * few && covers(last - few, few) ? { first: last - few, count: few } : undefined;
};

/** Why a VM could not go to jail, when that is what `error` tells. */
export const jailProblem = ({ code, details }: ForkdError): string | undefined => {
  const reason = String(details['reason'] ?? '');
  if (code === 'HOTFORK_REFUSED' && reason.startsWith('jail: ')) return reason;
  return code === 'VMM_START_FAILED' && /\b(unshare|mount|setrlimit|init)\b/.test(reason) ? reason : undefined;
};

/** It is about the pid namespace alone: the rest of the jail can be had. */
export const isAboutPids = (problem: string): boolean => /\bpid namespace\b|\bof the init\b/.test(problem);
