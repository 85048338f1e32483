/**
 * The hot-fork shim against a small program with a thread in every state: futex, poll, sleep, malloc, computing, locks held.
 * `driver.c` speaks the protocol and checks; here it is compiled, and each check runs in a process of its own, with a time limit.
 */
import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';

/** The longest takes 10 s on an idle machine. */
const CHECK_TIMEOUT_MS = 200_000;
const root = join(import.meta.dirname, '../../..');
const sources = join(root, 'test/hotfork');
const shimSources = join(root, 'src/native/hotfork');

/** The checks of driver.c, and what each shows. */
const CHECKS = {
  park: 'parks and releases every thread, 200 times, without a trace',
  children: '50 children go on with all threads, locks, thread-local data, eventfds, signals and heap',
  siblings: 'children of one request live side by side and do not hear each other',
  depth: 'a branch of a branch of a branch: all four go on',
  frozen: 'a frozen child is one thread, can be forked, and released later',
  dontfork: 'memory marked MADV_DONTFORK is there in a child',
  refusals: 'what cannot be copied is refused by name, and the process goes on',
  epoll: 'an unused epoll instance is made anew',
  protocol: 'malformed and untimely requests are refused and harm nothing',
  given: 'descriptors that came with the request belong to the child',
  leaks: '10,000 forks leave no descriptor, thread or memory behind',
  death: 'children die with the engine',
  tied: 'a tied child outlives the engine if somebody holds its control socket, and ends with the last who does; so do its copies',
  failed: 'a child that cannot be completed says why and ends',
  pin: 'pinning to one processor ends after the first moments, for all threads',
};

const test = suite<{ build: string }>('hot fork');

test.before((context) => {
  context.build = mkdtempSync(join(tmpdir(), 'hotfork-test-'));
  const compile = (output: string, ...args: string[]) =>
    execFileSync('gcc', ['-D_GNU_SOURCE', '-std=gnu11', '-O2', '-o', join(context.build, output), ...args]);
  const shim = readdirSync(shimSources).filter((name) => name.endsWith('.c'));
  compile('shim.so', '-shared', '-fPIC', ...shim.map((name) => join(shimSources, name)), '-ldl', '-lpthread');
  compile('subject', join(sources, 'subject.c'), '-lpthread');
  compile('driver', join(sources, 'driver.c'));
});
test.after(({ build }) => rmSync(build, { recursive: true, force: true }));

for (const [name, title] of Object.entries(CHECKS)) {
  test(title, async ({ build }) => {
    const output = await new Promise<string>((resolve) => {
      const args = [join(build, 'shim.so'), join(build, 'subject'), name];
      execFile(join(build, 'driver'), args, { timeout: CHECK_TIMEOUT_MS, killSignal: 'SIGKILL' }, (error, stdout) =>
        resolve(stdout.trim() || (error?.message ?? 'no output')),
      );
    });
    assert.is(output, 'ok');
  });
}

/** Sections of the protocol page whose tables repeat an enumeration of protocol.h, with the prefix of its members. */
const TABLES: Record<string, [enumeration: string, prefix: string]> = {
  Types: ['hf_type', 'HF_'],
  Kinds: ['hf_kind', 'HF_KIND_'],
  Dispositions: ['hf_disposition', 'HF_'],
  'Ways to replace': ['hf_how', 'HF_'],
  Codes: ['hf_code', 'HF_'],
};

for (const [section, [enumeration, prefix]] of Object.entries(TABLES)) {
  test(`docs/reference/hotfork-protocol.md, ${section}: as in protocol.h`, () => {
    const header = readFileSync(join(shimSources, 'protocol.h'), 'utf8');
    const body = new RegExp(`enum ${enumeration} \\{([^}]*)\\}`).exec(header)?.[1] ?? '';
    const members = [...body.matchAll(new RegExp(`${prefix}(\\w+) = (\\d+)`, 'g'))].map(
      ([, name, value]) => `${value} ${name}`,
    );
    const page = readFileSync(join(root, 'docs/reference/hotfork-protocol.md'), 'utf8');
    const table = page.split(`### ${section}\n`)[1]?.split(/^#/m)[0] ?? '';
    const rows = [...table.matchAll(/^\| (\d+) +\| `(\w+)`/gm)].map(([, value, name]) => `${value} ${name}`);
    assert.ok(members.length > 1);
    assert.equal(rows, members);
  });
}

test.run();
