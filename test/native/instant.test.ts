/** Copies of memory as it was at one instant, while its owner goes on writing: each scenario in a process of its own. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { native } from '../../src/native/binding.js';
import { inChild } from './in-child.js';

/** The scenarios of scenario/instant.ts, and what each shows. */
const SCENARIOS = {
  stoppedShared: 'the copy is the memory of the stop, byte by byte, though a thread goes on writing to it',
  stoppedPrivate: 'the same of private memory',
  running: 'a copy of memory that was not stopped is of one moment of its writer, word by word',
  changes: 'of a private mapping only what was changed is copied',
  failing: 'a copy that fails lets go of the memory',
  closed: 'so does one that is given up',
  killed: 'a process that ends is told apart',
  dropped: 'memory that is dropped before it was copied ends the copy',
};

const test = suite<{ folder: string; subject: string }>('native instant copy');

test.before((context) => {
  context.folder = mkdtempSync(join(tmpdir(), 'forkd-instant-'));
  context.subject = join(context.folder, 'wp-subject');
  const source = fileURLToPath(new URL('../../../test/native/wp-subject.c', import.meta.url));
  execFileSync('gcc', ['-D_GNU_SOURCE', '-std=gnu11', '-O2', '-o', context.subject, source, '-lpthread']);
});
test.after(({ folder }) => rmSync(folder, { recursive: true, force: true }));

for (const [name, title] of Object.entries(SCENARIOS)) {
  test(title, async ({ subject }) => {
    assert.is(await inChild('instant', 60_000, [subject, name]), null);
  });
}

test('arguments are checked', () => {
  const memfd = native.memfdCreate('x');
  const region = { base: 1 << 20, bytes: 4096, offset: 0 };
  assert.throws(() => native.instantArm(memfd, process.pid, [region]), /EINVAL.*fdinfo/); // no userfaultfd
  assert.throws(() => native.instantArm(memfd, process.pid, []), /at least one region/);
  assert.throws(() => native.instantTake(1_000_000, memfd, 1), /a handle of instantArm/);
  assert.throws(
    () => native.wpBench(4097, memfd, memfd, { isPrivate: false, writer: false, copiers: 1 }),
    /whole pages/,
  );
  native.fdClose(memfd);
});

test.run();
