/** An engine that is to be killed: two sandboxes that were restored cold, one of which a keeper holds. Prints how to find them, and stays. */
import { Engine } from '../../../src/main/engine.js';
import { Keeper } from '../../../src/main/sandbox/keeper.js';
import { keptFdsOf, recordOf } from '../../../src/main/sandbox/take-over.js';
import { BASE_TAG } from '../../support/world.js';

const engine = new Engine({ tied: true });
const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2, cold: true });
const [kept, other] = sandboxes;
const fds = kept && keptFdsOf(kept);
if (!kept || !other || !fds) throw new Error('a sandbox is missing');
new Keeper(process.argv[2] ?? '', (reason) => console.error(reason)).keep([[kept.id, fds]]);
console.log(JSON.stringify({ id: kept.id, record: recordOf(kept), other: other.vmm.pid }));
setInterval(() => undefined, 60_000);
