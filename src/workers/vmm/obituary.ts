/** Finds out why a VMM that stopped answering stopped: what its process and its console say. */
import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { CLOSED } from './handshake.js';
import { limits } from '../../contract/limits.js';

/** The last bytes of a console file as text, or '' when there is none. */
export const consoleTail = (path: string, bytes: number = limits.consoleTailBytes): string => {
  try {
    const fd = openSync(path, 'r');
    try {
      const { size } = fstatSync(fd);
      const buffer = Buffer.alloc(Math.min(size, bytes));
      readSync(fd, buffer, 0, buffer.length, size - buffer.length);
      return buffer.toString('utf8');
    } finally {
      closeSync(fd);
    }
  } catch {
    return '';
  }
};

/** Whether a console has all that it may have: what is printed after that is lost. */
export const isFull = (path: string): boolean => {
  try {
    return statSync(path).size >= limits.jailFileBytes;
  } catch {
    return false;
  }
};

/** The last lines worth showing in an error, each on a line of its own, or ''. */
export const lastLines = (path: string, count = 8): string => {
  const lines = consoleTail(path)
    .split(/\r?\n/)
    .map((line) => line.trimEnd())
    .filter((line) => line !== '')
    .slice(-count);
  return lines.length === 0 ? '' : `; its last lines:\n  ${lines.join('\n  ')}`;
};

/** What the guest kernel said when it panicked, or undefined. */
export const panicOf = (path: string): string | undefined =>
  /Kernel panic - not syncing: ([^\r\n]*)/.exec(consoleTail(path))?.[1];

/** How long it was waited for, and what the VM did meanwhile, in words. */
export interface BootWait {
  seconds: number;
  ran: string;
}

/** A failed wait on a VM, told by its real reason: a panic or the VMM's own last words come before "no answer". */
export const explain = (error: unknown, vm: string, consolePath: string, boot?: BootWait): ForkdError => {
  const failure = ForkdError.from(error);
  const panic = panicOf(consolePath);
  if (panic !== undefined) return new ForkdError('GUEST_PANIC', { vm, panic }, failure);
  const console = lastLines(consolePath);
  if (failure.code === 'AGENT_TIMEOUT' && boot)
    return new ForkdError('GUEST_SILENT', { vm, ...boot, console }, failure);
  const isClosed = failure.code === 'MEMORY_HANDSHAKE' && failure.details['reason'] === CLOSED;
  if (
    isClosed ||
    failure.code === 'AGENT_UNREACHABLE' ||
    (failure.code === 'VMM_PROTOCOL' && failure.cause !== undefined)
  ) {
    return new ForkdError('VMM_DIED', { vm, how: 'it closed its connections', console }, failure);
  }
  return failure;
};
