/** What the command line promises to scripts: exit codes, streams, help. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { loadCommands } from '../../src/cli/commands/index.js';
import { forkd } from '../support/cli.js';
import { makeWorld, type World } from '../support/world.js';

const usage = suite<{ world: World }>('usage');

usage.before((context) => {
  context.world = makeWorld();
});
usage.after(({ world }) => world.close());

usage('mistakes in the command line end with 2, on stderr', async ({ world: { env } }) => {
  const mistakes = [
    [],
    ['nonsense'],
    ['fork', '--bogus'],
    ['fork', '--tag', 'x'],
    ['fork', '-n', '1'],
    ['fork', '--tag'],
    ['fork', '--tag', 'x', '-n', 'many'],
    ['fork', '--tag', 'x', '-n', '1', '--hugepages'],
    ['fork', '--tag', 'x', '-n', '1', '--input', '/dev/null'],
    ['exec'],
    ['eval'],
    ['rmi'],
    ['ping', '--target', 'nowhere'],
    ['snapshot'],
    ['snapshot', '--tag', 'x', '--require', 'xen'],
  ];
  for (const args of mistakes) {
    const { code, stdout, stderr } = await forkd(args, { env });
    assert.is(code, 2, `${args.join(' ')}: ${stderr}`);
    assert.is(stdout, '', args.join(' '));
    if (args.length > 0) assert.match(stderr, /^Error: /);
  }
});

usage('a tag that looks like a number stays what was typed', async ({ world: { env } }) => {
  for (const tag of ['007', '1e3', '0x10']) {
    assert.match((await forkd(['fork', '--tag', tag, '-n', '1'], { env })).stderr, `snapshot '${tag}' not found`);
  }
});

usage('nobody there: one error and exit code 1', async ({ world: { env } }) => {
  for (const target of ['127.0.0.1:1', 'unix:/nowhere.sock', 'sb-00000000-0000']) {
    const { code, stderr } = await forkd(['exec', '--target', target, '--', 'true'], { env });
    assert.is(code, 1, stderr);
    assert.match(stderr, /^Error: (cannot reach the agent|sandbox)/);
    assert.match(stderr, target);
  }
  const { code, stderr } = await forkd(['ping', '--child', 'no-such-netns'], { env });
  assert.is(code, 1);
  assert.match(stderr, "network namespace 'no-such-netns' does not exist");
});

usage('every command has help with an example, and every one is listed', async ({ world: { env } }) => {
  const list = await forkd(['--help'], { env });
  for (const { name } of await loadCommands()) {
    const { code, stdout } = await forkd([name, '--help'], { env });
    assert.is(code, 0, name);
    assert.match(stdout, /Examples:\n {2}\$ \S/);
    assert.match(list.stdout, new RegExp(`^ {2}${name}\\b`, 'm'));
  }
});

usage('version, where, images and rmi', async ({ world }) => {
  const { env } = world;
  assert.match((await forkd(['--version'], { env })).stdout, /^forkd \d+\.\d+\.\d+\n$/);
  assert.is((await forkd(['where'], { env })).stdout, `${join(env.XDG_DATA_HOME, 'forkd')}\n`);
  assert.equal(JSON.parse((await forkd(['images', '--json'], { env })).stdout), []);
  const removed = await forkd(['rmi', 'nope', '../../etc'], { env });
  assert.is(removed.code, 1);
  assert.match(removed.stdout, /✗ nope .*not found/);
  assert.match(removed.stdout, /✗ \.\.\/\.\.\/etc .*invalid tag/);
  assert.ok(existsSync('/etc'));
  assert.equal(readdirSync(env.TMPDIR), []);
});

usage.run();
