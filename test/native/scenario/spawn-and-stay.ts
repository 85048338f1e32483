// Spawns one child that dies with this process and one that does not, says so, and waits to be killed.
import { spawnSleep } from '../process.js';

console.log(JSON.stringify({ dies: spawnSleep(true).pid, stays: spawnSleep(false).pid }));
setTimeout(() => {}, 60_000);
