/** Children without limits get their groups when they have answered: to join takes longer than a child's whole way there. */
import { Cgroup } from '../host/cgroup/cgroup.js';
import type { Pool } from '../pool.js';
import type { Sandbox } from './sandbox.js';

/** `nameOf`: what the group of each is called. It is a sandbox's name: `cleanup` knows by that how old it is. */
export const joinGroups = (
  pool: Pool,
  sandboxes: Sandbox[],
  nameOf = (sandbox: Sandbox): string => sandbox.id,
): Promise<void> => {
  const joining = sandboxes.flatMap((sandbox) => {
    const { birth, state } = sandbox;
    if (birth.cgroup || state === 'dead') return [];
    const cgroup = Cgroup.later(nameOf(sandbox), birth.snapshot?.rootfs);
    return cgroup ? [{ sandbox, cgroup }] : [];
  });
  if (joining.length === 0) return Promise.resolve();
  const groups = joining.map(({ sandbox, cgroup }) => cgroup.joining(sandbox.vmm.pid));
  // What could not be made is missing from `usage`, and `limit` says why.
  const done = pool.run('join', { groups }).then(
    () => undefined,
    () => undefined,
  );
  for (const { sandbox, cgroup } of joining) sandbox.joins(cgroup, done);
  return done;
};
