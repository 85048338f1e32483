/**
 * What the main thread asks of a worker: one bounded step each, and what comes back.
 *
 *     main                                 worker
 *      |  Task (+ a MessagePort for events)  -->  |
 *      |  <-- event  spawned / result             |   as they happen
 *      |  <-- Outcome                             |   once, ends the task
 *
 * Descriptors cross as numbers: they are process-wide. A worker owns what it opens until it says so in a `spawned`
 * event; from then on the main thread owns it and closes it, after the task has ended. Those that a shim sends are the main
 * thread's from the moment they arrive (custody.ts).
 * Errors cross as data (contract/errors).
 */
import type { AnsweredAction } from './answers.js';
import type { ErrorData } from './errors.js';
import type { JailTerms, TemplatePort } from './hotfork.js';
import type { Network } from './network.js';
import type { LayerName } from './layer-damage.js';
import type { EvalReply, ExecReply, ForkReceipt, ForkRequest, GuestRequest, Hello } from './guest.js';

/** What a VMM is confined by from before its first instruction; the binding's SpawnOptions say how. */
export interface Confinement {
  unshare?: number;
  ownUserNamespace?: boolean;
  /** The first process of a pid namespace of its own (main/sandbox/warden.ts), and the number of its line. Nothing: it shares its engine's. */
  init?: { file: string; args: string[]; line: number };
  limits: [resource: number, value: number][];
}

/** How to start one VMM process; the worker adds the socket ends. */
export interface VmmStart {
  file: string;
  args: string[];
  env: string[];
  /** Libraries that are loaded before its own. */
  preload?: string[];
  /** `[source, target]` descriptors it inherits. */
  fds: [source: number, target: number][];
  /** Targets that the worker fills with its ends of fresh socket pairs. */
  qmpTarget: number;
  agentTarget: number;
  /** File that takes the serial console and the VMM's own messages. */
  consolePath: string;
  netnsPath?: string;
  confinement?: Confinement;
  cgroupProcs: string[];
  /**
   * It lives as long as somebody holds the other end of a socket, not as long as its engine: `library` is preloaded and sees to it
   * (src/native/tether), `target` is the socket's number.
   */
  tether?: { library: string; target: number };
  /** Named in errors, e.g. `child 3`. */
  name: string;
}

/** What is open of one child's network (net/make.ts). All of it is the owner's; the namespace and both ends of the link go with the last. */
export interface NetworkFds {
  /** For the VMM, which holds the namespace from then on. */
  tap: number;
  /** A netlink socket in the namespace: its rules are changed and its denials read by it. */
  rules: number;
  /** Where the guest asks for names. */
  udp: number;
}

/** A started VMM. The main thread owns all of it. */
export interface StartedVmm {
  index: number;
  pid: number;
  pidfd: number;
  /** Who it is in a pid namespace of its own: its pid there, and the inode of the namespace's line, which all that are in it hold. */
  inside?: { pid: number; line: number };
  /** Of the first process of a namespace that was made for it. */
  wardenPidfd?: number;
  qmpFd: number;
  agentFd: number;
  /** The hot-fork shim's socket, when there is one. */
  controlFd?: number;
  /** The other end of its tether, when it has one. */
  tetherFd?: number;
}

/** Who a VMM is, by our numbers and its own. */
export type Who = Pick<StartedVmm, 'pid' | 'inside'>;

/** A child that is forked from a frozen process. */
export interface HotChild {
  index: number;
  name: string;
  consolePath: string;
  cgroupProcs: string[];
  /** What its network card is connected to; nothing, when absent. */
  tap?: number;
  identity: Omit<ForkRequest, 'clock_ns'>;
}

/** A child that was forked ahead of its request: it runs, sealed, and waits for its own identity. */
export interface SpareChild {
  index: number;
  name: string;
  consolePath: string;
  agentFd: number;
  identity: Omit<ForkRequest, 'clock_ns'>;
}

/** A process that can be copied: a template, or a running child whose descriptors are those of its template. */
export interface SourcePort extends TemplatePort {
  name: string;
}

/** A layer of a chain, open. */
export interface LayerFile extends LayerName {
  fd: number;
}

export interface ChildTimes {
  /** Milliseconds: process start to its first word on QMP; or, for a hot fork, from the request to the live process. */
  spawn_ms: number;
  /** Milliseconds: device state loaded and the guest running. 0 for a hot fork: there is nothing to load. */
  load_ms: number;
  /** Milliseconds: identity taken (and the first eval answered, when one was asked for). */
  first_answer_ms: number;
  /** `performance.now()` against the process-wide clock: when the child was ready, ms since the epoch. */
  ready_at: number;
}

/** The directories of a group, what is written there once, and who joins it. */
export interface JoinOrder {
  dirs: string[];
  files: [path: string, text: string][];
  pid: number;
}

/** Asked of a shim that is preloaded for nothing else, before the guest runs; its socket is `controlTarget`. */
export interface JailOrder extends JailTerms {
  controlTarget: number;
}

export interface RestoreChild {
  index: number;
  vmm: VmmStart;
  jail?: JailOrder;
  identity: Omit<ForkRequest, 'clock_ns'>;
}

export interface Tasks {
  /** Starts the parent and waits until its agent says hello. */
  boot: { input: { vmm: VmmStart; jail?: JailOrder; waitMs: number }; output: { hello: Hello; boot_ms: number } };
  /** Walks the parent through the path that a child takes, seals it, and saves device state and memory. */
  save: {
    input: {
      name: string;
      pid: number;
      qmpFd: number;
      agentFd: number;
      consolePath: string;
      memfd: number;
      statePath: string;
      memoryPath: string;
      rehearsal: Omit<ForkRequest, 'clock_ns'>;
      rehearsals: number;
      /** Run, then evaluated, in the parent before anything is rehearsed. */
      warmExec?: string[];
      warmEval?: string;
    };
    output: { state_ms: number; memory_ms: number; state_bytes: number; memory_root: string; written_bytes: number };
  };
  /** Starts a batch of children from device state, gives each its identity, waits for each first answer. */
  restore: {
    input: {
      children: RestoreChild[];
      /** Device state; opened anew for each child, since each needs its own file offset. */
      stateFd: number;
      stateTarget: number;
      firstEval?: string;
      answerMs: number;
      /** Int32: set to 1 to stop before the next child. */
      cancel: Int32Array;
    };
    output: { failures: { index: number; error: ErrorData }[] };
  };
  /** Starts a VMM under the shim, loads device state, walks it `rounds` times through what a child does, and freezes it. */
  template: {
    input: {
      vmm: VmmStart;
      controlTarget: number;
      /** The fault server that its memory is handed to, when it is not all there. */
      faults?: { server: number; target: number; imageBytes: number };
      stateFd: number;
      stateTarget: number;
      rehearsal: Omit<ForkRequest, 'clock_ns'>;
      /** Asked of the shim before device state is loaded. */
      jail?: JailTerms;
      rounds: number;
      firstEval?: string;
      answerMs: number;
    };
    output: { port: TemplatePort; load_ms: number; warm_ms: number; park_us: number };
  };
  /** Forks a batch of children from a frozen process, gives each its identity, waits for each first answer. */
  hotfork: {
    input: {
      port: TemplatePort;
      children: HotChild[];
      firstEval?: string;
      /** Seal each again when it has answered: spares, which get another identity later (`awaken`). */
      seal?: boolean;
      /** They live as long as somebody holds their control sockets, not as long as the engine. */
      tied?: boolean;
      answerMs: number;
      /** Int32: set to 1 to stop before the next child. */
      cancel: Int32Array;
    };
    output: { failures: { index: number; error: ErrorData }[]; fork_us: number[] };
  };
  /** Gives a batch of spares their own identity and waits for each first answer. */
  awaken: {
    input: {
      children: SpareChild[];
      firstEval?: string;
      answerMs: number;
      /** Int32: set to 1 to stop before the next child. */
      cancel: Int32Array;
    };
    output: { failures: { index: number; error: ErrorData }[] };
  };
  /**
   * Forks one copy: a second template, or (from a running source, which goes on) a branch; both stay frozen. One that is to be
   * saved is let run.
   */
  copy: {
    /** `cgroupProcs`: the groups that it leaves its source's for. */
    input: { source: SourcePort; running: boolean; frozen: boolean; cgroupProcs?: string[] };
    output: { port: TemplatePort; pause_us: number; fork_us: number };
  };
  /** Saves a running copy: device state, and the pages that differ from the image it was loaded from. It is left stopped. */
  saveCopy: {
    input: { vm: StartedVmm; parentRoot: string; statePath: string; memoryPath: string };
    output: {
      state_ms: number;
      memory_ms: number;
      state_bytes: number;
      memory_root: string;
      written_bytes: number;
      dirty_bytes: number;
    };
  };
  /** Puts VMs that run into groups of their own. One that has ended meanwhile is left out. */
  join: { input: { groups: JoinOrder[] }; output: object };
  /** Takes up the conversation with shims whose engine was killed in the middle of one. */
  regain: {
    input: { shims: { name: string; controlFd: number }[] };
    output: { lost: { name: string; reason: string }[] };
  };
  /** Makes networks for children, by their numbers; `taken` are those that another program had. */
  networks: {
    input: {
      numbers: number[];
      links: Network;
      /** Addresses of this host. */
      own: string[];
    };
    output: { made: { number: number; fds: NetworkFds }[]; taken: number[] };
  };
  /** Sends one call to each of a batch of agents and collects the replies as they come. */
  call: {
    input: { calls: { index: number; name: string; agentFd: number; request: GuestRequest; timeoutMs: number }[] };
    output: { answered: number };
  };
  /** Writes the files of a base that equals a chain, base first. */
  compact: {
    input: { layers: LayerFile[]; memoryPath: string; stateFd: number; statePath: string };
    output: { root: string; fileBytes: number };
  };
  /** Compares two images, each a chain (base first), and what a process that runs from it has changed. */
  memoryDiff: {
    input: { a: ImageOf; b: ImageOf };
    output: { pages: number; chunks: number; imageBytes: number; privateBytes: [a: number, b: number] };
  };
  /** Copies synthetic memory as it is at one instant into `target`, which is read back: `wrong` counts the bytes that are not what they were. */
  wpBench: {
    input: { bytes: number; target: number; isPrivate: boolean; writer: boolean; copiers: number };
    output: WpTimes & { wrong: number };
  };
  /** `problem`: it is no answer. */
  answer: {
    input: { action: AnsweredAction; payload: Uint8Array };
    output: { body: Uint8Array } | { problem: string };
  };
  /** Whether a large answer of an agent, which goes on as it is, is one. */
  judge: { input: { payload: Uint8Array }; output: { problem?: string } };
  /** SHA-256 of files. */
  hash: { input: { paths: string[] }; output: { digests: { path: string; sha256: string; bytes: number }[] } };
}

export interface ImageOf {
  layers: LayerFile[];
  live?: { pid: number; parentRoot: string };
}

/** Milliseconds, and pages of 4 KiB. */
export interface WpTimes {
  armMs: number;
  copyMs: number;
  finalizeMs: number;
  pages: number;
  /** Pages that were copied because a store waited for them (64 KiB at a time), and the others. */
  byFault: number;
  byCopiers: number;
  /** What the writer did meanwhile, and the longest that a store of its took. */
  stores: number;
  longestStoreMs: number;
}

export type TaskName = keyof Tasks;
export type TaskInput<T extends TaskName> = Tasks[T]['input'];
export type TaskOutput<T extends TaskName> = Tasks[T]['output'];

export type TaskEvent =
  | { type: 'spawned'; vmm: StartedVmm }
  | { type: 'ready'; index: number; receipt: ForkReceipt; times: ChildTimes; firstResult?: EvalReply }
  | { type: 'reply'; index: number; ms: number; reply: ExecReply | EvalReply }
  | { type: 'failed'; index: number; ms: number; error: ErrorData };

export type Outcome<T extends TaskName> = { ok: true; value: TaskOutput<T> } | { ok: false; error: ErrorData };
