/**
 * A web service inside a sandbox, at /v1/sandboxes/ID/ports/PORT/...: requests go through the agent, so the guest needs no network.
 *
 * What comes back is a stranger's, at this daemon's own address. So a browser is told to give it an origin of its own (a sandbox without
 * `allow-same-origin`), and cookies and service workers do not pass: a page of a guest must not act as the daemon's.
 */
import {
  type IncomingHttpHeaders,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  request as httpRequest,
} from 'node:http';
import type { Readable } from 'node:stream';
import type { FastifyInstance } from 'fastify';
import { duplexOf } from '../../contract/duplex.js';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { AgentStream } from '../agent/stream.js';
import type { Context } from './context.js';

const SANDBOX = 'sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads';
/** Of one connection (RFC 9110, 7.6.1), or about this daemon and not for the guest. */
const NOT_SENT = [
  'authorization',
  'connection',
  'cookie',
  'host',
  'keep-alive',
  'proxy-authorization',
  'te',
  'transfer-encoding',
  'upgrade',
];
const NOT_TOLD = [
  'connection',
  'content-security-policy',
  'keep-alive',
  'service-worker-allowed',
  'set-cookie',
  'transfer-encoding',
  'upgrade',
];

type Preview = { Params: { id: string; port: string; '*': string }; Body: Readable | undefined };

export const previewRoutes = (app: FastifyInstance, { registry }: Context): void => {
  const handler = async (
    request: IncomingMessage,
    id: string,
    port: number,
    path: string,
    body: Readable | undefined,
  ) =>
    new Promise<IncomingMessage>((resolve, reject) => {
      registry
        .active(id, async ({ sandbox }) => {
          const stream = sandbox.stream({ action: 'connect', port });
          await stream.opened.catch((error) => {
            throw new ForkdError('GUEST_PORT_CLOSED', { id, port, reason: reasonOf(error) }, error);
          });
          resolve(await answerOf(stream, request, { id, port, path }, body));
          await stream.ended.catch(() => undefined);
        })
        .catch(reject);
    });

  app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser('*', (_, payload, done) => done(null, payload));
    scope.route<Preview>({
      method: ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'],
      url: '/v1/sandboxes/:id/ports/:port/*',
      config: { isBytes: true, summary: 'A web service inside.', replies: { 200: { schema: 'bytes' } } },
      handler: async ({ params, raw, body }, reply) => {
        const port = Number(params.port);
        if (!/^\d{1,5}$/.test(params.port) || port < 1 || port > 65_535)
          throw new ForkdError('REQUEST_REFUSED', { reason: `'${params.port}' is not a port` });
        // As it was written: the guest decodes it.
        const path = (raw.url ?? '').replace(/^\/v1\/sandboxes\/[^/]+\/ports\/[^/]+/, '');
        const answer = await handler(raw, params.id, port, path, body);
        return reply
          .code(answer.statusCode ?? 502)
          .headers(without(answer.headers, NOT_TOLD))
          .header('content-security-policy', SANDBOX)
          .send(answer);
      },
    });
  });
};

/** The head of the guest's answer; its body is on its way. */
const answerOf = (
  stream: AgentStream,
  request: IncomingMessage,
  { id, port, path }: { id: string; port: number; path: string },
  body: Readable | undefined,
): Promise<IncomingMessage> =>
  new Promise((resolve, reject) => {
    const connection = duplexOf(stream);
    // A client that goes away while the service thinks, or in the middle of its own body.
    const leave = () => void connection.destroy();
    request.socket.once('close', leave);
    connection.once('close', () => request.socket.off('close', leave));
    const asked = httpRequest({
      createConnection: () => connection,
      method: request.method ?? 'GET',
      path,
      headers: { ...without(request.headers, NOT_SENT), host: `localhost:${port}`, connection: 'close' },
    });
    asked.on('response', (answer) => {
      answer.on('close', () => connection.destroy());
      resolve(answer);
    });
    asked.on('error', (error) => {
      connection.destroy();
      reject(new ForkdError('GUEST_PORT_CLOSED', { id, port, reason: error.message }, error));
    });
    // What the service does not take is dropped, or the client's connection would stand still.
    asked.on('close', () => body?.resume());
    if (body) body.pipe(asked);
    else asked.end();
  });

const without = (headers: IncomingHttpHeaders, names: string[]): OutgoingHttpHeaders =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !names.includes(name)));
