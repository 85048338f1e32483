/** What a request with `strict` must have and this host cannot give. */
import { ForkdError } from '../../contract/errors.js';
import { CONTROLLERS, cgroupProblem } from './cgroup/hierarchy.js';
import { JAIL_PARTS, jailAbility } from './jail.js';

/** Throws STRICT_REFUSED. */
export const requireStrict = (): void => {
  const { missing } = jailAbility();
  const parts = JAIL_PARTS.flatMap((part) => (missing[part] === undefined ? [] : `jail ${part} (${missing[part]})`));
  const groups = CONTROLLERS.flatMap((controller) => {
    const reason = cgroupProblem(controller);
    return reason === undefined ? [] : `cgroup ${controller} (${reason})`;
  });
  const all = [...parts, ...groups];
  if (all.length > 0) throw new ForkdError('STRICT_REFUSED', { missing: all.join('; ') });
};
