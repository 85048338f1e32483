import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { ForkdError, reasonOf } from '../../../contract/errors.js';
import { type BranchBody, branchSchema, type SnapshotBody } from '../../../contract/rest.js';
import { MEMORY_FILE } from '../../../contract/snapshot.js';
import type { TagBranch } from '../../engine.js';
import type { Context } from '../context.js';
import type { Entry } from '../registry.js';
import type { Facts } from '../snapshots.js';
import { newTag } from '../tags.js';

type Mode = 'full' | 'diff' | 'live';

const refused = (reason: string): ForkdError => new ForkdError('REQUEST_REFUSED', { reason });

/** Every mode has the pause of the fork itself here; the mode decides the keys of the reply and whether it may come early. */
export const branchRoutes = (app: FastifyInstance, context: Context): void => {
  const { engine, registry, slots, snapshots, metrics, survivors } = context;
  app.post<{ Params: { id: string }; Body: BranchBody }>(
    '/v1/sandboxes/:id/branch',
    {
      schema: { body: branchSchema },
      config: {
        summary: 'Make a snapshot of it while it runs.',
        replies: { 201: { schema: 'Snapshot' }, 202: { schema: 'Snapshot' } },
      },
    },
    async ({ params: { id }, body }, reply) => {
      const tag = newTag(body.tag ?? `branch-${id}-${randomBytes(6).toString('hex')}`);
      const leave = slots.enter();
      let branch: TagBranch;
      let mode: Mode;
      let entry: Entry;
      try {
        mode = modeOf(body);
        if (engine.store.exists(tag)) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
        entry = registry.get(id);
        requireParent(body, mode, entry.sandbox.birth.tag);
        if (entry.sandbox.state === 'dead') throw entry.sandbox.death();
        branch = await registry.active(id, () => engine.branchInto(id, { tag }));
        entry.branches++;
      } catch (error) {
        leave();
        throw error;
      }
      const begun: SnapshotBody = {
        tag,
        dir: engine.store.dir(tag),
        created_at_unix: Math.floor(Date.now() / 1000),
        status: 'writing',
        bootable: false,
        branched_from: id,
        pause_ms: Math.round(branch.pause_us / 1000),
        ...(body.labels === undefined ? {} : { labels: body.labels }),
      };
      metrics.branchPause.observe(branch.pause_us / 1e6);
      snapshots.writing(begun);
      const written = settle(branch, begun, mode === 'diff' || body.measure_diff, context).finally(leave);
      if (!body.wait) {
        // Its end is told by the list of snapshots.
        written.catch(() => undefined);
        await survivors.update(entry);
        return reply.code(202).send(begun);
      }
      return reply.code(201).send(await written);
    },
  );
};

/** How the tag is listed once it is on disk. */
const settle = async (
  branch: TagBranch,
  begun: SnapshotBody,
  isMeasured: boolean,
  { registry, snapshots, survivors }: Context,
): Promise<SnapshotBody> => {
  const { tag, branched_from, pause_ms, labels } = begun;
  try {
    const { dir, written_bytes, manifest, memory_ms } = await branch.written;
    const source = registry.branched(branched_from ?? '', join(dir, MEMORY_FILE));
    if (source) await survivors.update(source);
    const facts: Facts = {
      ...(branched_from === undefined ? {} : { branched_from }),
      ...(pause_ms === undefined ? {} : { pause_ms }),
      ...(labels === undefined ? {} : { labels }),
    };
    if (isMeasured)
      Object.assign(facts, {
        diff_ms: Math.round(memory_ms),
        diff_physical_bytes: written_bytes,
        diff_logical_bytes: manifest.memory_bytes,
      });
    return snapshots.written(tag, facts);
  } catch (error) {
    snapshots.failed(tag, reasonOf(error));
    throw error;
  }
};

const modeOf = ({ mode, diff, live, measure_diff, wait }: BranchBody): Mode => {
  if (mode && (diff || live)) throw refused('mode does not go with diff or live');
  const named: Mode = mode ?? (diff ? 'diff' : live ? 'live' : 'full');
  const count = [diff || mode === 'diff', live || mode === 'live', measure_diff].filter(Boolean).length;
  if (count > 1) throw refused('give at most one of diff, live and measure_diff');
  if (!wait && named !== 'live') throw refused('wait:false needs mode live');
  return named;
};

const requireParent = ({ parent_tag }: BranchBody, mode: Mode, tag: string): void => {
  if (parent_tag == null) return;
  if (parent_tag !== tag) throw refused(`parent_tag '${parent_tag}' is not the sandbox's snapshot '${tag}'`);
  if (mode !== 'diff') throw refused('parent_tag needs mode diff');
};
