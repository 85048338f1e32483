/** An HTTP server that a slow or broken client cannot hold: what it sends has a time to arrive, and gets an answer in our format. */
import { createServer, type IncomingMessage, type RequestListener, type Server, STATUS_CODES } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import type { Duplex } from 'node:stream';
import type { FastifyInstance } from 'fastify';
import { type ErrorCode, ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { bodyOfError } from './reply.js';
import type { TlsPair } from './tls.js';

export type Listener = Server | TlsServer;

export interface Patience {
  headersMs: number;
  requestMs: number;
  /** How often connections are looked at. */
  checkMs: number;
}

export const PATIENCE: Patience = { headersMs: limits.headersMs, requestMs: limits.requestMs, checkMs: 2000 };

/** Longer than load balancers keep theirs (60 s), so that it is never this side that closes one just as a request comes. */
const KEEP_ALIVE_MS = 72_000;

/** No limit on how long an answer takes: an exec may run for a day. */
export const makeServer = (listener: RequestListener, patience: Patience = PATIENCE, tls?: TlsPair): Listener => {
  const options = { connectionsCheckingInterval: patience.checkMs };
  const server = tls
    ? createTlsServer({ ...options, ...tls, minVersion: 'TLSv1.2', handshakeTimeout: patience.headersMs }, listener)
    : createServer(options, listener);
  server.headersTimeout = patience.headersMs;
  // Ours instead: what is taken as it comes may take longer.
  server.requestTimeout = 0;
  server.on('request', (request) => limitBody(request, patience.requestMs));
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  server.on('clientError', refuse);
  return server;
};

/** Bodies that go on to a guest as they come. */
const UPLOAD = /^\/v1\/sandboxes\/[^/]+\/(files|ports)\b/;

/** A body has a time to arrive in; an upload has as long as it likes, but must not stand still for so long. */
const limitBody = (request: IncomingMessage, requestMs: number): void => {
  const { headers, socket } = request;
  if (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined) return;
  const isUpload = UPLOAD.test(request.url ?? '');
  let read = socket.bytesRead;
  const timer = setInterval(() => {
    if (request.complete) return clearInterval(timer);
    // While it is not read because the guest has no room, it stands still for no fault of its own.
    if (isUpload && (socket.bytesRead > read || request.isPaused() || request.readableLength > 0))
      read = socket.bytesRead;
    else refuse(Object.assign(new Error('the body is late'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' }), socket);
  }, requestMs).unref();
  request.once('close', () => clearInterval(timer));
};

const CODES: Record<string, ErrorCode> = {
  ERR_HTTP_REQUEST_TIMEOUT: 'REQUEST_TIMEOUT',
  HPE_HEADER_OVERFLOW: 'HEADERS_TOO_LARGE',
};

/** Ends connections on which an answer does not get on. */
export const endStalled = (app: FastifyInstance, stallMs: number = limits.answerStallMs): void => {
  // Node takes the time off again when the next request comes, and ends what is idle for longer.
  // Of the answer: Node takes it from a request whose body was left in the middle.
  app.addHook('onSend', async (_, reply) => void reply.raw.socket?.setTimeout(stallMs));
};

/** Answers on a connection that no response belongs to, and ends it. */
export const refuseWith = (failure: ForkdError, socket: Duplex): void => {
  const body = JSON.stringify(bodyOfError(failure));
  const { httpStatus: status } = failure;
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
};

const refuse = (error: NodeJS.ErrnoException, socket: Duplex): void => {
  // A handshake that failed leaves nobody who could read an answer.
  const isUnreadable = error.code === 'ECONNRESET' || /^ERR_(SSL|TLS)_/.test(error.code ?? '');
  if (isUnreadable || !socket.writable) return void socket.destroy();
  refuseWith(new ForkdError(CODES[error.code ?? ''] ?? 'BODY_NOT_JSON', { reason: 'it is not HTTP/1.1' }), socket);
};
