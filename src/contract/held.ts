/** What a guest can do to its own connection and console, limits that its VM met, and what came of it: each is named in the record, the log and on stderr. */
export const heldKinds = {
  flood: 'it sent more frames than any agent does, and is read more slowly',
  'frame-too-large': 'it announced a frame larger than may be, which was skipped',
  'no-answer': 'it answered with what is no answer',
  'not-the-protocol': 'it sent what is not the protocol, and its connection was closed',
  'reads-nothing': 'it does not read what it is sent, and its connection was closed',
  'console-full': 'its console is full: what it prints from now on is lost',
  'cpu-limit': 'it used up its share of the processors, and waited',
  'io-limit': 'it reads or writes as fast as it may, and waits',
  'memory-limit': 'it has more memory than it may, and was ended',
  'pids-limit': 'it has as many processes and threads as it may, and was refused more',
} as const;

export type HeldKind = keyof typeof heldKinds;

export interface Held {
  kind: HeldKind;
  /** In words. */
  what: string;
  /** How often; of a flood, the pauses that were made; of its share of the processors, the periods of 100 ms; of io, how often it was looked at and had been at its rate since the last time. */
  count: number;
}
