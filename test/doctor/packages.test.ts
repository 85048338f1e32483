import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { findTool } from '../../src/main/host/packages.js';
import { inScenario } from './scenario.js';

/** Installs through an apt-get of the test's own, which is found first on PATH. */
interface Context {
  root: string;
}

const test = suite<Context>('packages');

test.before.each((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'packages-test-'));
  mkdirSync(join(context.root, 'bin'));
});
test.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));

const isRoot = process.getuid?.() === 0;

const fakeApt = (root: string, body: string): string => {
  writeFileSync(join(root, 'bin/apt-get'), `#!/bin/bash\necho "$*" >> ${root}/log\n${body}\n`, { mode: 0o755 });
  return `${root}/bin:/usr/bin:/bin`;
};

const calls = (root: string): string[] =>
  readFileSync(join(root, 'log'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.replace(/-o \S+ /g, ''));

test('mkfs.ext4 is found although /usr/sbin is not on PATH', () => {
  const before = process.env['PATH'];
  process.env['PATH'] = '/usr/bin:/bin';
  try {
    assert.match(findTool('sh') ?? '', /\/bin\/sh$/);
    assert.match(findTool('ldconfig') ?? '', /sbin\/ldconfig$/);
    assert.is(findTool('no-such-tool'), undefined);
  } finally {
    process.env['PATH'] = before;
  }
});

test('a failed installation is tried once more after an update, and its steps are told', async ({ root }) => {
  if (!isRoot) return;
  const path = fakeApt(
    root,
    `case "$*" in *install*) [ -e ${root}/updated ] || { echo 'E: 404' >&2; exit 100; }; echo 'dlstatus:1:50.0:Retrieving' >&3; echo 'pmstatus:qemu:75.5:Unpacking qemu' >&3;;
      *update*) touch ${root}/updated;; esac`,
  );
  const { steps, error } = await inScenario({ PATH: path }, ['qemu-x', 'xz-y']);
  assert.is(error, null);
  const installs = calls(root);
  assert.is(installs.at(-2), '-q update');
  assert.is(installs.at(-1), '-q install -y --no-install-recommends qemu-x xz-y');
  assert.equal(steps.slice(-2), [
    ['downloading packages', 0.5],
    ['Unpacking qemu', 0.755],
  ]);
});

test('an installation that keeps failing is PACKAGES_FAILED with what apt-get said', async ({ root }) => {
  if (!isRoot) return;
  const path = fakeApt(root, `echo 'E: Unable to locate package' >&2; exit 100`);
  const { error } = await inScenario({ PATH: path }, ['nonsense']);
  assert.is(error?.code, 'PACKAGES_FAILED');
  assert.match(ForkdError.fromData(error as never).message, 'Unable to locate package');
});

test('an interrupt ends apt-get and what it runs', async ({ root }) => {
  if (!isRoot) return;
  const path = fakeApt(root, `sleep 60 & echo $! > ${root}/pid; echo 'dlstatus:1:1.0:x' >&3; wait`);
  const { error, ms } = await inScenario({ PATH: path, ABORT_AT: 'downloading' }, ['qemu-x']);
  assert.is(error?.code, 'CANCELLED');
  assert.ok(ms < 20_000, `it took ${ms} ms`);
  const pid = readFileSync(join(root, 'pid'), 'utf8').trim();
  assert.not(existsSync(`/proc/${pid}/fd/0`), 'its child still runs');
});

test.run();
