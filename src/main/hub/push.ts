/** Packs a snapshot and uploads it with one HTTP PUT, as presigned URLs take it. */
import { createReadStream, statSync } from 'node:fs';
import { join } from 'node:path';
import { Transform } from 'node:stream';
import { answered, bodyOf, type Http, shown } from '../../http/client.js';
import { HalfFile } from '../store/half-file.js';
import type { Store } from '../store/store.js';
import { type PackRequest, writePack } from './pack.js';

export interface PushRequest extends Omit<PackRequest, 'out'> {
  url: URL;
}

export interface PushHooks {
  signal?: AbortSignal;
  onStep?: (step: string) => void;
  onProgress?: (done: number, total: number) => void;
  onRetry?: (reason: string, waitMs: number) => void;
}

export interface Pushed {
  tag: string;
  url: string;
  bytes: number;
}

const ANSWER_MAX_BYTES = 64 * 1024;

/** Throws what packing throws, HUB_UNREACHABLE, HUB_ANSWERED unless the answer is 2xx, CANCELLED. */
export const push = async (http: Http, store: Store, request: PushRequest, hooks: PushHooks = {}): Promise<Pushed> => {
  const { url, tag } = request;
  // In the store, which has room for snapshots; a server that takes a PUT wants to know its size before.
  const half = HalfFile.of(store.root, join(store.root, '.push'));
  try {
    hooks.onStep?.(`packing '${tag}'`);
    await writePack(store, request, half.path, hooks);
    const bytes = statSync(half.path).size;
    hooks.onStep?.(`uploading to ${shown(url)}`);
    await http.retried(url, () => put(http, url, half.path, bytes, hooks), hooks);
    return { tag, url: shown(url), bytes };
  } finally {
    half.close();
  }
};

const put = async (http: Http, url: URL, path: string, bytes: number, hooks: PushHooks): Promise<void> => {
  const { signal } = hooks;
  const reply = await http.send(url, {
    method: 'PUT',
    headers: { 'content-length': String(bytes) },
    body: () => counted(path, bytes, hooks.onProgress),
    ...(signal ? { signal } : {}),
  });
  const said: Buffer[] = [];
  let left = ANSWER_MAX_BYTES;
  for await (const part of bodyOf(reply, http.patience, signal)) {
    said.push(part);
    left -= part.length;
    if (left < 0) break;
  }
  if (reply.status < 200 || reply.status > 299) throw answered(reply, Buffer.concat(said));
};

const counted = (path: string, total: number, onProgress: PushHooks['onProgress']): Transform => {
  let done = 0;
  const counter = new Transform({
    transform(part: Buffer, _, next) {
      done += part.length;
      onProgress?.(done, total);
      next(null, part);
    },
  });
  const file = createReadStream(path, { highWaterMark: 1024 * 1024 });
  file.on('error', (error) => counter.destroy(error));
  counter.on('close', () => file.destroy());
  return file.pipe(counter);
};
