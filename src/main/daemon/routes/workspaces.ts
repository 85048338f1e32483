import type { FastifyInstance } from 'fastify';
import {
  type CreateWorkspaceBody,
  createWorkspaceSchema,
  type LabelQuery,
  labelQuerySchema,
  type SuspendBody,
  suspendSchema,
} from '../../../contract/rest.js';
import type { Context } from '../context.js';
import { labelFilter } from '../labels.js';
import { limitsOfRequest } from '../spawn.js';
import { newTag, storedTag } from '../tags.js';
import type { Workspaces } from '../workspaces.js';

type Named = { Params: { name: string } };

export const workspaceRoutes = (app: FastifyInstance, { engine }: Context, workspaces: Workspaces): void => {
  app.get<{ Querystring: LabelQuery }>(
    '/v1/workspaces',
    {
      schema: { querystring: labelQuerySchema },
      config: { summary: 'List workspaces.', replies: { 200: { schema: 'Workspace', isArray: true } } },
    },
    ({ query }) => workspaces.list().filter(labelFilter(query)),
  );

  app.get<Named>(
    '/v1/workspaces/:name',
    { config: { summary: 'One workspace.', replies: { 200: { schema: 'Workspace' } } } },
    ({ params }) => workspaces.get(params.name),
  );

  app.post<{ Body: CreateWorkspaceBody }>(
    '/v1/workspaces',
    {
      schema: { body: createWorkspaceSchema },
      config: { summary: 'Make a workspace, with a sandbox that runs.', replies: { 201: { schema: 'Workspace' } } },
    },
    async (request, reply) => {
      const { body } = request;
      const name = newTag(body.name);
      request.object = name;
      const tag = storedTag(engine.store, body.snapshot_tag);
      limitsOfRequest({ memory_limit_mib: body.memory_limit_mib ?? null });
      return reply.code(201).send(await workspaces.create({ ...body, name, snapshot_tag: tag }));
    },
  );

  app.post<Named & { Body: SuspendBody }>(
    '/v1/workspaces/:name/suspend',
    {
      schema: { body: suspendSchema },
      config: { summary: 'Write its state to disk and end its sandbox.', replies: { 200: { schema: 'Workspace' } } },
    },
    // `diff` is the reference's choice between two speeds; here every state is written as fast.
    ({ params }) => workspaces.suspend(params.name),
  );

  app.post<Named>(
    '/v1/workspaces/:name/resume',
    {
      config: { bodyIgnored: true, summary: 'Make a sandbox of its state.', replies: { 200: { schema: 'Workspace' } } },
    },
    ({ params }) => workspaces.resume(params.name),
  );

  app.delete<Named>(
    '/v1/workspaces/:name',
    { config: { summary: 'End its sandbox and remove its state.', replies: { 204: {} } } },
    async ({ params }, reply) => {
      await workspaces.remove(params.name);
      return reply.code(204).send();
    },
  );
};
