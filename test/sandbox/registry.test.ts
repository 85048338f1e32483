/** What engines tell of their sandboxes, as files: no VM is needed to read and write them. This very process stands for one. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { ForkdError } from '../../src/contract/errors.js';
import { living, lookUp, Records, stale } from '../../src/main/sandbox/registry.js';
import type { SandboxInfo } from '../../src/main/sandbox/sandbox.js';

const test = suite<{ dir: string }>('records of sandboxes');

test.before.each((context) => {
  context.dir = mkdtempSync(join(tmpdir(), 'records-'));
});
test.after.each(({ dir }) => rmSync(dir, { recursive: true, force: true }));

const idOf = (n: number): string => `sb-1-${n.toString(16).padStart(8, '0')}`;
const told = (n: number, socket = '/a.sock') => ({ info: { id: idOf(n), pid: process.pid } as SandboxInfo, socket });
const socketOf = (dir: string, n: number): string | undefined => {
  try {
    return lookUp(dir, idOf(n)).socket;
  } catch (error) {
    assert.is((error as ForkdError).code, 'SANDBOX_NOT_FOUND');
    return undefined;
  }
};

test('two engines tell of theirs in a file each, until they are gone', ({ dir }) => {
  const [one, two] = [new Records(dir), new Records(dir)];
  one.add([told(1), told(2)]);
  two.add([told(3, '/b.sock')]);
  assert.equal(
    living(dir).map(({ id }) => id),
    [1, 2, 3].map(idOf),
  );
  assert.is(socketOf(dir, 3), '/b.sock');
  one.remove(idOf(1));
  assert.equal([socketOf(dir, 1), socketOf(dir, 2)], [undefined, '/a.sock']);
  one.remove(idOf(2));
  one.close();
  assert.is(readdirSync(dir).length, 1);
  two.close();
  // It lives on, for the daemon that comes next.
  assert.is(socketOf(dir, 3), '/b.sock');
});

test('a file stays small, however many come and go', ({ dir }) => {
  const records = new Records(dir);
  records.add([told(1)]);
  for (let n = 2; n < 3000; n++) {
    records.add([told(n)]);
    records.remove(idOf(n));
  }
  const [file = '', ...more] = readdirSync(dir);
  assert.equal(more, []);
  assert.ok(readFileSync(join(dir, file), 'utf8').split('\n').length < 2200);
  assert.equal(
    living(dir).map(({ id }) => id),
    [idOf(1)],
  );
  records.add([told(5000)]);
  assert.is(socketOf(dir, 5000), '/a.sock');
  records.close();
});

test('of an engine that was killed: its sandboxes count as long as they run; who took one over tells where it is now', ({
  dir,
}) => {
  const records = new Records(dir);
  records.add([told(1), told(2)]);
  const [file = ''] = readdirSync(dir);
  const left = join(dir, '1-1-1.jsonl');
  writeFileSync(left, readFileSync(join(dir, file)).toString().replaceAll('/a.sock', '/old.sock'));
  assert.equal([socketOf(dir, 1), living(dir).length], ['/a.sock', 2]);
  // All that runs is told of by who took it over.
  assert.equal(stale(dir), [left]);
  records.remove(idOf(2));
  assert.equal([socketOf(dir, 2), stale(dir)], ['/old.sock', []]);
  const { pid: _, ...gone } = JSON.parse(readFileSync(left, 'utf8').split('\n')[1] ?? '');
  writeFileSync(left, `${JSON.stringify({ ...gone, pid: 2 ** 22 })}\n{"id": "sb-1-cut o`);
  assert.equal([socketOf(dir, 2), stale(dir)], [undefined, [left]]);
  records.close();
});

/** As a full disk does: a part of what is written is taken, and then no more. */
const whileFull = (path: string, use: () => void): void => {
  const most = (bytes: string) => execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${bytes}:`]);
  most(String(statSync(path).size + 30));
  try {
    use();
  } finally {
    most('unlimited');
  }
};

test('a record that the disk took a part of spoils none that comes after it', ({ dir }) => {
  const records = new Records(dir);
  records.add([told(1)]);
  const [file = ''] = readdirSync(dir);
  whileFull(join(dir, file), () => assert.throws(() => records.add([told(2)]), /EFBIG/));
  records.add([told(3)]);
  assert.equal(
    living(dir).map(({ id }) => id),
    [idOf(1), idOf(3)],
  );
  records.close();
});

test('nor in a file that was written anew: what is cut back leaves no hole', ({ dir }) => {
  const records = new Records(dir);
  records.add([told(1)]);
  const [file = ''] = readdirSync(dir);
  const path = join(dir, file);
  const { ino } = statSync(path);
  for (let n = 2; statSync(path).ino === ino; n++) {
    records.add([told(n)]);
    records.remove(idOf(n));
    assert.ok(n < 3000, 'it is never written anew');
  }
  whileFull(path, () => assert.throws(() => records.add([told(5000)]), /EFBIG/));
  records.add([told(6000)]);
  assert.not(readFileSync(path, 'utf8').includes('\0'));
  assert.equal(
    living(dir).map(({ id }) => id),
    [idOf(1), idOf(6000)],
  );
  records.close();
});

test.run();
