/** What a guest can do to its own connection and console, and what came of it: each is named in the record, the log and on stderr. */
export const heldKinds = {
  flood: 'it sent more frames than any agent does, and is read more slowly',
  'frame-too-large': 'it announced a frame larger than may be, which was skipped',
  'no-answer': 'it answered with what is no answer',
  'not-the-protocol': 'it sent what is not the protocol, and its connection was closed',
  'reads-nothing': 'it does not read what it is sent, and its connection was closed',
  'console-full': 'its console is full: what it prints from now on is lost',
} as const;

export type HeldKind = keyof typeof heldKinds;

export interface Held {
  kind: HeldKind;
  /** In words. */
  what: string;
  /** How often; of a flood, the pauses that were made. */
  count: number;
}
