// The process ends although the watched child does not.
import { native } from '../../../src/native/binding.js';
import { spawnSleep } from '../process.js';

native.pidfdWatch(spawnSleep().pidfd, () => console.log('"ended"'));
console.log('"watching"');
