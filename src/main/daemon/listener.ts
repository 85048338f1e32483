/** An HTTP server that a slow or broken client cannot hold: what it sends has a time to arrive, and gets an answer in our format. */
import { createServer, type RequestListener, type Server, STATUS_CODES } from 'node:http';
import type { Duplex } from 'node:stream';
import { type ErrorCode, ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { bodyOfError } from './reply.js';

export interface Patience {
  headersMs: number;
  requestMs: number;
  /** How often connections are looked at. */
  checkMs: number;
}

const PATIENCE: Patience = { headersMs: limits.headersMs, requestMs: limits.requestMs, checkMs: 2000 };

/** Longer than load balancers keep theirs (60 s), so that it is never this side that closes one just as a request comes. */
const KEEP_ALIVE_MS = 72_000;

/** No limit on how long an answer takes: an exec may run for a day. */
export const makeServer = (listener: RequestListener, patience: Patience = PATIENCE): Server => {
  const server = createServer({ connectionsCheckingInterval: patience.checkMs }, listener);
  server.headersTimeout = patience.headersMs;
  server.requestTimeout = patience.requestMs;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  server.on('clientError', refuse);
  return server;
};

const CODES: Record<string, ErrorCode> = {
  ERR_HTTP_REQUEST_TIMEOUT: 'REQUEST_TIMEOUT',
  HPE_HEADER_OVERFLOW: 'HEADERS_TOO_LARGE',
};

const refuse = (error: NodeJS.ErrnoException, socket: Duplex): void => {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const failure = new ForkdError(CODES[error.code ?? ''] ?? 'BODY_NOT_JSON', { reason: 'it is not HTTP/1.1' });
  const body = JSON.stringify(bodyOfError(failure));
  const { httpStatus: status } = failure;
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
};
