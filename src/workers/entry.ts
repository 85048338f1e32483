/** Where a piscina worker starts: picks the task, and turns what it throws into data, which a structured clone keeps whole. */
import { setImmediate } from 'node:timers/promises';
import type { MessagePort } from 'node:worker_threads';
import { ForkdError } from '../contract/errors.js';
import type { Outcome, TaskEvent, TaskInput, TaskName, TaskOutput } from '../contract/task.js';
import { serveMemory } from './roles/memory.js';
import { serveRemote } from './roles/remote.js';
import { answer } from './tasks/answer.js';
import { awaken } from './tasks/awaken.js';
import { boot } from './tasks/boot.js';
import { call } from './tasks/call.js';
import { compact } from './tasks/compact.js';
import { copy } from './tasks/copy.js';
import { hash } from './tasks/hash.js';
import { hotfork } from './tasks/hotfork.js';
import { join } from './tasks/join.js';
import { judge } from './tasks/judge.js';
import { memoryDiff } from './tasks/memory-diff.js';
import { networks } from './tasks/networks.js';
import { regain } from './tasks/regain.js';
import { restore } from './tasks/restore.js';
import { save } from './tasks/save.js';
import { saveCopy } from './tasks/save-copy.js';
import { template } from './tasks/template.js';
import { wpBench } from './tasks/wp-bench.js';

type Handler<T extends TaskName> = (
  input: TaskInput<T>,
  emit: (event: TaskEvent) => void,
  custody: Int32Array,
) => TaskOutput<T>;

const handlers: { [T in TaskName]: Handler<T> } = {
  answer,
  awaken,
  boot,
  call,
  compact,
  copy,
  hash,
  hotfork,
  join,
  judge,
  memoryDiff,
  networks,
  regain,
  restore,
  save,
  saveCopy,
  template,
  wpBench,
};

export interface Job<T extends TaskName = TaskName> {
  task: T;
  input: TaskInput<T>;
  port: MessagePort;
  /** Of what arrives for it (contract/custody.ts). */
  custody: Int32Array;
}

/** A role stays with its port until it is told to stop; a task is one bounded step. */
export interface RoleJob {
  role: 'memory' | 'remote';
  port: MessagePort;
}

/**
 * Between two tasks piscina waits without turning the event loop, and a port whose other end was closed goes only when the loop turns:
 * without this a busy worker keeps the port of every task that it ever had.
 */
const TASKS_A_TURN = 64;
let tasks = 0;

export default async <T extends TaskName>(job: Job<T> | RoleJob): Promise<Outcome<T> | undefined> => {
  if ('role' in job) {
    await (job.role === 'memory' ? serveMemory(job.port) : serveRemote(job.port));
    return undefined;
  }
  const { task, input, port, custody } = job;
  if (++tasks % TASKS_A_TURN === 0) await setImmediate();
  try {
    return { ok: true, value: handlers[task](input, (event) => port.postMessage(event), custody) };
  } catch (error) {
    return { ok: false, error: ForkdError.from(error).toData() };
  }
};
