import type { FastifyInstance } from 'fastify';
import { ForkdError } from '../../../contract/errors.js';
import { limits } from '../../../contract/limits.js';
import { type EventBody, type EventQuery, eventQuerySchema } from '../../../contract/rest.js';
import type { Context } from '../context.js';
import { openEventStream } from '../event-stream.js';

export const eventRoutes = (app: FastifyInstance, { events }: Context): void => {
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
      const stream = openEventStream(app, request, reply);
      const tell = (event: EventBody) => {
        if (wanted && !wanted.includes(event.kind)) return;
        // Who does not read is let go.
        if (!stream.tell({ id: event.id, name: event.kind, data: event })) stream.cut();
      };
      const last = after ?? request.headers['last-event-id'];
      for (const event of last === undefined ? [] : events.since(Number(last) || 0)) tell(event);
      stream.onClose(events.listen(tell));
      return reply;
    },
  );
};
