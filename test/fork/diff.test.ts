/** What differs between two branches, in real guests; and by the command, from another process. */
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { DiffPart, DiffReport, FileChange } from '../../src/contract/branches.js';
import { diffBranches } from '../../src/main/branches/diff.js';
import { Engine } from '../../src/main/engine.js';
import { forkd } from '../support/cli.js';
import { BASE_TAG, sharedData } from '../support/world.js';

process.env['XDG_DATA_HOME'] = sharedData();

const diff = suite<{ engine: Engine; a: string; b: string }>('diff');

diff.before(async (context) => {
  const engine = new Engine();
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
  const [a, b] = sandboxes.map(({ id }) => id) as [string, string];
  Object.assign(context, { engine, a, b });
  const shell = async (id: string, script: string) => {
    const { exit_code, stderr } = await engine.exec(id, ['sh', '-ec', script]);
    assert.is(exit_code, 0, stderr);
  };
  // In both: of the same content, at different times.
  for (const id of [a, b]) await shell(id, 'mkdir -p /srv/both; echo same > /srv/both/file; echo early > /srv/kept');
  await shell(a, 'touch /srv/both/file; echo aaaa > /srv/both/content; echo gone > /root/gone; ln -s a /srv/link');
  await shell(b, 'echo bbbb > /srv/both/content; echo longer >> /srv/kept; ln -s b /srv/link; chmod 700 /opt');
  await shell(b, 'rm /etc/debian_version; chown 1:2 /srv/both; mkdir -p /srv/new/deep; echo x > /srv/new/deep/file');
  // Not on the root disk; and a directory that hides all that the disk has in its place.
  await shell(b, 'echo t > /tmp/t; rm -rf /usr/lib/python3.11/json; mkdir /usr/lib/python3.11/json');
});
diff.after(({ engine }) => engine.close());

/** In one engine, with the sandboxes that it has. */
const compare = (engine: Engine, a: string, b: string, ...parts: DiffPart[]): Promise<DiffReport> =>
  diffBranches(engine, [a, b], parts, (name) => {
    const sandbox = engine.sandboxes.find(({ id }) => id === name);
    return (
      sandbox && {
        guest: { ask: (request) => sandbox.ask(request), open: (request) => sandbox.stream(request) },
        snapshotTag: BASE_TAG,
        pid: sandbox.vmm.pid,
      }
    );
  });

const told = ({ change, path, what }: FileChange): string => `${change} ${path} ${what.join()}`.trim();

diff('files: what was written on either side, and nothing that is the same', async ({ engine, a, b }) => {
  const { files = [], processes, memory } = await compare(engine, a, b, 'files');
  assert.equal([processes, memory], [undefined, undefined]);
  const json = files.filter(({ path }) => path.startsWith('/usr/lib/python3.11/json/'));
  assert.ok(json.some(({ path, change }) => path.endsWith('/decoder.py') && change === 'removed'));
  assert.equal(files.filter((one) => !json.includes(one)).map(told), [
    'removed /etc/debian_version',
    'changed /opt mode',
    'removed /root/gone',
    'changed /srv/both owner',
    'changed /srv/both/content content',
    'changed /srv/kept content',
    'changed /srv/link target',
    'added /srv/new',
    'added /srv/new/deep',
    'added /srv/new/deep/file',
    'added /tmp/t',
  ]);
  const kept = files.find(({ path }) => path === '/srv/kept');
  assert.equal([kept?.size_a, kept?.size_b], [6, 13]);
});

diff('processes, and memory: of a sandbox and of its tag, of which a child is forked', async ({ engine, a, b }) => {
  const run = await engine.ask<{ exit_code: number; pid: number }>(b, {
    action: 'run',
    detach: true,
    args: ['sleep', '1000'],
  });
  // 4 MiB that no other has.
  await engine.eval(b, 'import os, builtins; builtins.noise = os.urandom(4 << 20)');
  const { processes, memory } = await compare(engine, BASE_TAG, b, 'processes', 'memory');
  assert.equal(processes, [{ change: 'added', pid: run.pid, command: 'sleep 1000' }]);
  assert.ok(memory && memory.bytes > 4 << 20, JSON.stringify(memory));
  assert.ok(memory.private_bytes_b >= memory.bytes && memory.private_bytes_a === 0, JSON.stringify(memory));
  assert.equal((await compare(engine, a, b, 'processes')).processes, processes);
  const none = await compare(engine, BASE_TAG, BASE_TAG, 'memory');
  assert.equal([none.memory?.pages, none.memory?.chunks], [0, 0]);
  // The child that was forked for it is gone.
  assert.equal(engine.sandboxes.map(({ id }) => id).sort(), [a, b].sort());
});

diff('the command reaches sandboxes of another process by their records', async ({ engine, a, b }) => {
  await engine.publish(engine.sandboxes);
  const { code, stdout, stderr } = await forkd(['diff', a, b]);
  assert.is(code, 0, stderr);
  for (const text of [
    /^files: \d+ differ$/m,
    /^ {2}M \/srv\/kept {2}\(content\) {2}6 -> 13 bytes$/m,
    /^ {2}\+ \/srv\/new\/$/m,
    /^ {2}- \/root\/gone {2}5 bytes$/m,
    /^processes: 1 differs\n {2}\+ \d+ {2}sleep 1000$/m,
    /^memory: \d+\.\d MiB of 512\.0 MiB differ, \d+ pages$/m,
  ])
    assert.match(stdout, text);
  assert.is((await forkd(['diff', a])).code, 2);
});

diff.run();
