/** The jail of an ordinary user: a user namespace of its own gives what root gives, but for another user. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller } from '../../src/client/index.js';
import { jailAbility } from '../../src/main/host/jail.js';
import { CLI, start } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, type World } from '../support/world.js';

const rootless = suite<{ world: World }>('rootless');

const NOBODY = '65534';
const AS_NOBODY = [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups', process.execPath, CLI];

/** The checkout may lie where only root can go; and a host may have no user namespaces for others. */
const isPossible = ['test -r "$0"', 'unshare --user true'].every(
  (script) =>
    spawnSync('setpriv', [...AS_NOBODY.slice(0, 3), 'sh', '-c', script, CLI], { stdio: 'ignore' }).status === 0,
);

rootless.before((context) => {
  context.world = makeWorld(true);
  spawnSync('chown', ['-R', `${NOBODY}:${NOBODY}`, context.world.root]);
});
rootless.after(({ world }) => world.close());

const test = isPossible ? rootless : rootless.skip;

test('children have no capability, an empty root and a network of their own, and can be saved', async ({ world }) => {
  const { env } = world;
  const running = start('setpriv', [...AS_NOBODY, 'fork', '--tag', BASE_TAG, '-n', '2', '--settle-secs', '30'], {
    env,
  });
  try {
    const jailed = () =>
      qemusOf(world.root).filter((pid) => /^Seccomp:\t2$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')));
    assert.ok(await eventually(() => jailed().length >= 3, 30_000), 'two children and their template');
    for (const pid of jailed()) {
      const status = readFileSync(`/proc/${pid}/status`, 'utf8');
      assert.match(status, new RegExp(`^Uid:\\t${NOBODY}\\t${NOBODY}\\t${NOBODY}\\t${NOBODY}$`, 'm'));
      assert.match(status, /^NoNewPrivs:\t1$/m);
      for (const thread of readdirSync(`/proc/${pid}/task`)) {
        const own = readFileSync(`/proc/${pid}/task/${thread}/status`, 'utf8');
        for (const set of ['CapPrm', 'CapEff', 'CapBnd']) assert.match(own, new RegExp(`^${set}:\\t0+$`, 'm'));
      }
      assert.equal(readdirSync(`/proc/${pid}/root`), ['proc']);
      for (const name of ['user', 'mnt', 'pid', 'net', 'ipc', 'uts'])
        assert.is.not(readlinkSync(`/proc/${pid}/ns/${name}`), readlinkSync(`/proc/self/ns/${name}`), name);
    }
  } finally {
    running.kill('SIGINT');
    await running.ended;
  }
  const branch = ['snapshot-diff', '--from', BASE_TAG, '--tag', 'more', '--exec', "sh -c 'echo kept > /root/x'"];
  const saved = await start('setpriv', [...AS_NOBODY, ...branch], { env }).ended;
  assert.is(saved.code, 0, saved.stderr);
  const cold = ['fork', '--tag', 'more', '-n', '1', '--cold', '--', 'cat', '/root/x'];
  const read = await start('setpriv', [...AS_NOBODY, ...cold], { env }).ended;
  assert.is(read.stdout, '[1] kept\n', read.stderr);
});

test('a daemon of an ordinary user keeps sandboxes; what it cannot have is refused, and what is missing is named', async ({
  world,
}) => {
  const { env, root } = world;
  const socket = join(root, 'd.sock');
  const serve = ['daemon', '--bind', '127.0.0.1:0', '--socket', socket, '--audit-log', join(root, 'audit.log')];
  const daemon = start('setpriv', [...AS_NOBODY, ...serve], { env });
  await daemon.says('listening on port');
  const controller = new Controller({ baseUrl: `unix:${socket}`, timeoutMs: 100_000 });
  const refusal = (asked: Promise<unknown>): Promise<string> =>
    asked.then(
      () => 'done',
      ({ message }: Error) => message,
    );
  try {
    const [one, two] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, n: 2 });
    assert.ok(one && two);
    assert.is(
      (await controller.execCommand(one.id, ['sh', '-c', 'echo of one > /root/x; cat /root/x'])).stdout,
      'of one\n',
    );
    assert.is((await controller.branchSandbox(one.id, { tag: 'kept', mode: 'diff' })).status, 'ready');
    const strict = await refusal(controller.spawnSandboxes({ snapshotTag: BASE_TAG, strict: true }));
    assert.match(strict, /^strict: this host cannot enforce jail user \(needs CAP_SETUID,/);
    // Groups of its own it has where somebody has given it one.
    const limited = await refusal(controller.limitSandbox(two.id, { cpus: 0.5 }));
    assert.match(limited, /is in no control group, so it cannot be limited|^done$/);
  } finally {
    await controller.close();
    daemon.kill('SIGTERM');
    assert.is((await daemon.ended).code, 0);
  }
});

rootless('who may trace keeps that, and makes no user namespace: memory on demand needs it', () => {
  const status = (caps: string) => `Uid:\t1000\t1000\t1000\t1000\nCapEff:\t${caps}\nSeccomp:\t0\n`;
  assert.match(jailAbility(status('0000000000080000')).missing.namespaces ?? '', /CAP_SYS_PTRACE would be lost/);
  const { missing } = jailAbility(status('0000000000000000'));
  assert.match(missing.user ?? '', /^needs CAP_SETUID, /);
});

rootless.run();
