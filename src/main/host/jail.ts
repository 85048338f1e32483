/**
 * The jail that this process can put a VMM into: what each part needs, and what is missing here. docs/internals/jail.md says how
 * it is built.
 */
import { randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { JAIL_CLONE3, JAIL_ROOT, JAIL_USER, type JailTerms } from '../../contract/hotfork.js';
import { limits } from '../../contract/limits.js';
import type { Confinement } from '../../contract/task.js';
import { hierarchies } from './cgroup.js';

/** The parts, in the order in which `forkd doctor` lists them. */
export const JAIL_PARTS = ['namespaces', 'user', 'seccomp'] as const;
export type JailPart = (typeof JAIL_PARTS)[number];

export interface JailAbility {
  /** Why a part cannot be had, by part; a part that is not here can. */
  missing: Partial<Record<JailPart, string>>;
}

/** capabilities(7) */
const CAP = { DAC_OVERRIDE: 1, KILL: 5, SETGID: 6, SETUID: 7, SYS_CHROOT: 18, SYS_PTRACE: 19, SYS_ADMIN: 21 } as const;
type Cap = keyof typeof CAP;

/** To make the namespaces and to empty the root. */
const FOR_NAMESPACES: Cap[] = ['SYS_ADMIN', 'SYS_CHROOT'];
/** To become another user; and, for this process, to end it and to read its memory all the same. */
const FOR_USER: Cap[] = ['SETUID', 'SETGID', 'KILL', 'SYS_PTRACE', 'DAC_OVERRIDE'];

/** `unshare(2)`. Not the user namespace: who is root needs none. */
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
  if (namespaces.length > 0) missing.namespaces = `needs ${named(namespaces)}`;
  const user = lacking(FOR_USER);
  if (user.length > 0) missing.user = `needs ${named(user)}`;
  else if (uidRange() === undefined) missing.user = 'no range of user ids is mapped into this user namespace';
  if (!/^Seccomp:/m.test(status)) missing.seccomp = 'this kernel has no seccomp';
  return { missing };
};

const named = (caps: Cap[]): string => caps.map((cap) => `CAP_${cap}`).join(', ');

/** What a VMM is started with, and what is asked of the shim in it; a user id of its own each time. */
export interface Jail {
  confinement: Confinement;
  terms: JailTerms;
}

/** `ownNetwork`: it gets an empty network namespace, since it was given none. */
export const makeJail = ({ ownNetwork = true } = {}): Jail => {
  const { missing } = jailAbility();
  const namespaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (ownNetwork ? CLONE_NEWNET : 0);
  const range = missing.user === undefined ? uidRange() : undefined;
  const uid = range ? range.first + randomInt(range.count) : 0;
  return {
    confinement: {
      ...(missing.namespaces === undefined ? { unshare: namespaces } : {}),
      limits: [
        [RLIMIT_CORE, 0],
        [RLIMIT_FSIZE, limits.jailFileBytes],
        [RLIMIT_NOFILE, limits.jailDescriptors],
        // Counted for each user: where the user is not its own, it would count what else he runs.
        ...(range ? ([[RLIMIT_NPROC, limits.jailTasks]] as [number, number][]) : []),
      ],
    },
    terms: {
      flags:
        (missing.namespaces === undefined ? JAIL_ROOT : 0) | (range ? JAIL_USER : 0) | (hasUnified() ? JAIL_CLONE3 : 0),
      uid,
      gid: uid,
    },
  };
};

/** Children are born in groups of cgroup v2. */
const hasUnified = (): boolean => Object.values(hierarchies()).some(({ version }) => version === 2);

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
