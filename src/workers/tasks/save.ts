import { closeSync, openSync, statSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import type { EvalReply, ExecReply, ForkReply } from '../../contract/guest.js';
import { CHUNK_BYTES } from '../../contract/page-map.js';
import { LAYER_ZSTD_LEVEL } from '../../contract/snapshot.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { type LayerWritten, native } from '../../native/binding.js';
import { Deadline } from '../deadline.js';
import { idle } from '../idle.js';
import { AgentPort } from '../vmm/agent.js';
import { setClock, takeIdentity } from '../vmm/identity.js';
import { explain, lastLines } from '../vmm/obituary.js';
import { Patience } from '../vmm/patience.js';
import { processorTime, since } from '../vmm/processor-time.js';
import { Qmp } from '../vmm/qmp.js';
import { saveState } from '../vmm/save-state.js';

/** A user's warm-up may import large libraries under emulation. */
const WARM_SECS = 600;

/** What a child of the reference's benchmarks does first; harmless where numpy is missing. */
const REHEARSED_EVAL = "__import__('sys').modules.get('numpy') and numpy.zeros(5).tolist()";

/** Saves a warmed parent. The VM is left stopped; the caller ends it. */
export const save = (input: TaskInput<'save'>): TaskOutput<'save'> => {
  try {
    warm(input);
    const began = performance.now();
    const qmp = new Qmp(input.qmpFd, input.name, new Deadline(60_000));
    qmp.prepareMigration();
    qmp.run('stop');
    saveState(qmp, input.statePath);
    const saved = performance.now();
    const memory = saveMemory(input.memfd, input.memoryPath);
    return {
      state_ms: saved - began,
      memory_ms: performance.now() - saved,
      state_bytes: statSync(input.statePath).size,
      memory_root: memory.root,
      written_bytes: memory.fileBytes,
    };
  } catch (error) {
    throw explain(error, input.name, input.consolePath);
  }
};

/** The pages and code paths that a child touches first are touched here, once, instead of in every child. */
const warm = (input: TaskInput<'save'>): void => {
  const agent = new AgentPort(input.agentFd, input.name);
  const deadline = new Deadline(WARM_SECS * 1000);
  if (input.warmExec !== undefined) warmByProgram(agent, input.warmExec, deadline);
  if (input.warmEval !== undefined) {
    const reply = agent.call({ action: 'eval', code: input.warmEval }, deadline) as unknown as EvalReply;
    if (reply.error !== undefined) throw new ForkdError('AGENT_ERROR', { error: reply.error });
  }
  /** One thing that each child does, or that no program of a user's is part of. */
  const step = <T>(what: string, use: (deadline: Deadline) => T): T => answered(input, what, deadline.leftMs, use);
  for (let i = 1; i <= input.rehearsals; i++) {
    const round = `(${i} of ${input.rehearsals})`;
    step(`take an identity ${round}`, (soon) => takeIdentity(agent, input.rehearsal, soon));
    step(`set its clock ${round}`, (soon) => setClock(agent, soon));
    step(`evaluate ${round}`, (soon) => agent.call({ action: 'eval', code: REHEARSED_EVAL }, soon));
  }
  step('run /bin/true', (soon) => agent.call({ action: 'exec', args: ['/bin/true'], timeout: 30 }, soon));
  idle(SETTLE_MS);
  const sealed = step('seal itself', (soon) => agent.call({ action: 'seal' }, soon)) as unknown as Partial<ForkReply>;
  if (sealed.error !== undefined) throw new ForkdError('AGENT_ERROR', { error: sealed.error });
};

/** Throws GUEST_STUCK, which says what was asked and whether the VM did anything, and what `use` throws. */
const answered = <T>(
  { name, pid, consolePath }: TaskInput<'save'>,
  step: string,
  mostMs: number,
  use: (deadline: Deadline) => T,
): T => {
  const began = performance.now();
  const before = processorTime(pid);
  try {
    return use(new Patience(mostMs, pid));
  } catch (error) {
    if (ForkdError.from(error).code !== 'AGENT_TIMEOUT') throw error;
    const seconds = Math.round((performance.now() - began) / 1000);
    const told = { vm: name, seconds, step, ran: since(before, pid), console: lastLines(consolePath) };
    throw new ForkdError('GUEST_STUCK', told);
  }
};

/**
 * What a boot and a program's end leave to be done later is done now, by the parent: freed memory that waits for RCU (a second),
 * neighbour tables, timeouts of block requests, statistics. Saved on its way, it would be done in each child 1 to 3 s after its birth:
 * 4 ms of processor time and 1.2 MiB of memory, as much as all the rest of a child.
 */
const SETTLE_MS = 3000;

const OUTPUT_SHOWN = 500;

const warmByProgram = (agent: AgentPort, args: string[], deadline: Deadline): void => {
  const reply = agent.call({ action: 'exec', args, timeout: WARM_SECS }, deadline) as unknown as ExecReply;
  if (reply.error !== undefined) throw new ForkdError('AGENT_ERROR', { error: reply.error });
  const output = `${reply.stderr}${reply.stdout}`.trim().slice(-OUTPUT_SHOWN);
  if (reply.exit_code !== 0)
    throw new ForkdError('WARM_UP_FAILED', { command: args.join(' '), code: reply.exit_code, output });
};

const saveMemory = (memfd: number, path: string): LayerWritten => {
  const fd = openSync(path, 'wx+', 0o600);
  try {
    return native.layerWriteImage(memfd, fd, { chunkBytes: CHUNK_BYTES, zstdLevel: LAYER_ZSTD_LEVEL });
  } finally {
    closeSync(fd);
  }
};
