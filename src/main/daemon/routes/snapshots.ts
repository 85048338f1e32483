import { statSync } from 'node:fs';
import type { FastifyInstance } from 'fastify';
import { ForkdError, reasonOf } from '../../../contract/errors.js';
import { limits } from '../../../contract/limits.js';
import {
  type CompactBody,
  compactSchema,
  type CreateSnapshotBody,
  createSnapshotSchema,
  type LabelQuery,
  labelQuerySchema,
  type RemoveQuery,
  removeSchema,
} from '../../../contract/rest.js';
import { DEFAULT_BOOT_WAIT_SECS } from '../../make-snapshot.js';
import { detail } from '../../store/listing.js';
import type { Context } from '../context.js';
import { labelFilter } from '../labels.js';
import { newTag, storedTag } from '../tags.js';

type Tagged = { Params: { tag: string } };

const refused = (reason: string): ForkdError => new ForkdError('REQUEST_REFUSED', { reason });

export const snapshotRoutes = (app: FastifyInstance, { engine, snapshots, slots }: Context): void => {
  const { store } = engine;

  app.get<{ Querystring: LabelQuery }>(
    '/v1/snapshots',
    {
      schema: { querystring: labelQuerySchema },
      config: { summary: 'List snapshots.', replies: { 200: { schema: 'Snapshot', isArray: true } } },
    },
    ({ query }) => snapshots.all().filter(labelFilter(query)),
  );

  app.get<Tagged>(
    '/v1/snapshots/:tag',
    { config: { summary: 'One snapshot.', replies: { 200: { schema: 'Snapshot' } } } },
    ({ params }) => snapshots.one(params.tag),
  );

  app.get<Tagged>(
    '/v1/snapshots/:tag/info',
    { config: { summary: 'Sizes, ancestors and dependents.', replies: { 200: { schema: 'SnapshotDetail' } } } },
    ({ params }) => {
      const tag = storedTag(store, params.tag);
      snapshots.requireReady(tag);
      return detail(store, tag);
    },
  );

  app.post<{ Body: CreateSnapshotBody }>(
    '/v1/snapshots',
    {
      schema: { body: createSnapshotSchema },
      config: { summary: 'Boot a guest and save it.', replies: { 201: { schema: 'Snapshot' } } },
    },
    async (request, reply) => {
      const { body } = request;
      const tag = newTag(body.tag);
      request.object = tag;
      const paths = pathsOf(body);
      const { boot_wait_secs: wait, labels } = body;
      if (wait > limits.createBootMaxSecs)
        throw refused(`boot_wait_secs must be at most ${limits.createBootMaxSecs}, not ${wait}`);
      requireFree(tag, store.exists(tag));
      const leave = slots.enter();
      const dir = store.dir(tag);
      const facts = labels === undefined ? {} : { labels };
      const begun = { tag, dir, created_at_unix: unixNow(), status: 'writing' as const, bootable: false, ...facts };
      // Two requests for one tag: the store lets one of them have it, and only that one is listed.
      let isMine = false;
      try {
        await engine.snapshot(
          {
            tag,
            ...paths,
            // The reference sleeps for so long. Here the agent says when it is there, so this is only a bound.
            bootWaitSecs: Math.max(wait, DEFAULT_BOOT_WAIT_SECS),
            net: body.net,
            ...(body.tap == null ? {} : { tap: body.tap }),
            ...(body.memory_mib == null ? {} : { memoryMib: body.memory_mib }),
            ...(body.vcpus == null ? {} : { vcpus: body.vcpus }),
            ...(body.warm_eval == null ? {} : { warmEval: body.warm_eval }),
            volumes: (body.volumes ?? []).map((one) => ({ ...one, read_only: one.read_only ?? false })),
          },
          {
            onStep: () => {
              if (!isMine) snapshots.writing(begun);
              isMine = true;
            },
          },
        );
        return reply.code(201).send(await snapshots.written(tag, facts));
      } catch (error) {
        if (isMine) snapshots.failed(tag, reasonOf(error));
        throw error;
      } finally {
        leave();
      }
    },
  );

  app.post<Tagged & { Body: CompactBody }>(
    '/v1/snapshots/:tag/compact',
    {
      schema: { body: compactSchema },
      config: { summary: 'Make one base of a snapshot and its ancestors.', replies: { 200: { schema: 'Snapshot' } } },
    },
    async ({ params, body }) => {
      const [from, to] = [storedTag(store, params.tag), newTag(body.to)];
      if (from === to) throw refused('`to` must be another tag');
      snapshots.requireReady(from);
      await engine.compact({ from, to });
      return snapshots.written(to, { branched_from: `compact:${from}` });
    },
  );

  app.delete<Tagged & { Querystring: RemoveQuery }>(
    '/v1/snapshots/:tag',
    { schema: { querystring: removeSchema }, config: { summary: 'Remove a snapshot.', replies: { 204: {} } } },
    async ({ params, query }, reply) => {
      const tag = storedTag(store, params.tag);
      const [cascade, force] = [query.cascade === 'true', query.force === 'true'];
      if (cascade && force) throw refused('cascade does not go with force');
      // Its own templates hold its files open, and would count as somebody who uses it.
      await engine.forgetTemplates(tag);
      snapshots.remove(tag, { cascade, force });
      return reply.code(204).send();
    },
  );
};

const unixNow = (): number => Math.floor(Date.now() / 1000);

const requireFree = (tag: string, exists: boolean): void => {
  if (exists) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
};

/** Throws FILE_MISSING. */
const pathsOf = ({
  kernel,
  initrd,
  rootfs,
}: CreateSnapshotBody): { kernel?: string; initrd?: string; rootfs?: string } => {
  const given: Record<string, string> = {};
  for (const [what, path] of Object.entries({ kernel, initrd, rootfs })) {
    if (path == null) continue;
    // A NUL ends a path for the kernel, and Node throws for one.
    const isFile = !path.includes('\0') && statSync(path, { throwIfNoEntry: false })?.isFile();
    if (!isFile) throw new ForkdError('FILE_MISSING', { what, path });
    given[what] = path;
  }
  return given;
};
