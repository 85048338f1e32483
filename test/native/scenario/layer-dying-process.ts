/** Kills a process at various moments while its diff is written by a worker. Prints how it went each time. */
import { on } from 'node:events';
import { Worker } from 'node:worker_threads';
import { native } from '../../../src/native/binding.js';
import { contents, Files } from '../layers.js';
import { compileSubject, Subject } from '../private-subject.js';

const MIB = 1024 * 1024;
const IMAGE_BYTES = 256 * MIB;
const ROUNDS = 12;
const files = new Files();
const program = compileSubject(files.folder);
const memfd = files.memory(IMAGE_BYTES);

const code = `
  const { parentPort, workerData } = require('node:worker_threads');
  import(workerData.binding).then(({ native }) => {
    parentPort.on('message', ([pid, memfd, target]) => {
      parentPort.postMessage('begun');
      try {
        native.layerWriteProcess(pid, memfd, target, { zstdLevel: 0, parentRoot: 'ab'.repeat(32) });
        parentPort.postMessage('');
      } catch (error) {
        parentPort.postMessage(error.code);
      }
    });
  });`;
const binding = new URL('../../../src/native/binding.js', import.meta.url).href;
const worker = new Worker(code, { eval: true, workerData: { binding } });
const messages = on(worker, 'message');
const message = async (): Promise<string> => (await messages.next()).value[0];

const counts = { whole: 0, died: 0, bad: 0 };
for (let round = 0; round < ROUNDS; round++) {
  const subject = new Subject(program, memfd);
  await subject.do(`fill 0 ${IMAGE_BYTES / 4096} ${round}`);
  const target = files.file();
  worker.postMessage([subject.pid, memfd, target]);
  await message(); // it has begun
  await new Promise((resolve) => setTimeout(resolve, round * 40));
  await subject.end();
  const failure = await message();
  if (failure === '') {
    counts[native.layerOpen(target).dataPages === IMAGE_BYTES / 4096 ? 'whole' : 'bad']++;
  } else {
    counts[failure === 'ESRCH' && contents(target).length === 0 ? 'died' : 'bad']++;
  }
}
await worker.terminate();
files.remove();
console.log(JSON.stringify(counts));
