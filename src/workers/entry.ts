/** Where a piscina worker starts: picks the task, and turns what it throws into data, which a structured clone keeps whole. */
import type { MessagePort } from 'node:worker_threads';
import { ForkdError } from '../contract/errors.js';
import type { Outcome, TaskEvent, TaskInput, TaskName, TaskOutput } from '../contract/task.js';
import { boot } from './tasks/boot.js';
import { call } from './tasks/call.js';
import { copy } from './tasks/copy.js';
import { hash } from './tasks/hash.js';
import { hotfork } from './tasks/hotfork.js';
import { load } from './tasks/load.js';
import { restore } from './tasks/restore.js';
import { save } from './tasks/save.js';
import { template } from './tasks/template.js';

type Handler<T extends TaskName> = (input: TaskInput<T>, emit: (event: TaskEvent) => void) => TaskOutput<T>;

const handlers: { [T in TaskName]: Handler<T> } = { boot, call, copy, hash, hotfork, load, restore, save, template };

export interface Job<T extends TaskName = TaskName> {
  task: T;
  input: TaskInput<T>;
  port?: MessagePort;
}

export default <T extends TaskName>({ task, input, port }: Job<T>): Outcome<T> => {
  try {
    return { ok: true, value: handlers[task](input, (event) => port?.postMessage(event)) };
  } catch (error) {
    return { ok: false, error: ForkdError.from(error).toData() };
  }
};
