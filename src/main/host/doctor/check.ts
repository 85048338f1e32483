/** What a check is, and how one that hangs or throws is told. */
import { readFileSync } from 'node:fs';
import { reasonOf } from '../../../contract/errors.js';
import type { QemuDriver } from '../../vmm/qemu.js';
import type { Fix } from './fix.js';

export type Status = 'pass' | 'warn' | 'fail' | 'skip';

export interface Finding {
  status: Status;
  detail: string;
  /** What the user can do about it. */
  hint?: string;
  /** What `doctor --fix` can do about it. */
  fix?: Fix;
}

export interface Host {
  /** Asked once for all checks. The error says why there is none. */
  qemu: Promise<QemuDriver | Error>;
  daemonUrl: string;
  daemonToken: string | undefined;
  daemonCa: string | undefined;
}

export interface Check {
  name: string;
  run(host: Host): Finding | Promise<Finding>;
}

export interface CheckResult extends Finding {
  name: string;
}

const finding =
  (status: Status) =>
  (detail: string, more: { hint?: string; fix?: Fix } = {}): Finding => ({ status, detail, ...more });

export const pass = finding('pass');
/** Works, though not as well as it could. */
export const warn = finding('warn');
/** Keeps forkd from working. */
export const fail = finding('fail');
/** Does not matter here, or cannot be known yet. */
export const skip = finding('skip');

/** No check may keep doctor waiting longer. */
const CHECK_MS = 12_000;

export const runCheck = async (check: Check, host: Host): Promise<CheckResult> => {
  const { name } = check;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Finding>((resolve) => {
    timer = setTimeout(() => resolve(warn(`no answer within ${CHECK_MS / 1000} s`)), CHECK_MS);
  });
  try {
    return { name, ...(await Promise.race([check.run(host), late])) };
  } catch (error) {
    return { name, ...fail(reasonOf(error)) };
  } finally {
    clearTimeout(timer);
  }
};

/** A small file of /proc or /sys without its last newline; undefined when it cannot be read. */
export const readText = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8').trimEnd();
  } catch {
    return undefined;
  }
};
