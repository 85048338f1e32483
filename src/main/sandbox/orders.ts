/** What a `forkd fork` that keeps its children can be told to do with one of them, and what it tells of it. */
import type { PromoteReport } from '../../contract/branches.js';
import { ForkdError } from '../../contract/errors.js';
import type { LimitReport, LimitsChange } from '../../contract/resources.js';
import type { Engine } from '../engine.js';
import { promoteSandbox } from '../promote-sandbox.js';
import { promote } from '../store/promote.js';

interface Orders {
  promote: { id: string; as: string };
  /** An empty change asks what its limits are. */
  limit: { id: string; change: LimitsChange };
}

export interface Reports {
  promote: PromoteReport;
  limit: LimitReport;
}

export type Order = { [What in keyof Orders]: { what: What } & Orders[What] }[keyof Orders];

/** Throws REQUEST_REFUSED, and what Engine.branchInto and Engine.limit throw. */
export const carryOut = (engine: Engine, order: Order): Promise<Reports[Order['what']]> => {
  switch (order.what) {
    case 'promote':
      return promoteChild(engine, order);
    case 'limit':
      return limitChild(engine, order);
    default:
      // From a forkd of another version.
      throw new ForkdError('REQUEST_REFUSED', { reason: `'${(order as { what?: string }).what}' is no order` });
  }
};

const promoteChild = (engine: Engine, { id, as }: Orders['promote']): Promise<PromoteReport> => {
  const write = async (from: string): Promise<void> =>
    void (await (
      await engine.branchInto(id, { tag: from })
    ).written);
  return promoteSandbox(engine, write, async (from) => {
    const { dir, previous } = await promote(engine.store, { from, as, promotedFrom: id });
    return { tag: as, dir, promoted_from: id, ...(previous === undefined ? {} : { previous }) };
  });
};

const limitChild = async (engine: Engine, { id, change }: Orders['limit']): Promise<LimitReport> => {
  await engine.limit(id, change);
  const sandbox = engine.sandbox(id);
  return { limits: sandbox.info().limits, usage: await sandbox.usage() };
};
