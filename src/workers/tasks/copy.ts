import { FORK_FROZEN, Say } from '../../contract/hotfork.js';
import type { TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { withSilentEntries } from '../vmm/hot-child.js';
import { childOf, type ForkedChild, HotforkControl, whoIs } from '../vmm/hotfork.js';
import { moveTo } from './join.js';

/** A fork takes milliseconds; a host that is out of memory or processors may need seconds. */
const COPY_MS = 30_000;

/** A frozen copy has one thread, and nothing is rebuilt. Its descriptors have the source's numbers. */
export const copy = (
  { source, running, frozen, cgroupProcs = [] }: TaskInput<'copy'>,
  emit: (event: TaskEvent) => void,
): TaskOutput<'copy'> => {
  const shim = new HotforkControl(source.controlFd, source.name);
  const deadline = new Deadline(COPY_MS);
  const flags = frozen ? FORK_FROZEN : 0;
  const {
    pid: inner,
    fds,
    fork_us,
    pause_us,
  } = withSilentEntries(source, (entries, given) =>
    running
      ? shim.branch(flags, entries, given, deadline)
      : forkOne(shim, () => shim.requestFork(0, flags, entries, given, deadline), deadline),
  );
  const [pidfd, controlFd, qmpFd, agentFd] = fds as [number, number, number, number];
  const who = whoIs(pidfd, inner, source);
  emit({ type: 'spawned', vmm: { index: 0, ...who, pidfd, qmpFd, agentFd, controlFd } });
  // Not left to itself: it would be on its way still when its source ends, and with that all that is in the same groups.
  for (const path of cgroupProcs) moveTo(path, who.pid);
  const { control, qmp, agent, consoles, taps, others, line } = source;
  const numbers = { control, qmp, agent, consoles, taps, others, ...(line === undefined ? {} : { line }) };
  return { port: { controlFd, ...numbers }, fork_us, pause_us };
};

const forkOne = (shim: HotforkControl, request: () => number, deadline: Deadline): ForkedChild => {
  request();
  const child = childOf(shim.receive(deadline));
  while (shim.receive(deadline).type !== Say.done);
  return child;
};
