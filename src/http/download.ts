/** Downloads a file into a part that survives interruptions, and goes on where it stopped (Range with If-Range, RFC 9110). */
import { answered, bodyOf, type Http, type Reply, refused, Transient } from './client.js';

/** Where a download goes: what it has of it so far, and of which version. */
export interface Part {
  readonly bytes: number;
  readonly validator: string | undefined;
  restart(validator: string | undefined): void;
  append(part: Buffer): Promise<void>;
}

export interface DownloadRequest {
  url: URL;
  authorization?: string;
  headers?: Record<string, string>;
  /** What it must have. */
  bytes?: number;
  maxBytes: number;
  /** What it is does not change: any server's part of it fits. */
  immutable?: boolean;
}

export interface DownloadHooks {
  signal?: AbortSignal;
  /** `total` is 0 as long as nobody has said it. */
  onProgress?: (done: number, total: number) => void;
  onRetry?: (reason: string, waitMs: number) => void;
  /** Throws when there is no room for so many more bytes. */
  requireSpace?: (bytes: number) => void;
}

/** So much has to come for a further failure to count as the first. */
const PROGRESS_BYTES = 1024 * 1024;
const SPACE_CHECK_BYTES = 64 * 1024 * 1024;

/** Throws TRANSFER_REFUSED, HUB_ANSWERED, HUB_UNREACHABLE, DISK_FULL, CANCELLED. */
export const download = async (
  http: Http,
  request: DownloadRequest,
  partial: Part,
  hooks: DownloadHooks = {},
): Promise<void> => {
  if (partial.bytes > 0 && partial.validator === undefined && !request.immutable) partial.restart(undefined);
  await http.retried(request.url, (progressed) => attempt(http, request, partial, hooks, progressed), hooks);
};

const attempt = async (
  http: Http,
  request: DownloadRequest,
  partial: Part,
  hooks: DownloadHooks,
  progressed: () => void,
): Promise<void> => {
  const { url, authorization, headers = {} } = request;
  const { validator } = partial;
  const range =
    partial.bytes === 0 ? {} : { range: `bytes=${partial.bytes}-`, ...(validator ? { 'if-range': validator } : {}) };
  const reply = await http.send(url, {
    headers: { ...headers, ...range },
    ...(authorization === undefined ? {} : { authorization }),
    ...(hooks.signal ? { signal: hooks.signal } : {}),
  });
  const total = begin(reply, request, partial);
  if (total === 'complete') return;
  if (total !== undefined) hooks.requireSpace?.(total - partial.bytes);
  const max = Math.min(total ?? Number.POSITIVE_INFINITY, request.maxBytes);
  let [since, checked] = [partial.bytes, partial.bytes];
  for await (const part of bodyOf(reply, http.patience, hooks.signal)) {
    if (partial.bytes + part.length > max) {
      partial.restart(undefined);
      throw refused(reply.url, `it sends more than ${max} bytes`);
    }
    await partial.append(part);
    hooks.onProgress?.(partial.bytes, total ?? 0);
    if (partial.bytes - since >= PROGRESS_BYTES) {
      progressed();
      since = partial.bytes;
    }
    if (partial.bytes - checked >= SPACE_CHECK_BYTES) {
      hooks.requireSpace?.(0);
      checked = partial.bytes;
    }
  }
  if (total !== undefined && partial.bytes < total)
    throw new Transient(`it broke off at ${partial.bytes} of ${total} bytes`);
};

/** What the answer makes of the part: its whole size if anybody says it. Throws Transient after it gave the part up. */
const begin = (reply: Reply, request: DownloadRequest, partial: Part): number | undefined | 'complete' => {
  const { status, headers, body } = reply;
  const range = /^bytes (?:(\d+)-\d+|\*)\/(\d+|\*)$/.exec(String(headers['content-range'] ?? ''));
  const giveUp = (reason: string): never => {
    body.destroy();
    partial.restart(undefined);
    throw new Transient(reason);
  };
  if (status === 416) {
    body.destroy();
    if (range && Number(range[2]) === partial.bytes && (request.bytes ?? partial.bytes) === partial.bytes)
      return 'complete';
    return giveUp('its part is of no use any more');
  }
  if (status !== 200 && status !== 206) {
    body.destroy();
    throw answered(reply, Buffer.alloc(0));
  }
  if (status === 206) {
    if (partial.bytes === 0 || Number(range?.[1]) !== partial.bytes)
      return giveUp('it sent another part than asked for');
    return known(reply, request, range?.[2] === '*' ? undefined : Number(range?.[2]));
  }
  const length = /^\d+$/.test(String(headers['content-length'])) ? Number(headers['content-length']) : undefined;
  const total = known(reply, request, length);
  partial.restart(validatorOf(headers));
  return total;
};

const known = (reply: Reply, { bytes, maxBytes }: DownloadRequest, said: number | undefined): number | undefined => {
  const wrong = bytes !== undefined && said !== undefined && said !== bytes;
  const total = bytes ?? said;
  if (wrong || (total !== undefined && total > maxBytes)) {
    reply.body.destroy();
    throw refused(
      reply.url,
      wrong ? `it has ${said} bytes, not ${bytes}` : `it has ${total} bytes, more than ${maxBytes}`,
    );
  }
  return total;
};

/** A weak ETag says that two versions mean the same, not that they are. */
const validatorOf = (headers: Reply['headers']): string | undefined => {
  const etag = headers['etag'];
  if (typeof etag === 'string' && /^"[^"]{1,200}"$/.test(etag)) return etag;
  return undefined;
};
