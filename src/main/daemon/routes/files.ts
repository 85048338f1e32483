/** Files of a sandbox over plain HTTP: bodies are the bytes themselves, on their way as they come. */
import { Readable } from 'node:stream';
import type { FastifyInstance, FastifyReply } from 'fastify';
import { ForkdError, reasonOf } from '../../../contract/errors.js';
import { jsonLines } from '../../../contract/lines.js';
import { limits } from '../../../contract/limits.js';
import {
  FILE_EVENTS,
  type FileEntry,
  type FileEvent,
  type FileRequest,
  type PlainReply,
  type StreamReply,
  type StreamRequest,
} from '../../../contract/guest.js';
import {
  type FileQuery,
  fileQuerySchema,
  type MakeDirQuery,
  makeDirQuerySchema,
  type PutFileQuery,
  putFileQuerySchema,
  type RemoveFileQuery,
  removeFileQuerySchema,
  type WatchQuery,
  watchQuerySchema,
} from '../../../contract/rest.js';
import type { AgentStream } from '../../agent/stream.js';
import type { Context } from '../context.js';
import { type EventStream, openEventStream } from '../event-stream.js';
import { bodyOfError } from '../reply.js';

type At<Q> = { Params: { id: string }; Querystring: Q };

const BYTES = 'application/octet-stream';
const TAR = 'application/x-tar';

export const fileRoutes = (app: FastifyInstance, { registry }: Context): void => {
  const ask = (id: string, request: FileRequest): Promise<PlainReply> =>
    registry.active(id, ({ sandbox }) => sandbox.ask<PlainReply>(request)).catch(explained);

  /** A stream that is under way; the sandbox is not idle until it has ended. */
  const open = (id: string, request: StreamRequest): Promise<{ stream: AgentStream; facts: Partial<FileEntry> }> =>
    new Promise((resolve, reject) => {
      registry
        .active(id, async ({ sandbox }) => {
          const stream = sandbox.stream(request);
          resolve({ stream, facts: await stream.opened.catch(explained) });
          // Whoever reads or writes it hears of a failure.
          await stream.ended.catch(() => undefined);
        })
        .catch(reject);
    });

  const download = async (id: string, request: StreamRequest, type: string, reply: FastifyReply) => {
    const { stream, facts } = await open(id, request);
    for (const key of ['size', 'mode'] as const)
      if (facts[key] !== undefined) reply.header(`x-forkd-${key}`, facts[key]);
    return reply.header('content-type', type).send(Readable.from(bytesOf(stream)));
  };

  const upload = async (id: string, request: StreamRequest, body: Readable): Promise<StreamReply> => {
    const { stream } = await open(id, request);
    try {
      for await (const part of body.iterator({ destroyOnReturn: false })) await stream.write(part);
      stream.end();
    } catch (error) {
      // The rest of it is dropped as it comes: on a connection where it waits to be read nothing else would ever be heard.
      body.resume();
      stream.close();
      await stream.ended.catch(explained);
      throw error;
    }
    return stream.ended.catch(explained);
  };

  app.get<At<FileQuery>>(
    '/v1/sandboxes/:id/files',
    {
      schema: { querystring: fileQuerySchema },
      exposeHeadRoute: false,
      config: { summary: 'What is in a file.', replies: { 200: { schema: 'bytes' } } },
    },
    ({ params: { id }, query: { path } }, reply) => download(id, { action: 'read_file', path }, BYTES, reply),
  );

  app.get<At<FileQuery>>(
    '/v1/sandboxes/:id/files/tar',
    {
      schema: { querystring: fileQuerySchema },
      exposeHeadRoute: false,
      config: { summary: 'A directory, as a tar archive.', replies: { 200: { schema: 'bytes' } } },
    },
    ({ params: { id }, query: { path } }, reply) => download(id, { action: 'pack', path }, TAR, reply),
  );

  app.get<At<FileQuery>>(
    '/v1/sandboxes/:id/files/stat',
    {
      schema: { querystring: fileQuerySchema },
      config: { summary: 'Type, size, mode and times of a file.', replies: { 200: { schema: 'FileEntry' } } },
    },
    async ({ params: { id }, query: { path } }) => (await ask(id, { action: 'stat', path })).entry,
  );

  app.get<At<FileQuery>>(
    '/v1/sandboxes/:id/files/list',
    {
      schema: { querystring: fileQuerySchema },
      config: { summary: 'What is in a directory.', replies: { 200: { schema: 'FileEntry', isArray: true } } },
    },
    async ({ params: { id }, query: { path } }) => (await ask(id, { action: 'list', path })).entries,
  );

  app.get<At<WatchQuery>>(
    '/v1/sandboxes/:id/files/watch',
    {
      schema: { querystring: watchQuerySchema },
      exposeHeadRoute: false,
      config: {
        summary: 'What changes in a file or a directory, as it happens (server-sent events).',
        replies: { 200: { schema: 'changes' } },
      },
    },
    async (request, reply) => {
      const { params, query } = request;
      const { stream } = await open(params.id, {
        action: 'watch',
        path: query.path,
        recursive: query.recursive === 'true',
        window: limits.streamWindowBytes,
      });
      void tellChanges(params.id, stream, openEventStream(app, request, reply));
      return reply;
    },
  );

  app.post<At<MakeDirQuery>>(
    '/v1/sandboxes/:id/files/dir',
    {
      schema: { querystring: makeDirQuerySchema },
      config: { bodyIgnored: true, summary: 'Make a directory.', replies: { 204: {} } },
    },
    async ({ params: { id }, query: { path, mode, parents } }, reply) => {
      const more = { ...(mode === undefined ? {} : { mode: Number.parseInt(mode, 8) }), parents: parents === 'true' };
      await ask(id, { action: 'make_dir', path, ...more });
      return reply.code(204).send();
    },
  );

  app.delete<At<RemoveFileQuery>>(
    '/v1/sandboxes/:id/files',
    {
      schema: { querystring: removeFileQuerySchema },
      config: { summary: 'Remove a file, or a directory.', replies: { 204: {} } },
    },
    async ({ params: { id }, query: { path, recursive } }, reply) => {
      await ask(id, { action: 'remove', path, recursive: recursive === 'true' });
      return reply.code(204).send();
    },
  );

  // Bodies of these are not read before the guest has room.
  app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser('*', (_, payload, done) => done(null, payload));
    scope.put<At<PutFileQuery> & { Body: Readable | undefined }>(
      '/v1/sandboxes/:id/files',
      {
        schema: { querystring: putFileQuerySchema },
        config: { isBytes: true, summary: 'Write a file, whole or not at all.', replies: { 200: { schema: 'Moved' } } },
      },
      async ({ params: { id }, query: { path, mode, parents }, body }) => {
        const more = { ...(mode === undefined ? {} : { mode: Number.parseInt(mode, 8) }), parents: parents === 'true' };
        const { size } = await upload(id, { action: 'write_file', path, ...more }, body ?? Readable.from([]));
        return { size };
      },
    );
    scope.put<At<FileQuery> & { Body: Readable | undefined }>(
      '/v1/sandboxes/:id/files/tar',
      {
        schema: { querystring: fileQuerySchema },
        config: {
          isBytes: true,
          summary: 'Unpack a tar archive into a directory.',
          replies: { 200: { schema: 'Unpacked' } },
        },
      },
      async ({ params: { id }, query: { path }, body }) => {
        const { entries } = await upload(id, { action: 'unpack', path }, body ?? Readable.from([]));
        return { entries };
      },
    );
  });
};

async function* bytesOf(stream: AgentStream): AsyncGenerator<Uint8Array, void> {
  for await (const { data } of stream) if (data.length > 0) yield data;
  // What broke off is a failure, and not a short file.
  await stream.ended;
}

/** A listener that is slow is waited for, and then the guest: it says that it had to leave something out. */
const tellChanges = async (id: string, stream: AgentStream, events: EventStream): Promise<void> => {
  events.onClose(() => stream.close());
  try {
    for await (const line of jsonLines(stream)) {
      const change = requireChange(line);
      if (!events.tell({ name: change.event, data: change })) await events.room();
    }
    await stream.ended;
  } catch (error) {
    const failure =
      error instanceof ForkdError ? error : new ForkdError('AGENT_PROTOCOL', { target: id, reason: reasonOf(error) });
    stream.close();
    events.tell({ name: 'failed', data: bodyOfError(failure) });
  }
  events.end();
};

/** A guest may send anything. Throws TypeError. */
const requireChange = (line: unknown): FileEvent => {
  const { event, path, is_dir, from } = (line ?? {}) as Partial<FileEvent>;
  const isChange = FILE_EVENTS.some((one) => one === event) && typeof path === 'string' && typeof is_dir === 'boolean';
  if (!isChange || !(from === undefined || typeof from === 'string')) throw new TypeError('a line that is no change');
  return line as FileEvent;
};

/** What the guest says of a file, with the status that says it over HTTP. */
const explained = (error: unknown): never => {
  const failure = ForkdError.from(error);
  const { error: told } = failure.details as { error?: unknown };
  if (failure.code !== 'AGENT_ERROR' || typeof told !== 'string') throw failure;
  const isMissing = told.startsWith('FileNotFoundError');
  throw new ForkdError(isMissing ? 'GUEST_FILE_MISSING' : 'GUEST_FILE_REFUSED', { error: told }, failure);
};
