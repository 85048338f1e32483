/** One operation in a process of its own, to be killed: `operate.js OPERATION DATA SUBJECT_PID`. */
import { openSync } from 'node:fs';
import { operations } from './world.js';

const [name = '', data = '', pid = ''] = process.argv.slice(2);
const memfd = openSync(`/proc/${pid}/fd/3`, 'r+');
await operations[name]?.run(data, { pid: Number(pid), memfd });
