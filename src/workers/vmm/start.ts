/** Starts one VMM process with fresh sockets for QMP and the agent. */
import { fstatSync, openSync } from 'node:fs';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import type { StartedVmm, VmmStart } from '../../contract/task.js';
import { native } from '../../native/binding.js';

/** Below the limit of Linux (OOM_SCORE_ADJ_MAX is 1000), as the reference: when memory runs out a child goes before the engine. */
const OOM_SCORE_ADJ = 500;

/**
 * Returns a VMM whose pidfd and socket ends the caller owns. On failure nothing is left open.
 * Throws VMM_START_FAILED, QEMU_MISSING, NETNS_MISSING.
 */
export const startVmm = (index: number, start: VmmStart, extraFds: [number, number][] = []): StartedVmm => {
  const temporary: number[] = [];
  const kept: number[] = [];
  const open = (path: string, flags: string): number => {
    const fd = openSync(path, flags, 0o600);
    temporary.push(fd);
    return fd;
  };
  try {
    const pair = (): [number, number] => {
      const [ours, theirs] = native.socketPair('stream');
      kept.push(ours);
      temporary.push(theirs);
      return [ours, theirs];
    };
    const [qmpFd, qmpTheirs] = pair();
    const [agentFd, agentTheirs] = pair();
    const tether = start.tether && tie(start.tether, kept, temporary);
    const ownLine = start.confinement?.init?.line;
    const devNull = open('/dev/null', 'r');
    const log = open(start.consolePath, 'a');
    const { pid, pidfd, inside, init, line } = native.spawn({
      file: start.file,
      args: start.args,
      env: [
        ...start.env,
        ...preloadOf([...(tether?.preload ?? []), ...(start.preload ?? [])]),
        ...(tether?.env ?? []),
        ...(ownLine === undefined ? [] : [`FORKD_HOTFORK_LINE=${ownLine}`]),
      ],
      fds: [
        [devNull, 0],
        [log, 1],
        [log, 2],
        [qmpTheirs, start.qmpTarget],
        [agentTheirs, start.agentTarget],
        ...start.fds,
        ...extraFds,
        ...(tether?.fds ?? []),
      ],
      ...(start.netnsPath ? { netns: openNetns(start.netnsPath, open) } : {}),
      ...(start.confinement ?? {}),
      cgroups: start.cgroupProcs.map((path) => open(path, 'w')),
      dieWithParent: tether === undefined,
      // Whoever writes to it goes on to what it does next, and there are fewer switches: docs/decisions/0098.
      batch: true,
      oomScoreAdj: OOM_SCORE_ADJ,
    });
    kept.length = 0;
    return {
      index,
      pid,
      pidfd,
      qmpFd,
      agentFd,
      ...(tether ? { tetherFd: tether.ours } : {}),
      ...(line === undefined || init === undefined ? {} : { inside: { pid: inside, line }, wardenPidfd: init }),
    };
  } catch (error) {
    if (error instanceof ForkdError) throw error;
    if (errnoOf(error) === 'ENOENT' && callOf(error) === 'execve') throw new ForkdError('QEMU_MISSING', {}, error);
    throw new ForkdError('VMM_START_FAILED', { reason: reasonOf(error) }, error);
  } finally {
    for (const fd of [...temporary, ...kept]) native.fdClose(fd);
  }
};

/** The last is started first: the shim's start is to be before any thread. */
const preloadOf = (libraries: string[]): string[] =>
  libraries.length === 0 ? [] : [`LD_PRELOAD=${libraries.join(':')}`];

/** Our end goes to `kept`, the VMM's to `temporary`. */
const tie = ({ library, target }: NonNullable<VmmStart['tether']>, kept: number[], temporary: number[]) => {
  const [ours, theirs] = native.socketPair('seqpacket');
  kept.push(ours);
  temporary.push(theirs);
  const fds: [number, number][] = [[theirs, target]];
  return { ours, preload: [library], env: [`FORKD_TETHER_FD=${target}`], fds };
};

/** Of a pipe, as a VM can tell it in 32 bits (hotfork/arrivals.h); it has no more. */
export const inodeOf = (fd: number): number => fstatSync(fd).ino >>> 0;

const callOf = (error: unknown): unknown => (error as { syscall?: unknown }).syscall;

const openNetns = (path: string, open: (path: string, flags: string) => number): number => {
  try {
    return open(path, 'r');
  } catch (error) {
    throw new ForkdError('NETNS_MISSING', { netns: path.replace(/^.*\//, '') }, error);
  }
};
