/** The tree of branches: what there is, which branch a tag means, and what may go. */
import type { FastifyInstance } from 'fastify';
import {
  DIFF_PARTS,
  type DiffPart,
  type LiveChild,
  type PromoteReport,
  type PruneRequest,
} from '../../../contract/branches.js';
import { ForkdError } from '../../../contract/errors.js';
import { isSandboxId } from '../../../contract/names.js';
import {
  type DiffQuery,
  diffQuerySchema,
  type PromoteBody,
  promoteSchema,
  pruneSchema,
  type PruneBody,
} from '../../../contract/rest.js';
import { diffBranches, type LiveSide } from '../../branches/diff.js';
import { mergeChildren, publishedChildren } from '../../branches/live.js';
import { planPrune, prune } from '../../branches/prune.js';
import { type Found, growTree } from '../../branches/tree.js';
import { promoteSandbox } from '../../promote-sandbox.js';
import { promote, type PromoteRequest } from '../../store/promote.js';
import type { Context } from '../context.js';
import { newTag, storedTag } from '../tags.js';
import type { Workspaces } from '../workspaces.js';

const refused = (reason: string): ForkdError => new ForkdError('REQUEST_REFUSED', { reason });

export const branchTreeRoutes = (app: FastifyInstance, context: Context, workspaces: Workspaces): void => {
  const { engine, registry, slots, snapshots, metrics, survivors } = context;
  const { store } = engine;

  const find = (): Found => ({
    snapshots: store.list(),
    // Also those of commands: they may run from the same snapshots.
    sandboxes: mergeChildren(publishedChildren(), liveChildren(context)),
    workspaces: workspaces.list(),
  });

  const promoteTag = async (request: PromoteRequest): Promise<PromoteReport> => {
    const { as, promotedFrom = request.from } = request;
    const { dir, previous, hadName } = await promote(store, request);
    // What the tag meant until now is nobody's to fork from under this name.
    await engine.forgetTemplates(as);
    await snapshots.promoted(as, request.from, hadName ? undefined : previous);
    return { tag: as, dir, promoted_from: promotedFrom, ...(previous === undefined ? {} : { previous }) };
  };

  app.get(
    '/v1/tree',
    {
      config: {
        summary: 'Snapshots, and the sandboxes that run from them, as a tree.',
        replies: { 200: { schema: 'Tree' } },
      },
    },
    () => growTree(find()),
  );

  const liveSide = (name: string): LiveSide | undefined => {
    if (!isSandboxId(name)) return undefined;
    const { sandbox } = registry.get(name);
    if (sandbox.state === 'dead') throw sandbox.death();
    const { birth, vmm } = sandbox;
    return {
      guest: {
        ask: (request) => registry.active(name, () => sandbox.ask(request)),
        open: (request) => sandbox.stream(request),
      },
      snapshotTag: birth.tag,
      ...(birth.snapshot === undefined ? {} : { snapshotRoot: birth.snapshot.memory_root }),
      pid: vmm.pid,
    };
  };

  app.get<{ Querystring: DiffQuery }>(
    '/v1/diff',
    {
      schema: { querystring: diffQuerySchema },
      exposeHeadRoute: false,
      config: {
        summary: 'What differs between two branches: tags, or sandboxes.',
        replies: { 200: { schema: 'Diff' } },
      },
    },
    ({ query: { a, b, parts } }) => {
      for (const name of [a, b]) if (!isSandboxId(name)) snapshots.requireReady(storedTag(store, name));
      return diffBranches(engine, [a, b], (parts?.split(',') as DiffPart[]) ?? [...DIFF_PARTS], liveSide);
    },
  );

  app.post<{ Params: { tag: string }; Body: PromoteBody }>(
    '/v1/snapshots/:tag/promote',
    {
      schema: { body: promoteSchema },
      config: { summary: 'Make another tag mean this snapshot.', replies: { 200: { schema: 'Promoted' } } },
    },
    ({ params, body }) => {
      const from = storedTag(store, params.tag);
      const as = store.exists(body.as) ? storedTag(store, body.as) : newTag(body.as);
      if (from === as) throw refused('`as` must be another tag');
      snapshots.requireReady(from);
      return promoteTag({ from, as });
    },
  );

  app.post<{ Params: { id: string }; Body: PromoteBody }>(
    '/v1/sandboxes/:id/promote',
    {
      schema: { body: promoteSchema },
      config: {
        summary: 'Make a tag mean what a sandbox is now; it runs on.',
        replies: { 200: { schema: 'Promoted' } },
      },
    },
    async ({ params: { id }, body }) => {
      const as = storedTag(store, body.as);
      const entry = registry.get(id);
      const leave = slots.enter();
      const write = async (from: string): Promise<void> => {
        if (entry.sandbox.state === 'dead') throw entry.sandbox.death();
        const branch = await registry.active(id, () => engine.branchInto(id, { tag: from }));
        metrics.branchPause.observe(branch.pause_us / 1e6);
        entry.branches++;
        await branch.written;
        await survivors.update(entry);
      };
      try {
        return await promoteSandbox(engine, write, (from) => promoteTag({ from, as, promotedFrom: id }));
      } finally {
        leave();
      }
    },
  );

  app.post<{ Body: PruneBody }>(
    '/v1/snapshots/prune',
    {
      schema: { body: pruneSchema },
      config: { summary: 'Remove branches that nothing needs.', replies: { 200: { schema: 'Pruned' } } },
    },
    ({ body }) => {
      const plan = planPrune(find(), requestOf(body), Math.floor(Date.now() / 1000));
      return prune(plan, body.dry_run, async (tag) => {
        await engine.forgetTemplates(tag);
        snapshots.remove(tag);
      });
    },
  );
};

const liveChildren = ({ registry }: Context): LiveChild[] =>
  registry
    .list()
    .filter(({ sandbox }) => sandbox.state !== 'dead')
    .map(({ sandbox: { id, birth, vmm, createdAt } }) => ({
      id,
      snapshot_tag: birth.tag,
      ...(birth.snapshot === undefined ? {} : { snapshot_root: birth.snapshot.memory_root }),
      pid: vmm.pid,
      created_at_unix: createdAt,
      owner: 'daemon',
    }));

const requestOf = ({ under, all, older_than_secs, keep, only }: PruneBody): PruneRequest => ({
  ...(under == null ? {} : { under }),
  all,
  ...(older_than_secs == null ? {} : { older_than_secs }),
  ...(keep == null ? {} : { keep }),
  ...(only == null ? {} : { only }),
});
