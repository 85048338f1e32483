import { closeSync, openSync } from 'node:fs';
import { FrameType, type ForkReply } from '../../contract/guest.js';
import type { TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { Deadline } from '../deadline.js';
import { idle } from '../idle.js';
import { AgentPort } from '../vmm/agent.js';
import { EVAL_ID, FORK_ID, firstWords } from '../vmm/hot-child.js';
import { receiveHandshake } from '../vmm/handshake.js';
import { HotforkControl, sortDescriptors } from '../vmm/hotfork.js';
import { clockNs, receiptOf } from '../vmm/identity.js';
import { loadState } from '../vmm/load-state.js';
import { explain } from '../vmm/obituary.js';
import { startVmm } from '../vmm/start.js';

/** Rounds after which dropping clean pages pays: those that the rounds before touched are known to be needed. */
const TRIM_AFTER_ROUNDS = 8;
const ROUNDS_AFTER_TRIM = 3;

/** The guest goes idle between rounds, as it is when a child wakes up: its way out of idleness is rehearsed too. */
const IDLE_MS = 20;
/** After a trim the guest's own timers must bring back what they need. */
const IDLE_AFTER_TRIM_MS = 150;

/** What the program's end leaves for later (RCU, a second) would else be done in each child. Pays where a template stays. */
const SETTLE_MS = 1000;

export const template = (input: TaskInput<'template'>, emit: (event: TaskEvent) => void): TaskOutput<'template'> => {
  const { vmm: start, answerMs } = input;
  try {
    return startTemplate(input, emit, new Deadline(answerMs));
  } catch (error) {
    throw explain(error, start.name, start.consolePath);
  }
};

const startTemplate = (
  input: TaskInput<'template'>,
  emit: (event: TaskEvent) => void,
  deadline: Deadline,
): TaskOutput<'template'> => {
  const { vmm: start, controlTarget, stateFd, stateTarget, rounds } = input;
  const began = performance.now();
  const state = openSync(`/proc/self/fd/${stateFd}`, 'r');
  const [controlFd, controlTheirs] = native.socketPair('seqpacket');
  const [memoryFd, memoryTheirs] = native.socketPair('seqpacket');
  const { faults } = input;
  let vmm: ReturnType<typeof startVmm>;
  try {
    vmm = startVmm(0, start, [
      [state, stateTarget],
      [controlTheirs, controlTarget],
      ...(faults ? ([[memoryTheirs, faults.target]] as [number, number][]) : []),
    ]);
  } catch (error) {
    for (const fd of [controlFd, memoryFd]) native.fdClose(fd);
    throw error;
  } finally {
    closeSync(state);
    for (const fd of [controlTheirs, memoryTheirs]) native.fdClose(fd);
  }
  emit({ type: 'spawned', vmm: { ...vmm, controlFd } });

  const shim = new HotforkControl(controlFd, start.name);
  let control: number;
  try {
    control = shim.hello(deadline).control;
    if (faults) adoptMemory(memoryFd, faults, start.name, vmm.pidfd, deadline);
  } finally {
    native.fdClose(memoryFd);
  }
  const { jail } = input;
  loadState(vmm.qmpFd, start.name, stateTarget, deadline, () => jail && shim.jail(jail, deadline));
  const loaded = performance.now();

  const agent = new AgentPort(vmm.agentFd, start.name);
  // Sealed again after each: a sealed copy knows what there is to do, and asks neither disk nor modules.
  const rehearse = () => {
    rehearsal(agent, input, deadline);
    agent.call({ action: 'seal' }, deadline);
  };
  const round = () => {
    shim.freeze(false, deadline);
    shim.release(deadline);
    rehearse();
    idle(IDLE_MS);
  };
  const stays = rounds >= TRIM_AFTER_ROUNDS;
  runPrograms(agent, input, stays ? USUAL : [SMALLEST], deadline);
  if (stays) idle(SETTLE_MS);
  agent.call({ action: 'seal' }, deadline);
  for (let i = 0; i < rounds; i++) round();
  if (stays) {
    shim.freeze(true, deadline);
    shim.release(deadline);
    for (let i = 0; i < ROUNDS_AFTER_TRIM; i++) {
      rehearse();
      idle(IDLE_AFTER_TRIM_MS);
    }
  }
  const frozen = shim.freeze(false, deadline);
  const numbers = { control, qmp: start.qmpTarget, agent: start.agentTarget };
  const port = {
    controlFd,
    ...numbers,
    ...sortDescriptors(frozen, vmm.pid, numbers, start.consolePath),
    ...(vmm.inside ? { line: vmm.inside.line } : {}),
  };
  return { port, load_ms: loaded - began, warm_ms: performance.now() - loaded, park_us: frozen.park_us };
};

/** From here on the fault server answers for the VMM's memory; its pidfd is whom the server ends when it cannot. */
const adoptMemory = (
  socket: number,
  { server, imageBytes }: NonNullable<TaskInput<'template'>['faults']>,
  vm: string,
  pidfd: number,
  deadline: Deadline,
): void => {
  const { uffd, regions } = receiveHandshake(socket, vm, imageBytes, deadline.leftMs);
  try {
    native.faultAdopt(server, uffd, regions, pidfd);
  } finally {
    native.fdClose(uffd);
  }
};

/**
 * QEMU's emulated TLB starts with 256 entries and grows only when the guest flushes it while it is nearly full (accel/tcg/cputlb.c,
 * tlb_mmu_resize_locked). A guest whose one process never gives up the processor to another never flushes, and pays a page
 * walk for every second access. Running a program makes it switch page tables, there and back. One makes it large enough; with six
 * it had 65,536 entries, of which a child then wrote a few on each of 150 pages, and copied those.
 */
const SMALLEST = ['/bin/true'];
/** What sandboxes are asked to run: children find it translated, which is most of a program's first run. An image may have neither. */
const USUAL = [['python3', '-c', ''], ['sh', '-c', ':'], SMALLEST];

/** One that takes longer, in whatever image, is ended and was no rehearsal. */
const PROGRAM_SECS = 5;

const runPrograms = (
  agent: AgentPort,
  input: TaskInput<'template'>,
  programs: string[][],
  deadline: Deadline,
): void => {
  for (const args of programs) {
    rehearsal(agent, input, deadline);
    agent.call({ action: 'exec', args, timeout: PROGRAM_SECS }, deadline);
  }
};

/** What a child hears first, in the same write, and both of its answers. */
const rehearsal = (
  agent: AgentPort,
  { rehearsal: identity, firstEval }: TaskInput<'template'>,
  deadline: Deadline,
): void => {
  agent.expect(FORK_ID, 'fork');
  agent.expect(EVAL_ID, 'eval');
  agent.write(firstWords({ ...identity, clock_ns: clockNs() }, firstEval), deadline);
  let missing = firstEval === undefined ? 1 : 2;
  while (missing > 0) {
    for (const frame of agent.read(deadline)) {
      if (frame.type !== FrameType.reply) continue;
      if (frame.id === FORK_ID) receiptOf(agent.name, agent.parse(frame) as Partial<ForkReply>);
      // Not ours: a guest that was saved while it worked for others answers them, here.
      else if (frame.id !== EVAL_ID) continue;
      missing--;
    }
  }
};
