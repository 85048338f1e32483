/**
 * What all transfers share: redirects that give credentials to nobody else, bounded waiting, and trying again. Nothing that a server sends
 * is believed beyond the limits.
 */
import type { Readable } from 'node:stream';
import type { EnvHttpProxyAgent } from 'undici';
import { ForkdError, reasonOf } from '../contract/errors.js';
import { limits } from '../contract/limits.js';
import type { Patience } from '../contract/patience.js';

export type { Patience };

const PATIENCE: Patience = {
  tries: 6,
  backoffMs: 500,
  backoffMaxMs: 15_000,
  connectMs: 10_000,
  headersMs: 30_000,
  idleMs: 30_000,
  slowMs: 60_000,
  rateMin: 1024,
};

export interface Send {
  method?: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'PATCH';
  headers?: Record<string, string>;
  /** Goes to the origin of `url` and nowhere else, wherever it redirects. */
  authorization?: string;
  /** Made anew for each attempt. */
  body?: () => Readable | Buffer;
  signal?: AbortSignal;
}

export interface Reply {
  /** Where it came from, after redirects. */
  url: URL;
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: Readable;
}

/** Worth another attempt. */
export class Transient extends Error {
  constructor(
    reason: string,
    readonly waitMs = 0,
    options: ErrorOptions = {},
  ) {
    super(reason, options);
  }
}

const REDIRECTS_MAX = 5;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const RETRIED = new Set([408, 425, 429, 500, 502, 503, 504]);
/** A server may ask for patience, but not for an hour of it. */
const RETRY_AFTER_MAX_MS = 60_000;

export class Http {
  readonly patience: Patience;
  #agent: EnvHttpProxyAgent | undefined;

  constructor(patience: Partial<Patience> = {}) {
    this.patience = { ...PATIENCE, ...patience };
  }

  async close(): Promise<void> {
    await this.#agent?.destroy();
  }

  /** Loaded on first use: most commands need none of it. */
  async #client() {
    const [{ EnvHttpProxyAgent, request }, { neverHeldAtItsEnd }] = await Promise.all([
      import('undici'),
      import('./last-part.js'),
    ]);
    const { connectMs, headersMs, idleMs } = this.patience;
    this.#agent ??= new EnvHttpProxyAgent({
      connect: { timeout: connectMs },
      headersTimeout: headersMs,
      bodyTimeout: idleMs,
      maxHeaderSize: limits.httpHeadersMaxBytes,
    });
    return { dispatcher: this.#agent.compose(neverHeldAtItsEnd), request };
  }

  /**
   * One attempt, through redirects. The body is to be read or destroyed. Throws Transient when there was no answer or one that says
   * "later", TRANSFER_REFUSED for a redirect that is not followed, CANCELLED.
   */
  async send(url: URL, { method = 'GET', headers = {}, authorization, body, signal }: Send = {}): Promise<Reply> {
    const { dispatcher, request } = await this.#client();
    let at = withoutUser(url);
    const own = authorization ?? basicOf(url);
    for (let hops = 0; hops <= REDIRECTS_MAX; hops++) {
      const secret = own !== undefined && at.origin === url.origin ? { authorization: own } : {};
      const reply = await request(at, {
        method,
        headers: { 'user-agent': 'forkd', 'accept-encoding': 'identity', ...headers, ...secret },
        body: body?.() ?? null,
        dispatcher,
        ...(signal ? { signal } : {}),
      }).catch((error: unknown) => {
        if (signal?.aborted) throw new ForkdError('CANCELLED');
        throw new Transient(networkReason(error), 0, { cause: error });
      });
      // Destroying one that has not ended is an event of error, which has to have a listener. Who reads it meets errors all the same.
      reply.body.on('error', () => undefined);
      const { statusCode: status } = reply;
      if (!REDIRECTS.has(status)) {
        if (RETRIED.has(status)) {
          reply.body.destroy();
          throw new Transient(`it answered ${status}`, retryAfter(reply.headers['retry-after']));
        }
        return { url: at, status, headers: reply.headers, body: reply.body };
      }
      reply.body.destroy();
      // The others turn into a GET: what was to be sent would be lost.
      if (method !== 'GET' && method !== 'HEAD' && status < 307)
        throw refused(at, `it redirects a ${method} with ${status}`);
      at = redirectedTo(at, reply.headers.location);
    }
    throw refused(url, `it redirects more than ${REDIRECTS_MAX} times`);
  }

  /**
   * `work` until it succeeds, waiting ever longer in between. It may report progress, which makes a failure count as the first one again.
   * Throws what `work` throws, and HUB_UNREACHABLE after the last try.
   */
  async retried<T>(
    url: URL,
    work: (progressed: () => void) => Promise<T>,
    hooks: { signal?: AbortSignal; onRetry?: (reason: string, waitMs: number) => void } = {},
  ): Promise<T> {
    const { tries, backoffMs, backoffMaxMs } = this.patience;
    let failed = 0;
    for (let attempt = 1; ; attempt++) {
      try {
        return await work(() => {
          failed = 0;
        });
      } catch (error) {
        if (!(error instanceof Transient)) throw error;
        failed++;
        if (failed >= tries || attempt >= limits.transferAttemptsMax)
          throw new ForkdError('HUB_UNREACHABLE', { url: shown(url), reason: error.message }, error);
        // Not all at the same moment again.
        const backoff = Math.min(backoffMs * 2 ** (failed - 1), backoffMaxMs) * (0.5 + Math.random() / 2);
        const waitMs = Math.max(backoff, error.waitMs);
        hooks.onRetry?.(error.message, waitMs);
        await pause(waitMs, hooks.signal);
      }
    }
  }

  /** A small answer, whole. Throws as `retried` does, HUB_ANSWERED unless it is 2xx, and TRANSFER_REFUSED when it is larger. */
  async text(url: URL, maxBytes: number, options: Send = {}): Promise<{ reply: Reply; text: Buffer }> {
    const hooks = options.signal ? { signal: options.signal } : {};
    return this.retried(
      url,
      async () => {
        const reply = await this.send(url, options);
        const text = await readAll(reply, maxBytes, this.patience);
        if (reply.status < 200 || reply.status > 299) throw answered(reply, text);
        return { reply, text };
      },
      hooks,
    );
  }
}

/** The body, counted and timed. Throws Transient when it breaks off or crawls, CANCELLED. */
export async function* bodyOf(
  { body }: Reply,
  { slowMs, rateMin }: Patience,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  let since = performance.now();
  let bytes = 0;
  try {
    for await (const part of body as AsyncIterable<Buffer>) {
      yield part;
      bytes += part.length;
      const ms = performance.now() - since;
      if (ms < slowMs) continue;
      if ((bytes / ms) * 1000 < rateMin) throw new Transient(`it sends less than ${rateMin} bytes a second`);
      since = performance.now();
      bytes = 0;
    }
  } catch (error) {
    if (signal?.aborted) throw new ForkdError('CANCELLED');
    if (error instanceof Transient || error instanceof ForkdError || !isOfNetwork(error)) throw error;
    throw new Transient(networkReason(error), 0, { cause: error });
  } finally {
    body.destroy();
  }
}

/** Throws Transient, TRANSFER_REFUSED when it is larger. */
export const readAll = async (reply: Reply, maxBytes: number, patience: Patience): Promise<Buffer> => {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of bodyOf(reply, patience)) {
    bytes += part.length;
    if (bytes > maxBytes) throw refused(reply.url, `it sends more than ${maxBytes} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts);
};

export const answered = ({ url, status }: Pick<Reply, 'url' | 'status'>, text: Buffer): ForkdError => {
  const said = text
    .subarray(0, 300)
    .toString('utf8')
    .replace(/[^\x20-\x7e]+/g, ' ')
    .trim();
  return new ForkdError('HUB_ANSWERED', { url: shown(url), status, said: said === '' ? '' : `: ${said}` });
};

export const refused = (url: URL, reason: string): ForkdError =>
  new ForkdError('TRANSFER_REFUSED', { url: shown(url), reason });

/** For people and logs: a query is often a secret, as in a presigned URL, and so are user and password. */
export const shown = (url: URL): string => `${url.origin}${url.pathname}`;

/** Throws ARGUMENT_INVALID. */
export const parseUrl = (text: string, argument: string, command: string): URL => {
  try {
    const url = new URL(text);
    if (url.protocol === 'http:' || url.protocol === 'https:') return url;
  } catch {
    // Said below.
  }
  throw new ForkdError('ARGUMENT_INVALID', { argument, reason: 'is not an http or https URL', command });
};

/** Throws TRANSFER_REFUSED. */
export const redirectedTo = (from: URL, location: string | string[] | undefined): URL => {
  let to: URL;
  try {
    to = new URL(String(location), from);
  } catch {
    throw refused(from, 'it redirects to something that is not a URL');
  }
  if (to.protocol !== 'http:' && to.protocol !== 'https:') throw refused(from, `it redirects to ${to.protocol}`);
  if (from.protocol === 'https:' && to.protocol === 'http:') throw refused(from, 'it redirects from https to http');
  return withoutUser(to);
};

const withoutUser = (url: URL): URL => {
  const clean = new URL(url);
  clean.username = '';
  clean.password = '';
  return clean;
};

const basicOf = ({ username, password }: URL): string | undefined =>
  username === '' && password === ''
    ? undefined
    : `Basic ${Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`).toString('base64')}`;

const retryAfter = (value: string | string[] | undefined): number => {
  const text = String(value ?? '');
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 0), RETRY_AFTER_MAX_MS) : 0;
};

const isOfNetwork = (error: unknown): boolean => {
  const { code } = error as { code?: string };
  return (
    code !== undefined &&
    (code.startsWith('UND_ERR') || /^E(CONN|PIPE|TIMEDOUT|AI_|HOST|NET)/.test(code) || code.startsWith('HPE_'))
  );
};

const networkReason = (error: unknown): string => {
  const { errors } = error as { errors?: unknown[] };
  // Several addresses were tried: the first failure says enough.
  return errors?.[0] === undefined ? reasonOf(error) || String(error) : networkReason(errors[0]);
};

export const pause = (ms: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    const cancel = () => {
      clearTimeout(timer);
      reject(new ForkdError('CANCELLED'));
    };
    if (signal?.aborted) return reject(new ForkdError('CANCELLED'));
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', cancel);
      resolve();
    }, ms);
    signal?.addEventListener('abort', cancel, { once: true });
  });
