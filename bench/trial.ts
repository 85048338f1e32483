/** One trial, in this process: `node trial.js NAME PARAMETERS`. Prints its data as one line of JSON. */
import { writeSync } from 'node:fs';
import type { Parameters } from './bench.js';
import { findBench } from './trials/index.js';

const [name, parameters = '{}'] = process.argv.slice(2);
const bench = findBench(name);
if (!bench) throw new Error(`no bench '${name}'`);
writeSync(1, `${JSON.stringify(await bench.trial(JSON.parse(parameters) as Parameters))}\n`);
process.exit();
