/** Limits of a sandbox that a `forkd fork` keeps, changed by another command. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { hierarchies } from '../../src/main/host/cgroup/hierarchy.js';
import { CLI, forkd, type Running, start, startCli } from '../support/cli.js';
import { suite } from '../support/suite.js';
import { BASE_TAG, makeWorld, qemusOf, type World } from '../support/world.js';

const limit = suite<{ world: World }>('limit a child of a fork');

limit.before((context) => {
  context.world = makeWorld(true);
});
limit.after(({ world }) => world.close());

const KEEP_ONE = ['fork', '--tag', BASE_TAG, '-n', '1', '--settle-secs', '60'];
const idOf = async (fork: Running): Promise<string> => {
  const said = /forkd exec --target (sb-[0-9a-f]+-[0-9a-f]+)/;
  return said.exec(await fork.says(said))?.[1] as string;
};

/** What the kernel holds the child to, as it tells it in v1 or v2: bytes; microseconds of 100,000. */
const held = (id: string) => {
  const inGroup = (controller: 'cpu' | 'memory', v1: string, v2: string): string => {
    const { root = '', version } = hierarchies()[controller] ?? {};
    return readFileSync(join(root, 'forkd', id, version === 1 ? v1 : v2), 'utf8').trim();
  };
  return {
    memory: Number(inGroup('memory', 'memory.limit_in_bytes', 'memory.max')),
    cpu: inGroup('cpu', 'cpu.cfs_quota_us', 'cpu.max'),
  };
};

limit(
  'shown, changed and lifted while it runs; what it met is told by its fork; nonsense, another id and one that has gone are refused',
  async ({ world: { env, root } }) => {
    const fork = startCli(KEEP_ONE, { env });
    const id = await idOf(fork);
    const run = (...args: string[]) => forkd(['limit', ...args], { env });
    assert.match((await run(id)).stdout, /^cpus: +none\nmemory_limit_mib: +none\n(.|\n)*memory_bytes: +\d/);

    const changed = await run(id, '--memory-limit-mib', '700', '--cpus', '0.05', '--json');
    const told = JSON.parse(changed.stdout);
    assert.equal(
      [told.id, told.limits],
      [id, { cpus: 0.05, memory_limit_mib: 700, io_mib_per_s: null, pids: null }],
      changed.stderr,
    );
    assert.ok(told.usage.pids > 0);
    assert.is(held(id).memory, 700 * 2 ** 20);
    assert.match(held(id).cpu, /^5000( 100000)?$/);
    const loop = 'i=0; while [ $i -lt 300 ]; do i=$((i+1)); done';
    assert.is((await forkd(['exec', '--target', id, '--', 'sh', '-c', loop], { env })).code, 0);

    // What is not named stays.
    assert.match((await run(id, '--cpus', 'none')).stdout, /^cpus: +none\nmemory_limit_mib: +700\n/);
    assert.equal([held(id).memory, /^(-1|max 100000)$/.test(held(id).cpu)], [700 * 2 ** 20, true]);

    const nonsense = await run(id, '--cpus', '0');
    assert.equal([nonsense.code, /--cpus cpus must be between 0.01 and/.test(nonsense.stderr)], [2, true]);
    const other = await run('sb-0-0000', '--cpus', '1');
    assert.match(other.stderr, /^Error: sandbox 'sb-0-0000' not found$/m);
    // The daemon that is named is asked, whatever runs here.
    const elsewhere = await run(id, '--cpus', '1', '--daemon-url', `unix:${root}/none.sock`);
    assert.equal([elsewhere.code, /none\.sock/.test(elsewhere.stderr)], [1, true], elsewhere.stderr);

    // So that at the end there is a limit of which it can be told that it was met.
    assert.is((await run(id, '--cpus', '0.05')).code, 0);
    fork.kill('SIGINT');
    const { code, stderr } = await fork.ended;
    assert.is(code, 130, stderr);
    assert.match(stderr, /child 1 was held: .*processor/);
    assert.match((await run(id, '--cpus', '1')).stderr, /^Error: sandbox '.*' not found$/m);
    assert.equal([readdirSync(env.TMPDIR), qemusOf(root)], [[], []]);
  },
);

limit('where there are no control groups it is refused, as the daemon refuses it', async ({ world: { env } }) => {
  const without = ['--mount', 'sh', '-c', 'umount -R /sys/fs/cgroup && exec "$0" "$@"', process.execPath, CLI];
  const fork = start('unshare', [...without, ...KEEP_ONE], { env });
  const id = await idOf(fork);
  const refused = await forkd(['limit', id, '--cpus', '0.5'], { env });
  const { message, hint } = new ForkdError('LIMITS_IMPOSSIBLE', { id });
  assert.equal([refused.code, refused.stdout], [1, '']);
  assert.ok(refused.stderr.includes(`Error: ${message}\n`) && refused.stderr.includes(hint), refused.stderr);
  fork.kill('SIGINT');
  await fork.ended;
});

limit.run();
