/** How commands reach who keeps a sandbox: a `forkd fork` of this user, at its desk, or the daemon. */
import type { Controller } from '../client/index.js';
import { ForkdError } from '../contract/errors.js';
import { sandboxesDir } from '../main/paths.js';
import { deskOf, orderAt } from '../main/sandbox/desk.js';
import type { Order, Reports } from '../main/sandbox/orders.js';
import { living } from '../main/sandbox/registry.js';
import { askDaemon, notThere } from './ask-daemon.js';
import type { Options } from './options.js';

/** A daemon that was named on the command line is the one that is asked. Throws SANDBOX_NOT_FOUND, what `orderAt` and `askDaemon` throw. */
export const deskOrDaemon = async <O extends Order>(
  options: Options,
  order: O,
  viaDaemon: (controller: Controller) => Promise<Reports[O['what']]>,
  timeoutMs: number,
): Promise<Reports[O['what']]> => {
  const { id } = order;
  const isNamed = options.string('daemon-url') !== undefined;
  const known = isNamed ? undefined : living(sandboxesDir()).find((one) => one.id === id);
  const desk = known && deskOf(known);
  if (desk !== undefined) return orderAt(desk, order, timeoutMs);
  try {
    return await askDaemon(options, viaDaemon, timeoutMs);
  } catch (error) {
    if (notThere(error) && !isNamed) throw new ForkdError('SANDBOX_NOT_FOUND', { id }, error);
    throw error;
  }
};
