import { createReadStream, createWriteStream, existsSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { basename, dirname, join, posix } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import tar from 'tar-fs';
import { ForkdError } from '../../contract/errors.js';
import type { FileEntry, StreamReply, StreamRequest } from '../../contract/guest.js';
import type { Command } from '../command.js';
import { type GuestLink, withLink } from '../guest-link.js';
import type { Options } from '../options.js';
import { packTree } from '../pack-tree.js';
import { writeOut } from '../render.js';
import { targetOptions } from './target.js';

/** Read at once of a file of ours: a frame of the agent's protocol. */
const READ_BYTES = 64 * 1024;

export const cp: Command = {
  name: 'cp',
  args: '[...paths]',
  usage: 'cp [options] SRC ID:DST, or: cp [options] ID:SRC DST; - is a tar archive on stdin or stdout',
  description: 'Copy files and directories into a sandbox, and out of one',
  options: targetOptions.filter(([flags]) => flags.startsWith('--daemon')),
  examples: [
    'forkd cp ./src sb-6743b1c2-9f31c2aa:/root',
    'forkd cp sb-6743b1c2-9f31c2aa:/root/out.csv .',
    'forkd cp sb-6743b1c2-9f31c2aa:/var/log - | tar -t',
  ],
  run: (options) => {
    const [from, to, ...more] = options.positional;
    if (from === undefined || to === undefined || more.length > 0)
      throw options.wrong('SRC and DST', 'are both required');
    const [source, target] = [inGuest(from), inGuest(to)];
    if (source && target) throw options.wrong('SRC and DST', 'are both in sandboxes: copy through this host');
    if (source) return withLink(options, (link) => out(link, source.path, to), source.id);
    if (target) return withLink(options, (link) => into(link, from, target.path, options), target.id);
    throw options.wrong('SRC or DST', 'must be ID:PATH');
  },
};

/** `sb-...:/path`. A relative path is one from the root of the guest. */
const inGuest = (text: string): { id: string; path: string } | undefined => {
  const match = /^(sb-[0-9a-f]+-[0-9a-f]+|unix:[^:]+):(.*)$/s.exec(text);
  return match ? { id: match[1] ?? '', path: posix.join('/', match[2] ?? '') } : undefined;
};

// --- into the guest -------------------------------------------------------------------------------------------------

const into = async (link: GuestLink, from: string, to: string, options: Options): Promise<number> => {
  if (from === '-') {
    await send(link, { action: 'unpack', path: to }, process.stdin);
    return 0;
  }
  const found = statSync(from, { throwIfNoEntry: false });
  if (!found) throw new ForkdError('FILE_MISSING', { what: 'the file', path: from });
  if (!found.isFile() && !found.isDirectory())
    throw options.wrong('SRC', `'${from}' is neither a file nor a directory`);
  // As cp does: into a directory that is there, else to that name. `dir/.` is what is in it.
  const isContent = /(^|\/)\.$/.test(from);
  const isThere = (await typeAt(link, to)) === 'dir';
  const path = isThere && !isContent ? posix.join(to, basename(from)) : to;
  if (found.isDirectory()) await send(link, { action: 'unpack', path }, packTree(from));
  else {
    const source = createReadStream(from, { highWaterMark: READ_BYTES });
    await send(link, { action: 'write_file', path, mode: found.mode & 0o777 }, source);
  }
  return 0;
};

const send = async (link: GuestLink, request: StreamRequest, source: AsyncIterable<unknown>): Promise<StreamReply> => {
  const stream = link.open(request);
  try {
    await stream.opened;
    for await (const data of source) await stream.write(data as Uint8Array);
    stream.end();
  } catch (error) {
    // The guest's reason, when it has one, says more than a write that failed.
    stream.close();
    await stream.ended;
    throw error;
  }
  return stream.ended;
};

/** What is there, links followed; undefined when nothing is. */
const typeAt = async (link: GuestLink, path: string): Promise<string | undefined> => {
  try {
    const entry = await entryAt(link, path);
    return entry.type === 'link' ? (entry.leads_to ?? undefined) : entry.type;
  } catch (error) {
    if (/FileNotFoundError/.test(String(error))) return undefined;
    throw error;
  }
};

const entryAt = async (link: GuestLink, path: string): Promise<FileEntry> =>
  (await link.ask({ action: 'stat', path })).entry as FileEntry;

// --- out of the guest -----------------------------------------------------------------------------------------------

const out = async (link: GuestLink, from: string, to: string): Promise<number> => {
  if (to === '-') {
    for await (const data of pieces(link, { action: 'pack', path: from })) if (!(await writeOut('stdout', data))) break;
    return 0;
  }
  const entry = await entryAt(link, from);
  const type = entry.type === 'link' ? entry.leads_to : entry.type;
  const isThere = statSync(to, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const path = isThere ? join(to, basename(from) || '.') : to;
  if (type === 'dir') {
    mkdirSync(path, { recursive: true });
    // Nothing is written through a link that the archive made, or outside of `path`. Owners are ours; what is no file, directory or link is left out.
    const unpack = tar.extract(path, { chown: false, validateSymlinks: false, strict: false } as tar.ExtractOptions);
    await pipeline(bytesOf(link, { action: 'pack', path: from }), unpack);
  } else await receiveFile(bytesOf(link, { action: 'read_file', path: from }), path, entry.mode);
  return 0;
};

/** Whole or not at all. */
const receiveFile = async (source: Readable, path: string, mode: number): Promise<void> => {
  const beside = `${path}.forkd-${process.pid}`;
  if (!existsSync(dirname(path))) throw new ForkdError('FILE_MISSING', { what: 'the directory', path: dirname(path) });
  try {
    await pipeline(source, createWriteStream(beside, { mode: mode & 0o777, flags: 'wx' }));
    renameSync(beside, path);
  } catch (error) {
    rmSync(beside, { force: true });
    throw error;
  }
};

const bytesOf = (link: GuestLink, request: StreamRequest): Readable => Readable.from(pieces(link, request));

async function* pieces(link: GuestLink, request: StreamRequest): AsyncGenerator<Uint8Array, void> {
  const stream = link.open(request);
  await stream.opened;
  for await (const { data } of stream) if (data.length > 0) yield data;
  // A transfer that broke off is a failure, and not a short file.
  await stream.ended;
}
