/** Processes that one of two guests has and the other has not. Copies keep the numbers of what ran when they were made. */
import type { ProcessChange } from '../../contract/branches.js';
import { eachOf, type Guest, listOf, textOf, unlessGone } from './guest.js';

export const diffProcesses = async (a: Guest, b: Guest): Promise<ProcessChange[]> => {
  const [before, after] = await Promise.all([processesOf(a), processesOf(b)]);
  const only = (these: Map<string, Process>, those: Map<string, Process>, change: ProcessChange['change']) =>
    [...these].filter(([key]) => !those.has(key)).map(([, one]): ProcessChange => ({ change, ...one }));
  return [...only(before, after, 'removed'), ...only(after, before, 'added')].sort(
    (x, y) => x.pid - y.pid || (x.change === 'removed' ? -1 : 1),
  );
};

interface Process {
  pid: number;
  command: string;
}

const processesOf = async (guest: Guest): Promise<Map<string, Process>> => {
  const found = new Map<string, Process>();
  const pids = (await listOf(guest, '/proc')).filter(({ name }) => /^\d+$/.test(name)).map(({ name }) => name);
  await eachOf(pids, async (pid) => {
    const text = await unlessGone(textOf(guest, `/proc/${pid}/cmdline`));
    // The kernel's own threads have none, nor have those that nobody has waited for.
    if (!text) return;
    const command = text.replace(/\0$/, '').replaceAll('\0', ' ');
    found.set(`${pid} ${command}`, { pid: Number(pid), command });
  });
  return found;
};
