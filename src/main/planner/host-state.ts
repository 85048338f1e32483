/** What a plan depends on of this host, as it is now. */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { sandboxId } from '../../contract/names.js';
import { shimPath } from '../../native/binding.js';
import { hostResources, networkNamespaces } from '../host/resources.js';
import { givenNames } from '../network/names.js';
import { canMakeNetworks } from '../network/networks.js';
import { HOT_FROM } from '../template/warmth.js';
import type { HostState } from './plan.js';

/** `netnsTaken` by sandboxes of this engine. `hasTemplate`: there is one already, or it will serve others too. */
export const hostState = (netnsTaken: ReadonlySet<string>, hasTemplate: boolean): HostState => ({
  resources: hostResources(),
  netns: networkNamespaces(),
  makesNetworks: canMakeNetworks(),
  netnsTaken: new Set([...netnsTaken, ...givenNames()]),
  hotForkProblem: existsSync(shimPath) ? undefined : 'the hot-fork shim has not been built',
  hotFrom: hasTemplate ? 1 : HOT_FROM,
  newId: () => sandboxId(Math.floor(Date.now() / 1000), randomBytes(4).readUInt32LE()),
  newMachineId: () => randomBytes(16).toString('hex'),
});
