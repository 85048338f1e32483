import { mkdirSync, writeFileSync } from 'node:fs';
import { join as pathOf } from 'node:path';
import { errnoOf } from '../../contract/errors.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';

/**
 * The first of them waits for some milliseconds: the kernel lets every processor pass a quiet state before it moves a process
 * (cgroup_threadgroup_rwsem). That is why it is not done on a child's way to its first answer.
 */
export const join = ({ groups }: TaskInput<'join'>): TaskOutput<'join'> => {
  for (const { dirs, files, pid } of groups) {
    for (const dir of dirs) mkdirSync(dir, { recursive: true });
    for (const [path, text] of files) writeFileSync(path, text);
    for (const dir of dirs) moveTo(pathOf(dir, 'cgroup.procs'), pid);
  }
  return {};
};

/** Pids are handed out in a circle, so the number is not another's yet when its process has just ended. */
export const moveTo = (procs: string, pid: number): void => {
  try {
    writeFileSync(procs, String(pid));
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
};
