/** Makes as many networks as its argument says, prints the numbers of their links, and holds them until it is killed. */
import { Engine } from '../src/main/engine.js';
import { Networks } from '../src/main/network/networks.js';

const networks = new Networks(new Engine().pool);
const taken = await networks.take(Number(process.argv[2]), { allow: [], allowDomains: [] });
console.log(JSON.stringify(taken.map(({ number }) => number)));
setInterval(() => undefined, 60_000);
