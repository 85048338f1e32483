/**
 * The OpenAPI 3.1 document, made of the routes as they are registered: their paths, the schemas that their requests are
 * checked by, and what each says that it answers. Nothing is written down twice.
 */
import type { FastifyInstance, RouteOptions } from 'fastify';
import { replySchemas, type ReplyName } from '../../contract/rest-replies.js';

export interface Reply {
  /** Of its body; none for an empty one. */
  schema?: ReplyName | 'text' | 'events' | 'changes' | 'bytes' | 'any';
  isArray?: boolean;
}

declare module 'fastify' {
  interface FastifyContextConfig {
    summary?: string;
    replies?: Record<number, Reply>;
    /** Answers without a token. */
    isOpen?: boolean;
    /** The body is bytes, taken as they come. */
    isBytes?: boolean;
  }
}

interface Schemas {
  body?: object;
  querystring?: { properties?: Record<string, object> };
}

type Operation = Record<string, unknown>;

/** Must be called before the routes are registered. Returns what makes the document. */
export const describeApi = (app: FastifyInstance, version: string): (() => object) => {
  const paths: Record<string, Record<string, Operation>> = {};
  app.addHook('onRoute', (route) => {
    for (const method of [route.method].flat()) {
      // Every GET has its HEAD.
      if (method === 'HEAD') continue;
      const path = route.url.replace(/:(\w+)/g, '{$1}').replace('*', '{path}');
      paths[path] = { ...paths[path], [method.toLowerCase()]: operation(method, route) };
    }
  });
  return () => ({
    openapi: '3.1.0',
    info: { title: 'forkd', version, license: { name: 'Apache-2.0', identifier: 'Apache-2.0' } },
    security: [{ token: [] }],
    paths,
    components: {
      schemas: replySchemas,
      securitySchemes: { token: { type: 'http', scheme: 'bearer', description: 'Only with --token-file.' } },
    },
  });
};

const operation = (method: string, { url, schema = {}, config = {} }: RouteOptions): Operation => {
  const { body, querystring } = schema as Schemas;
  const { summary = '', replies = {}, isOpen, isBytes } = config;
  const inPath = [...url.replace('*', ':path').matchAll(/:(\w+)/g)].map(([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }));
  const inQuery = Object.entries(querystring?.properties ?? {}).map(([name, one]) => ({
    name,
    in: 'query',
    schema: one,
  }));
  const parameters = [...inPath, ...inQuery];
  const told = Object.entries(replies).map(([status, reply]) => [status, response(reply)]);
  return {
    summary,
    operationId: operationId(method, url),
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(isBytes && method !== 'GET' ? { requestBody: { content: BYTES } } : {}),
    ...(body ? { requestBody: { required: true, content: { 'application/json': { schema: body } } } } : {}),
    responses: { ...Object.fromEntries(told), default: { description: 'A failure.', ...json(ref('Error')) } },
    ...(isOpen ? { security: [] } : {}),
  };
};

/** `post_v1_sandboxes_id_exec`. */
const operationId = (method: string, url: string): string =>
  `${method.toLowerCase()}${url.replace(/:/g, '').replace(/\W+/g, '_')}`;

const response = ({ schema, isArray = false }: Reply): object => {
  if (schema === undefined) return { description: 'Done.' };
  if (schema === 'text') return { description: 'Text.', content: { 'text/plain': { schema: { type: 'string' } } } };
  if (schema === 'events')
    return {
      description: 'Events, the data of each as JSON.',
      content: { 'text/event-stream': { schema: ref('Event') } },
    };
  if (schema === 'changes')
    return {
      description: 'Changes, the data of each as JSON; an event `failed` with an Error when it breaks off.',
      content: { 'text/event-stream': { schema: ref('FileEvent') } },
    };
  if (schema === 'bytes') return { description: 'The bytes.', content: BYTES };
  if (schema === 'any') return { description: 'A document.', ...json({ type: 'object' }) };
  return { description: schema, ...json(isArray ? { type: 'array', items: ref(schema) } : ref(schema)) };
};

const BYTES = { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } };

const ref = (name: ReplyName): object => ({ $ref: `#/components/schemas/${name}` });

const json = (schema: object): object => ({ content: { 'application/json': { schema } } });
