import { FORK_FROZEN, Say } from '../../contract/hotfork.js';
import type { TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { withSilentEntries } from '../vmm/hot-child.js';
import { bornOf, childOf, type ForkedChild, HotforkControl } from '../vmm/hotfork.js';
import { moveTo } from './join.js';

/** A fork takes milliseconds; a host that is out of memory or processors may need seconds. */
const COPY_MS = 30_000;

/** A frozen copy has one thread, and nothing is rebuilt. Its descriptors have the source's numbers. */
export const copy = (
  { source, running, frozen, cgroupProcs = [] }: TaskInput<'copy'>,
  emit: (event: TaskEvent) => void,
  custody: Int32Array,
): TaskOutput<'copy'> => {
  const shim = new HotforkControl(source.controlFd, source.name, custody);
  const deadline = new Deadline(COPY_MS);
  const flags = frozen ? FORK_FROZEN : 0;
  const forked = withSilentEntries(source, (entries, given) =>
    running
      ? shim.branch(flags, entries, given, deadline)
      : forkOne(shim, () => shim.requestFork(0, flags, entries, given, deadline), deadline),
  );
  const vmm = bornOf(forked, 0, source.name, source);
  emit({ type: 'spawned', vmm });
  // Not left to itself: it would be on its way still when its source ends, and with that all that is in the same groups.
  for (const path of cgroupProcs) moveTo(path, vmm.pid);
  const { control, qmp, agent, consoles, taps, others, line } = source;
  const numbers = { control, qmp, agent, consoles, taps, others, ...(line === undefined ? {} : { line }) };
  const { fork_us, pause_us } = forked;
  return { port: { controlFd: vmm.controlFd, ...numbers }, fork_us, pause_us };
};

const forkOne = (shim: HotforkControl, request: () => number, deadline: Deadline): ForkedChild => {
  request();
  const child = childOf(shim.receive(deadline));
  while (shim.receive(deadline).type !== Say.done);
  return child;
};
