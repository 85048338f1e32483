import type { FastifyInstance, FastifyReply } from 'fastify';
import { type AnsweredAction, answerBody } from '../../../contract/answers.js';
import { ForkdError, reasonOf } from '../../../contract/errors.js';
import { type GuestReply, type GuestRequest, type PlainReply, STREAMS_GENERATION } from '../../../contract/guest.js';
import { limits } from '../../../contract/limits.js';
import {
  type EvalBody,
  type ExecBody,
  evalSchema,
  execSchema,
  type LabelQuery,
  type LimitBody,
  labelQuerySchema,
  limitSchema,
  type RunBody,
  runSchema,
  type SpawnBody,
  spawnSchema,
} from '../../../contract/rest.js';
import { limitsOfBody } from '../../../contract/resources.js';
import type { Read } from '../../agent/client.js';
import type { Context } from '../context.js';
import { labelFilter } from '../labels.js';
import { bodyOf } from '../registry.js';
import { limitsOfRequest, requireLimits, spawn } from '../spawn.js';
import { storedTag } from '../tags.js';

type WithId = { Params: { id: string } };

/** The reference's deadlines: eval and ping have fixed ones; exec has the guest's, and then some for the way back. */
const EVAL_MS = 30_000;
const PING_MS = 3000;
const EXEC_GRACE_MS = 5000;

const refused = (reason: string): ForkdError => new ForkdError('REQUEST_REFUSED', { reason });

export const sandboxRoutes = (app: FastifyInstance, context: Context): void => {
  const { engine, registry, snapshots, metrics } = context;

  app.post<{ Body: SpawnBody }>(
    '/v1/sandboxes',
    {
      schema: { body: spawnSchema },
      config: {
        summary: 'Make sandboxes of a snapshot: all of them or none.',
        replies: { 201: { schema: 'Sandbox', isArray: true } },
      },
    },
    async (request, reply) => {
      const { body } = request;
      request.object = body.snapshot_tag;
      const { n, labels = {}, ttl_secs: ttlSecs = null, idle_secs: idleSecs = null } = body;
      if (n < 1 || n > limits.spawnMax) throw refused(`n must be between 1 and ${limits.spawnMax}, not ${n}`);
      const wantedLimits = limitsOfRequest(body);
      const tag = storedTag(engine.store, body.snapshot_tag);
      snapshots.requireReady(tag);
      const wanted = {
        tag,
        n,
        perChildNetns: body.per_child_netns,
        ...(body.network ? { network: { allow: body.network.allow, allowDomains: body.network.allow_domains } } : {}),
        hugePages: body.live_fork && body.hugepages,
        strict: body.strict,
        ...wantedLimits,
      };
      const entries = await spawn(context, wanted, { labels, ttlSecs, idleSecs });
      for (const entry of entries) registry.add(entry);
      return reply.code(201).send(entries.map(bodyOf));
    },
  );

  app.get<{ Querystring: LabelQuery }>(
    '/v1/sandboxes',
    {
      schema: { querystring: labelQuerySchema },
      config: { summary: 'List sandboxes.', replies: { 200: { schema: 'Sandbox', isArray: true } } },
    },
    ({ query }) => registry.list().filter(labelFilter(query)).map(bodyOf),
  );

  app.get<WithId>(
    '/v1/sandboxes/:id',
    { config: { summary: 'One sandbox.', replies: { 200: { schema: 'Sandbox' } } } },
    ({ params }) => bodyOf(registry.get(params.id)),
  );

  app.patch<WithId & { Body: LimitBody }>(
    '/v1/sandboxes/:id',
    {
      schema: { body: limitSchema },
      config: { summary: 'Change its limits while it runs; null lifts one.', replies: { 200: { schema: 'Sandbox' } } },
    },
    async ({ params, body }) => {
      const entry = registry.get(params.id);
      await engine.limit(params.id, requireLimits(limitsOfBody(body)));
      await context.survivors.update(entry);
      return bodyOf(entry);
    },
  );

  app.get<WithId>(
    '/v1/sandboxes/:id/usage',
    { config: { summary: 'What it uses, and where it met its limits.', replies: { 200: { schema: 'Usage' } } } },
    ({ params }) => registry.get(params.id).sandbox.usage(),
  );

  app.delete<WithId>(
    '/v1/sandboxes/:id',
    { config: { summary: 'End a sandbox.', replies: { 204: {} } } },
    async ({ params }, reply) => {
      await context.survivors.forget(registry.get(params.id));
      const { sandbox } = registry.take(params.id);
      await engine.kill([sandbox]);
      return reply.code(204).send();
    },
  );

  const call = <T = GuestReply>(id: string, request: GuestRequest, timeoutMs: number, read?: Read<T>): Promise<T> =>
    registry.active(id, async ({ sandbox }) => {
      const observe = metrics.call.startTimer({ action: request.action });
      try {
        return await sandbox.call(request, timeoutMs, read);
      } catch (error) {
        // 500 whatever it was: clients of the reference take it for "not ready" and anything else for final.
        throw new ForkdError('AGENT_FAILED', { action: request.action, reason: reasonOf(error) }, error);
      } finally {
        observe();
      }
    });

  /** What is large is read by a worker: here it would hold up everybody else. */
  const answerTo =
    (action: AnsweredAction): Read<object> =>
    async (payload) => {
      if (payload.length < limits.answerHereMaxBytes) return answerBody(action, payload);
      const made = await engine.pool.run('answer', { action, payload });
      if ('problem' in made) throw new TypeError(made.problem);
      return made.body;
    };

  app.post<WithId & { Body: ExecBody }>(
    '/v1/sandboxes/:id/exec',
    { schema: { body: execSchema }, config: { summary: 'Run a program in it.', replies: { 200: { schema: 'Exec' } } } },
    async ({ params, body }, reply) => {
      registry.get(params.id);
      const { args, timeout_secs: timeout, env, cwd, user, stdin } = body;
      if (args.length === 0) throw refused('args must not be empty');
      if (timeout > limits.execMaxSecs) throw refused(`timeout_secs must be at most ${limits.execMaxSecs}`);
      // An agent that does not know it would run the program as somebody else.
      if (user != null) registry.get(params.id).sandbox.requireGeneration(STREAMS_GENERATION, 'exec as another user');
      const request = { action: 'exec' as const, args, timeout, ...present({ env, cwd, user, stdin }) };
      return sendAnswer(reply, await call(params.id, request, timeout * 1000 + EXEC_GRACE_MS, answerTo('exec')));
    },
  );

  app.get<WithId>(
    '/v1/sandboxes/:id/runs',
    { config: { summary: 'Programs in its background.', replies: { 200: { schema: 'Run', isArray: true } } } },
    async ({ params }) =>
      (await registry.active(params.id, ({ sandbox }) => sandbox.ask<PlainReply>({ action: 'runs' }))).runs,
  );

  app.post<WithId & { Body: RunBody }>(
    '/v1/sandboxes/:id/runs',
    {
      schema: { body: runSchema },
      config: { summary: 'Run a program in its background.', replies: { 201: { schema: 'RunBegun' } } },
    },
    async ({ params, body }, reply) => {
      const { args, tty, stdin, timeout_secs: timeout, env, cwd, user } = body;
      const more = present({ timeout, env, cwd, user });
      const request = { action: 'run' as const, detach: true as const, args, tty, stdin, ...more };
      const { run, pid } = await registry.active(params.id, ({ sandbox }) => sandbox.ask<PlainReply>(request));
      return reply.code(201).send({ run, pid });
    },
  );

  app.post<WithId & { Body: EvalBody }>(
    '/v1/sandboxes/:id/eval',
    {
      schema: { body: evalSchema },
      config: { summary: 'Run code in its warm interpreter.', replies: { 200: { schema: 'Eval' } } },
    },
    async ({ params, body }, reply) =>
      sendAnswer(reply, await call(params.id, { action: 'eval', code: body.code }, EVAL_MS, answerTo('eval'))),
  );

  app.post<WithId>(
    '/v1/sandboxes/:id/ping',
    { config: { bodyIgnored: true, summary: 'Whether its agent answers.', replies: { 200: { schema: 'Ping' } } } },
    ({ params }) => call(params.id, { action: 'ping' }, PING_MS),
  );
};

/** Bytes are a body that is written already. */
const sendAnswer = (reply: FastifyReply, body: object): FastifyReply =>
  body instanceof Uint8Array ? reply.type('application/json; charset=utf-8').send(body) : reply.send(body);

/** Keys that were given a value. */
const present = <T extends object>(keys: T): { [K in keyof T]?: NonNullable<T[K]> } =>
  Object.fromEntries(Object.entries(keys).filter(([, value]) => value != null)) as {
    [K in keyof T]?: NonNullable<T[K]>;
  };
