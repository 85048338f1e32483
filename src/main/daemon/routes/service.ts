import type { FastifyInstance } from 'fastify';
import type { Context } from '../context.js';

export const serviceRoutes = (app: FastifyInstance, { version, metrics }: Context, document: () => object): void => {
  app.get(
    '/healthz',
    { config: { summary: 'Whether it is there.', isOpen: true, replies: { 200: { schema: 'Health' } } } },
    () => ({ ok: true }),
  );
  app.get('/version', { config: { summary: 'Versions.', replies: { 200: { schema: 'Version' } } } }, () => ({
    version,
    api: 'v1',
  }));
  app.get('/openapi.json', { config: { summary: 'This document.', replies: { 200: { schema: 'any' } } } }, document);
  app.get(
    '/metrics',
    { config: { summary: 'Prometheus metrics.', replies: { 200: { schema: 'text' } } } },
    async (_, reply) => {
      const text = await metrics.text();
      return reply.header('content-type', 'text/plain; version=0.0.4; charset=utf-8').send(text);
    },
  );
};
