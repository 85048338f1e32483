/** Server-sent events (the HTML standard's `text/event-stream`), which a browser's EventSource can read too. */
import { PassThrough } from 'node:stream';
import type { FastifyInstance } from 'fastify';
import { ForkdError } from '../../../contract/errors.js';
import { limits } from '../../../contract/limits.js';
import { type EventBody, type EventQuery, eventQuerySchema } from '../../../contract/rest.js';
import type { Context } from '../context.js';

/** A comment now and then, so that what lies between does not take the connection for dead. */
const BEAT_MS = 15_000;

export const eventRoutes = (app: FastifyInstance, { events }: Context): void => {
  const open = new Set<PassThrough>();
  streams.set(app, open);

  app.get<{ Querystring: EventQuery }>(
    '/v1/events',
    {
      schema: { querystring: eventQuerySchema },
      // A HEAD of what never ends would never be over.
      exposeHeadRoute: false,
      config: { summary: 'What happens, as it happens (server-sent events).', replies: { 200: { schema: 'events' } } },
    },
    (request, reply) => {
      if (events.listeners >= limits.listenersMax) throw new ForkdError('LISTENERS_FULL', { max: limits.listenersMax });
      const { kinds, after } = request.query;
      const wanted = kinds?.split(',');
      const stream = new PassThrough({ highWaterMark: limits.listenerBacklogBytes });
      open.add(stream);
      const tell = (event: EventBody) => {
        if (wanted && !wanted.includes(event.kind)) return;
        const fits = stream.write(`id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`);
        if (!fits) stream.destroy();
      };
      const last = after ?? request.headers['last-event-id'];
      stream.write(': forkd\n\n');
      for (const event of last === undefined ? [] : events.since(Number(last) || 0)) tell(event);
      const stop = events.listen(tell);
      const beat = setInterval(() => stream.write(': beat\n\n'), BEAT_MS).unref();
      stream.on('close', () => {
        stop();
        clearInterval(beat);
        open.delete(stream);
      });
      request.raw.socket.on('close', () => stream.destroy());
      return reply
        .header('content-type', 'text/event-stream; charset=utf-8')
        .header('cache-control', 'no-cache')
        .send(stream);
    },
  );
};

const streams = new WeakMap<FastifyInstance, Set<PassThrough>>();

/** They never end by themselves, and a server that ends waits for what is under way. */
export const closeEvents = (app: FastifyInstance): void => {
  for (const stream of streams.get(app) ?? []) stream.end();
};
