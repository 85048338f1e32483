/** What a comparison needs of a guest, whichever way it is reached. */
import { ForkdError } from '../../contract/errors.js';
import type { FileEntry, GuestRequest, PlainReply, StreamReply, StreamRequest } from '../../contract/guest.js';

export interface Guest {
  ask(request: GuestRequest): Promise<PlainReply>;
  open(request: StreamRequest): AsyncIterable<{ data: Uint8Array }> & { readonly ended: Promise<StreamReply> };
}

/** Pieces of a file, as they come. Throws AGENT_ERROR. */
export async function* piecesOf(guest: Guest, path: string): AsyncGenerator<Uint8Array, void> {
  const stream = guest.open({ action: 'read_file', path });
  for await (const { data } of stream) if (data.length > 0) yield data;
  await stream.ended;
}

export const textOf = async (guest: Guest, path: string): Promise<string> => {
  const parts: Uint8Array[] = [];
  for await (const part of piecesOf(guest, path)) parts.push(part);
  return Buffer.concat(parts).toString('utf8');
};

/** What is in a directory; nothing when there is none of that name, or no more. */
export const listOf = async (guest: Guest, path: string): Promise<FileEntry[]> =>
  (await unlessGone(guest.ask({ action: 'list', path })))?.entries ?? [];

/** Undefined when what was asked about has gone: guests run on while they are looked at. */
export const unlessGone = async <T>(work: Promise<T>): Promise<T | undefined> => {
  try {
    return await work;
  } catch (error) {
    const isGone = /FileNotFoundError|NotADirectoryError|ProcessLookupError|no such file|404/i;
    if (error instanceof Error && isGone.test(error.message) && !isOfTheSandbox(error)) return undefined;
    throw error;
  }
};

const isOfTheSandbox = (error: Error): boolean => error instanceof ForkdError && error.code !== 'AGENT_ERROR';

/** Runs `work` for all of `items`, so many at once: an agent is asked ahead, but not for everything at once. */
export const eachOf = async <T>(items: T[], work: (item: T) => Promise<void>, atOnce = 16): Promise<void> => {
  let next = 0;
  const lane = async () => {
    for (let i = next++; i < items.length; i = next++) await work(items[i] as T);
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, lane));
};
