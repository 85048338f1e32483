/** Joins a program in a guest to this process: its output, our input, our terminal and our signals. */
import type { StreamReply } from '../contract/guest.js';
import { writeOut } from './render.js';

/** A program under way, whichever way it is reached. */
export interface Session extends AsyncIterable<{ channel: number; data: Uint8Array }> {
  readonly opened: Promise<unknown>;
  readonly ended: Promise<StreamReply>;
  write(data: Uint8Array): Promise<void>;
  end(): void;
  control(what: { signal: string } | { rows: number; cols: number }): Promise<void>;
  close(): void;
}

export interface FollowOptions {
  /** Our stdin is the program's. */
  input: boolean;
  /** The program has a terminal: ours follows it key by key, if we have one. */
  terminal: boolean;
  /** Ctrl-P Ctrl-Q leaves the program alone, as in docker. */
  leaves?: boolean;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;
const LEAVE = Buffer.from([0x10, 0x11]);

/** Until the program has ended, or was left: then undefined. */
export const follow = async (session: Session, options: FollowOptions): Promise<StreamReply | undefined> => {
  await session.opened;
  const undo: (() => void)[] = [];
  let left = false;
  const leave = () => {
    left = true;
    session.close();
  };
  try {
    undo.push(passSignals(session));
    if (options.terminal) undo.push(passSize(session));
    if (options.input) undo.push(passInput(session, options, leave));
    for await (const { channel, data } of session) {
      if (data.length > 0 && !(await writeOut(channel === 2 ? 'stderr' : 'stdout', data))) session.close();
      if (left) return undefined;
    }
    return await session.ended;
  } catch (error) {
    if (left) return undefined;
    throw error;
  } finally {
    for (const step of undo.reverse()) step();
  }
};

/** The program gets our signals; a second one ends it. */
const passSignals = (session: Session): (() => void) => {
  let told = 0;
  const tell = (signal: NodeJS.Signals) => {
    if (told++ > 0) session.close();
    else session.control({ signal }).catch(() => session.close());
  };
  for (const name of SIGNALS) process.on(name, tell);
  return () => {
    for (const name of SIGNALS) process.off(name, tell);
  };
};

/** How large our terminal is, if we have one. */
export const terminalSize = (): { rows: number; cols: number } | undefined =>
  process.stdout.isTTY ? { rows: process.stdout.rows, cols: process.stdout.columns } : undefined;

const passSize = (session: Session): (() => void) => {
  const tell = () => {
    const size = terminalSize();
    // It may have ended just now.
    if (size) session.control(size).catch(() => undefined);
  };
  process.stdout.on('resize', tell);
  return () => void process.stdout.off('resize', tell);
};

const passInput = (session: Session, { terminal, leaves }: FollowOptions, leave: () => void): (() => void) => {
  const { stdin } = process;
  const raw = terminal && stdin.isTTY;
  let last: Uint8Array = new Uint8Array(0);
  const take = (data: Buffer) => {
    const at = leaves ? Buffer.concat([last, data]).indexOf(LEAVE) : -1;
    if (at >= 0) {
      // What was typed before is the program's.
      session.write(data.subarray(0, Math.max(0, at - last.length))).catch(() => undefined);
      return leave();
    }
    last = data.subarray(-1);
    stdin.pause();
    session.write(data).then(
      () => stdin.resume(),
      // Nobody reads it any more: the program has ended, or has closed its input.
      () => undefined,
    );
  };
  const end = () => session.end();
  if (raw) stdin.setRawMode(true);
  stdin.on('data', take);
  stdin.on('end', end);
  return () => {
    stdin.off('data', take);
    stdin.off('end', end);
    if (raw) stdin.setRawMode(false);
    stdin.pause();
  };
};
