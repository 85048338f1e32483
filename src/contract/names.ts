/**
 * The one parser of names. A tag names a directory, so nothing else in the program may decide what a tag is.
 * The rule is the wider one of the reference's two, so that every tag a reference CLI made can be used.
 */
import { ForkdError } from './errors.js';

export const TAG_MAX = 64;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/;
const SANDBOX_ID = /^sb-[0-9a-f]+-[0-9a-f]{4,}$/;

/** A tag that is safe as a file name. Throws TAG_INVALID. */
export const parseTag = (text: unknown): string => {
  if (typeof text !== 'string' || !TAG.test(text)) throw new ForkdError('TAG_INVALID', { tag: String(text) });
  return text;
};

export const isTag = (text: string): boolean => TAG.test(text);

export const isSandboxId = (text: string): boolean => SANDBOX_ID.test(text);

/** `sb-<hex unix seconds>-<8 hex digits>`: the reference's form (at least 4), of one length for all; the suffix is unguessable. */
export const sandboxId = (unixSeconds: number, suffix: number): string =>
  `sb-${unixSeconds.toString(16)}-${suffix.toString(16).padStart(8, '0')}`;

/** Where an agent is reached. */
export type Target =
  | { kind: 'tcp'; host: string; port: number }
  | { kind: 'unix'; path: string; sandbox?: string }
  | { kind: 'sandbox'; id: string };

/** Parses `host:port`, `[v6]:port`, `unix:PATH`, `unix:PATH#ID` or a sandbox id. Throws TARGET_INVALID. */
export const parseTarget = (text: string): Target => {
  const unix = /^unix:(.+?)(?:#(sb-[0-9a-f]+-[0-9a-f]{4,}))?$/s.exec(text);
  if (unix?.[1]) return { kind: 'unix', path: unix[1], ...(unix[2] === undefined ? {} : { sandbox: unix[2] }) };
  if (isSandboxId(text)) return { kind: 'sandbox', id: text };
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (!host || !(port >= 1 && port <= 65535)) throw new ForkdError('TARGET_INVALID', { target: text });
  return { kind: 'tcp', host, port };
};
