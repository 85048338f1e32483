/** Brings ranges of a pack that must not have changed since it was first looked at. */
import { ForkdError } from '../../contract/errors.js';
import type { RemotePack } from '../../contract/remote-role.js';
import { answered, bodyOf, type Http, type Reply, shown, Transient } from '../../http/client.js';

export interface FrameTable {
  stored(frame: number): number;
  packedAt(frame: number): number;
}

/** Frames that follow one another, in one request as long as nothing breaks; each is handed over as it is complete. Throws REMOTE_CHANGED, RANGES_MISSING, HUB_UNREACHABLE, HUB_ANSWERED. */
export const fetchFrames = async (
  http: Http,
  pack: RemotePack,
  frames: number[],
  table: FrameTable,
  signal: AbortSignal,
  onFrame: (frame: number, stored: Buffer) => void,
): Promise<void> => {
  const url = new URL(pack.url);
  const left = [...frames];
  await http.retried(
    url,
    async (progressed) => {
      const [first, last] = [left[0] as number, left.at(-1) as number];
      const [from, to] = [table.packedAt(first), table.packedAt(last) + table.stored(last)];
      let buffer: Buffer = Buffer.alloc(0);
      for await (const part of rangeOf(http, url, pack, from, to, signal)) {
        buffer = buffer.length === 0 ? part : Buffer.concat([buffer, part]);
        while (left[0] !== undefined && buffer.length >= table.stored(left[0])) {
          const frame = left.shift() as number;
          const bytes = table.stored(frame);
          onFrame(frame, buffer.subarray(0, bytes));
          buffer = buffer.subarray(bytes);
          progressed();
        }
      }
      if (left.length > 0) throw new Transient('it broke off');
    },
    { signal },
  );
};

/** Bytes [from, to) of the pack. */
export async function* rangeOf(
  http: Http,
  url: URL,
  { validator, bytes }: Pick<RemotePack, 'validator' | 'bytes'>,
  from: number,
  to: number,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  const reply = await http.send(url, {
    headers: { range: `bytes=${from}-${to - 1}`, ...(validator === undefined ? {} : { 'if-range': validator }) },
    ...(signal ? { signal } : {}),
  });
  const { range, etag } = partOf(url, reply, validator !== undefined);
  if (range.total !== bytes || (validator !== undefined && etag !== undefined && etag !== validator)) {
    reply.body.destroy();
    throw new ForkdError('REMOTE_CHANGED', { url: shown(url) });
  }
  if (range.from !== from || range.to !== to - 1) {
    reply.body.destroy();
    throw new Transient('it sent another part than asked for');
  }
  let left = to - from;
  for await (const part of bodyOf(reply, http.patience, signal)) {
    left -= part.length;
    if (left < 0) throw new Transient('it sent more than asked for');
    yield part;
  }
}

/** What a server says about the part it sends. Throws RANGES_MISSING, REMOTE_CHANGED, HUB_ANSWERED. */
export const partOf = (
  url: URL,
  { status, headers, body }: Reply,
  conditional: boolean,
): { range: { from: number; to: number; total: number }; etag: string | undefined } => {
  const [, from, to, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(String(headers['content-range'] ?? '')) ?? [];
  if (status === 206 && total !== undefined) {
    const etag = headers['etag'];
    const isStrong = typeof etag === 'string' && /^"[^"]{1,200}"$/.test(etag);
    return { range: { from: Number(from), to: Number(to), total: Number(total) }, etag: isStrong ? etag : undefined };
  }
  body.destroy();
  if (status === 200 && conditional) throw new ForkdError('REMOTE_CHANGED', { url: shown(url) });
  if (status === 416) throw new ForkdError('REMOTE_CHANGED', { url: shown(url) });
  if (status === 200 || status === 206) throw new ForkdError('RANGES_MISSING', { url: shown(url) });
  throw answered({ url, status }, Buffer.alloc(0));
};
