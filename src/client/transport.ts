/** One request and its answer, over TCP or a Unix socket. Connections are kept, and keep no process alive. */
import { Readable } from 'node:stream';
import { Agent, request } from 'undici';
import type { ControllerOptions } from './types.js';

export interface Answer {
  status: number;
  text: string;
}

export interface Call {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** From `/`. */
  path: string;
  headers: Record<string, string>;
  body?: string | Uint8Array | AsyncIterable<Uint8Array>;
  signal: AbortSignal;
}

export interface Streamed {
  status: number;
  parts: AsyncIterable<Uint8Array>;
}

export interface Transport {
  send(call: Call): Promise<Answer>;
  /** The body as it comes. */
  stream(call: Call): Promise<Streamed>;
  close(): Promise<void>;
}

const UNIX = 'unix:';

/** Throws a TypeError for a `baseUrl` that is none. */
export const transportTo = (
  baseUrl: string,
  { fetch, ca }: { fetch: ControllerOptions['fetch']; ca: string | undefined },
): Transport => {
  if (fetch) return byFetch(baseUrl, fetch);
  const socketPath = baseUrl.startsWith(UNIX) ? baseUrl.slice(UNIX.length) : undefined;
  const origin = socketPath === undefined ? baseUrl : 'http://forkd';
  new URL(origin);
  // How long an answer may take is up to the caller's signal alone.
  const dispatcher = new Agent({
    headersTimeout: 0,
    bodyTimeout: 0,
    ...(socketPath === undefined ? (ca === undefined ? {} : { connect: { ca } }) : { connect: { socketPath } }),
  });
  return {
    send: async ({ path, ...call }) => {
      const { statusCode, body } = await request(`${origin}${path}`, { ...call, body: bodyOf(call.body), dispatcher });
      return { status: statusCode, text: await body.text() };
    },
    stream: async ({ path, ...call }) => {
      const { statusCode, body } = await request(`${origin}${path}`, { ...call, body: bodyOf(call.body), dispatcher });
      return { status: statusCode, parts: body };
    },
    close: () => dispatcher.close(),
  };
};

const isPlain = (body: Call['body']): body is string | Uint8Array | undefined =>
  body === undefined || typeof body === 'string' || body instanceof Uint8Array;

const bodyOf = (body: Call['body']): string | Uint8Array | Readable | null =>
  isPlain(body) ? (body ?? null) : Readable.from(body);

const byFetch = (baseUrl: string, fetch: NonNullable<ControllerOptions['fetch']>): Transport => {
  if (baseUrl.startsWith(UNIX)) throw new TypeError('a fetch of your own cannot reach a Unix socket');
  return {
    send: async ({ path, ...call }) => {
      const reply = await fetch(`${baseUrl}${path}`, { ...call, ...(isPlain(call.body) ? {} : { duplex: 'half' }) });
      return { status: reply.status, text: await reply.text() };
    },
    stream: async ({ path, ...call }) => {
      const { status, body } = await fetch(`${baseUrl}${path}`, {
        ...call,
        ...(isPlain(call.body) ? {} : { duplex: 'half' }),
      });
      if (!body) throw new TypeError('this fetch gives no body to read');
      return { status, parts: body };
    },
    close: async () => undefined,
  };
};
