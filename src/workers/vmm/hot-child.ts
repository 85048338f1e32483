/** What a forked child is given in place of what it must not share, and the first words to it. */
import { closeSync, openSync } from 'node:fs';
import type { ForkRequest } from '../../contract/guest.js';
import { encodeRequest } from '../../contract/frames.js';
import { type ForkEntry, How, type TemplatePort } from '../../contract/hotfork.js';
import type { HotChild } from '../../contract/task.js';
import { native } from '../../native/binding.js';

/** The three socket pairs; their peers come with the child in this order, after its pidfd. */
const pairs = (port: TemplatePort): ForkEntry[] => [
  { fd: port.control, how: How.pairSeqpacket },
  { fd: port.qmp, how: How.pairStream },
  { fd: port.agent, how: How.pairStream },
];

/** A copy that nobody talks to, frozen or to be saved: its consoles and its network card lead nowhere. */
export const withSilentEntries = <T>(port: TemplatePort, use: (entries: ForkEntry[], given: number[]) => T): T => {
  const given = port.taps.map(() => native.tapNowhere());
  try {
    const nowhere = [...port.consoles, ...port.others].map((fd) => ({ fd, how: How.null }));
    return use([...pairs(port), ...nowhere, ...port.taps.map((fd) => ({ fd, how: How.given }))], given);
  } finally {
    for (const fd of given) closeSync(fd);
  }
};

/** Runs `use` with the entries of a fork request and the open files that travel with it, and closes those after. */
export const withEntries = <T>(
  port: TemplatePort,
  { consolePath, cgroupProcs, tap }: Pick<HotChild, 'consolePath' | 'cgroupProcs' | 'tap'>,
  use: (entries: ForkEntry[], given: number[]) => T,
): T => {
  const opened: number[] = [];
  try {
    const console = openSync(consolePath, 'a', 0o600);
    opened.push(console);
    const entries = [...pairs(port), ...port.others.map((fd) => ({ fd, how: How.null }))];
    const given: number[] = [];
    for (const fd of port.consoles) {
      entries.push({ fd, how: How.given });
      given.push(console);
    }
    for (const fd of port.taps) {
      if (tap === undefined) opened.push(native.tapNowhere());
      entries.push({ fd, how: How.given });
      given.push(tap ?? (opened.at(-1) as number));
    }
    for (const path of cgroupProcs) {
      const group = openSync(path, 'w');
      opened.push(group);
      entries.push({ fd: -1, how: How.cgroupProcs });
      given.push(group);
    }
    return use(entries, given);
  } finally {
    for (const fd of opened) closeSync(fd);
  }
};

export const FORK_ID = 1;
export const EVAL_ID = 2;

/**
 * Identity and first eval in one write. A template is warmed with the same bytes: sent in two, they would take other
 * paths through the guest, which every child would have to translate for itself.
 */
export const firstWords = (request: ForkRequest, firstEval: string | undefined): Uint8Array => {
  const fork = encodeRequest(FORK_ID, request);
  if (firstEval === undefined) return fork;
  return Buffer.concat([fork, encodeRequest(EVAL_ID, { action: 'eval', code: firstEval })]);
};
