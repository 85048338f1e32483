/**
 * The numbers of the hot-fork control protocol. src/native/hotfork/protocol.h is the other side;
 * docs/reference/hotfork-protocol.md draws the sequences.
 */
export const HOTFORK_MAGIC = 0x4648;
export const HOTFORK_VERSION = 1;
export const HOTFORK_PACKET_MAX = 16_384;

/** What the engine asks. */
export const Ask = { freeze: 1, fork: 2, release: 3, branch: 4, status: 5, jail: 6 } as const;

/** What the shim says. */
export const Say = {
  hello: 128,
  frozen: 129,
  child: 130,
  done: 131,
  released: 132,
  state: 133,
  refused: 134,
  jailed: 135,
} as const;

export const FREEZE_TRIM = 1;
export const FORK_FROZEN = 1;
/** For its first quarter of a second the child stays on one processor: its threads hand over to each other without migrating. */
export const FORK_PIN = 2;
/** No death signal: the child, and every copy of it, lives as long as somebody holds the other end of its control socket. */
export const FORK_TIED = 4;

/** An empty root; the process was started in a mount namespace of its own. */
export const JAIL_ROOT = 1;
/** Another user, and no capability. */
export const JAIL_USER = 2;

/** No filter. */
export const JAIL_ANY_CALL = 4;

/** With JAIL_ROOT: it was started in a pid namespace of its own, and its /proc is that one's. */
export const JAIL_PIDS = 8;

/** It reaches the host's network by sockets of its own. */
export const JAIL_SOCKETS = 16;

/** What JAIL asks for. A filter of system calls and no_new_privs are always part of it. */
export interface JailTerms {
  flags: number;
  uid: number;
  gid: number;
}

/** What to do with a descriptor: `replace` needs an entry in every FORK and BRANCH. */
export const Disposition = { refuse: 0, share: 1, recreate: 2, replace: 3 } as const;

/** What a child gets in place of a descriptor. */
export const How = {
  given: 0,
  pairStream: 1,
  pairSeqpacket: 2,
  null: 4,
  cgroupProcs: 7,
} as const;

export interface ForkEntry {
  fd: number;
  how: number;
}

/** A frozen process that can be forked: how to reach it, and what each of its children must be given. */
export interface TemplatePort {
  controlFd: number;
  /** Descriptor numbers inside it, by what they are for. */
  control: number;
  qmp: number;
  agent: number;
  /** Console and standard streams: each child gets its own console file there. */
  consoles: number[];
  /** Behind its network card: each child gets a tap of its own there. */
  taps: number[];
  /** Anything else that must not be shared: children get /dev/null. */
  others: number[];
  /** Of its pid namespace, which its children are born in: StartedVmm.inside.line. */
  line?: number;
}
