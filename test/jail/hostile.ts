/** A program in the place of QEMU, in jail, whose copies each try one thing (hostile.c). */
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeCustody } from '../../src/contract/custody.js';
import { type ForkEntry, How, Say } from '../../src/contract/hotfork.js';
import { makeJail } from '../../src/main/host/jail.js';
import { type ExitStatus, native, shimPath } from '../../src/native/binding.js';
import { Deadline } from '../../src/workers/deadline.js';
import type { StartedVmm } from '../../src/contract/task.js';
import { Warden } from '../../src/main/sandbox/warden.js';
import { childOf, HotforkControl } from '../../src/workers/vmm/hotfork.js';
import { startVmm } from '../../src/workers/vmm/start.js';

const source = join(import.meta.dirname, '../../../test/jail/hostile.c');

const CONTROL = 11;
const COMMAND = 10;
/** A VMM has one; here nobody speaks on it. */
const QMP = 12;
const ANSWER_BYTES = 512;
const WAIT_MS = 20_000;

interface Copy {
  pid: number;
  /** In its own pid namespace, as its siblings know it. */
  inside: number;
  commandFd: number;
  ended: Promise<ExitStatus>;
  kill: () => void;
}

/** What came of an attempt: what the call returned, or the signal that it ended the process with. */
export type Outcome = { result: number; error: string; text: string } | { signal: string };

export class Hostile {
  readonly #directory: string;
  readonly #shim: HotforkControl;
  readonly #vmm: StartedVmm;
  readonly #fds: number[];
  readonly warden: Warden | undefined;
  #index = 0;

  constructor(readonly jail = makeJail()) {
    this.#directory = mkdtempSync(join(tmpdir(), 'hostile-'));
    const program = join(this.#directory, 'hostile');
    execFileSync('gcc', ['-D_GNU_SOURCE', '-std=gnu11', '-O1', '-o', program, source, '-lpthread']);
    const [control, controlTheirs] = native.socketPair('seqpacket');
    this.#vmm = startVmm(0, {
      name: 'hostile',
      file: program,
      args: [program],
      env: [`FORKD_HOTFORK_FD=${CONTROL}`],
      preload: [shimPath],
      fds: [[controlTheirs, CONTROL]],
      qmpTarget: QMP,
      agentTarget: COMMAND,
      consolePath: '/dev/null',
      cgroupProcs: [],
      confinement: this.jail.confinement,
    });
    native.fdClose(controlTheirs);
    this.warden = Warden.of(this.#vmm);
    this.#fds = [control, this.#vmm.qmpFd, this.#vmm.agentFd];
    this.#shim = new HotforkControl(control, 'hostile', makeCustody());
    this.#shim.hello(new Deadline(WAIT_MS));
    this.#shim.jail(this.jail.terms, new Deadline(WAIT_MS));
    this.#shim.freeze(false, new Deadline(WAIT_MS));
  }

  /** A copy that waits for what it is to try. */
  copy(cgroupProcs: string[] = []): Copy {
    const deadline = new Deadline(WAIT_MS);
    const entries = [
      { fd: CONTROL, how: How.pairSeqpacket },
      { fd: COMMAND, how: How.pairStream },
      { fd: QMP, how: How.null },
    ];
    const groups = cgroupProcs.map((path) => openSync(path, 'w'));
    const joins: ForkEntry[] = groups.map(() => ({ fd: -1, how: How.cgroupProcs }));
    this.#shim.requestFork(this.#index++, 0, [...entries, ...joins], groups, deadline);
    for (const fd of groups) closeSync(fd);
    const { pid: inside, fds } = childOf(this.#shim.receive(deadline));
    while (this.#shim.receive(deadline).type !== Say.done);
    const [pidfd, controlFd, commandFd] = fds as [number, number, number];
    const pid = native.pidfdPid(pidfd);
    // A pidfd watch does not keep the process alive; this does.
    const hold = setInterval(() => undefined, 60_000);
    const ended = new Promise<ExitStatus>((resolve) => {
      native.pidfdWatch(pidfd, (status) => {
        clearInterval(hold);
        for (const fd of [pidfd, controlFd, commandFd]) native.fdClose(fd);
        resolve(status);
      });
    });
    return { pid, inside, commandFd, ended, kill: () => native.pidfdSignal(pidfd, constants.signals.SIGKILL) };
  }

  /** Lets a copy try number `what` against process `victim`. */
  async attempt(what: number, victim = 0, copy = this.copy()): Promise<Outcome> {
    const words = new Int32Array([what, victim]);
    writeSync(copy.commandFd, new Uint8Array(words.buffer));
    if (native.pollReadable([copy.commandFd], WAIT_MS).length === 0) throw new Error(`attempt ${what}: no answer`);
    const answer = Buffer.alloc(ANSWER_BYTES);
    const bytes = readSync(copy.commandFd, answer);
    if (bytes === 0) {
      const { signal, code } = await copy.ended;
      return { signal: signalName(signal) ?? `exit code ${code}` };
    }
    copy.kill();
    await copy.ended;
    const error = answer.readInt32LE(4);
    return {
      result: answer.readInt32LE(0),
      error: errnoName(error),
      text: answer.toString('utf8', 8).split('\0')[0] ?? '',
    };
  }

  /** Of the first of them all, from which the copies are made. */
  get pid(): number {
    return this.#vmm.pid;
  }

  async close(): Promise<void> {
    const { pidfd } = this.#vmm;
    native.pidfdSignal(pidfd, constants.signals.SIGKILL);
    const hold = setInterval(() => undefined, 60_000);
    await new Promise<void>((resolve) => native.pidfdWatch(pidfd, () => resolve()));
    clearInterval(hold);
    this.warden?.leave();
    for (const fd of [pidfd, ...this.#fds]) native.fdClose(fd);
    rmSync(this.#directory, { recursive: true });
  }
}

const nameIn = (table: Record<string, number>, number: number | null): string | undefined =>
  Object.entries(table).find(([, value]) => value === number)?.[0];

const signalName = (signal: number | null) => nameIn(constants.signals, signal);
const errnoName = (error: number) => (error === 0 ? '' : (nameIn(constants.errno, error) ?? String(error)));

const OLD_GATE =
  'int main(void) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory"); return r <= 0; }';

/** Can a program outside of the jail call the kernel by the gate of 32-bit programs? */
export const hasOldGate = (): boolean => {
  const folder = mkdtempSync(join(tmpdir(), 'gate-'));
  const program = join(folder, 'gate');
  try {
    execFileSync('gcc', ['-x', 'c', '-', '-o', program], { input: OLD_GATE });
    return spawnSync(program).status === 0;
  } finally {
    rmSync(folder, { recursive: true });
  }
};
