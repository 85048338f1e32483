/** The benches run with their smallest parameters, so that none rots. What it measures is not looked at: only that all is right. */
import { cpSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { BENCH_TAG } from '../../bench/parent.js';
import { benches } from '../../bench/trials/index.js';
import { start } from '../support/cli.js';
import { BASE_TAG, makeWorld, qemusOf, type World } from '../support/world.js';

const bench = suite<{ world: World }>('bench');

const KEYS: Record<string, string[]> = {
  'cold-restore': ['n', 'spawn_ms', 'load_ms', 'first_answer_ms', 'ready_ms', 'pss_kib_per_child', 'failed'],
  eval: ['eval_ms', 'exec_ms'],
  'fan-out': [
    'n',
    'mode',
    'ready_ms',
    'fork_ms',
    'child_ready_ms',
    'cpu_ms_per_child',
    'pss_kib_per_child',
    'idle_cpu_percent_per_child',
    'failed',
    'ratio',
    'cold',
    'spares',
  ],
  branch: ['idle', 'dirtying', 'failed'],
  density: ['n', 'pss_kib_per_child', 'failed'],
  fault: ['p50_us', 'p99_us', 'chunks_per_s_1', 'chunks_per_s_2', 'failed'],
  'branch-write': ['dirtied_bytes', 'written_bytes', 'ratio', 'failed'],
  layer: ['hash_us', 'plain_write_ms', 'raw', 'zstd', 'failed'],
  pack: ['pack_speedup', 'unpack_speedup', 'size_ratio', 'write_ms', 'failed'],
  pull: ['lazy_first_eval_ms', 'full_first_eval_ms', 'ratio', 'failed'],
  build: ['build_ms', 'tar_ms', 'ratio', 'failed'],
  'wp-bench': ['region_mib', 'shared', 'private', 'written', 'failed'],
  lazy: ['eager_ms', 'lazy_ms', 'prefetch_ms', 'read_share', 'failed'],
  chain: ['depth', 'ready_ms_depth0', 'ready_ms', 'ratio', 'disk_over_written', 'failed'],
  daemon: ['spawn1_ratio', 'spawn3_ratio', 'eval_overhead_ms', 'evals_per_s', 'errors', 'many', 'cycles'],
  'exec-stream': [
    'mb_per_s',
    'all_mb_per_s',
    'growth_mib',
    'daemon_mb_per_s',
    'daemon_growth_mib',
    'eval_beside_flood_ms',
    'failed',
  ],
  files: ['up_mb_per_s', 'down_mb_per_s', 'growth_mib', 'failed'],
  isolation: ['jail_ratio', 'net_ratio', 'missing', 'failed'],
  namespaces: ['make_ms', 'remove_ms', 'leaked', 'failed'],
  neighbours: ['eval_ms', 'worst_p99_ms', 'answers', 'failed'],
  lifecycle: ['forks', 'forks_per_s', 'death_noticed_ms', 'leaked', 'failed'],
};

/** These take up to half a minute each, for what other suites do too. By hand, or with all: FORKD_TEST_ALL_BENCHES=1. */
const LONG = ['daemon', 'build', 'pull', 'pack', 'chain', 'files', 'exec-stream', 'isolation', 'neighbours', 'lazy'];
const all = process.env['FORKD_TEST_ALL_BENCHES'] !== undefined;

bench.before((context) => {
  context.world = makeWorld(true);
  cpSync(join(context.world.snapshots, BASE_TAG), join(context.world.snapshots, BENCH_TAG), { recursive: true });
});
bench.after(({ world }) => {
  assert.equal(qemusOf(world.root), []);
  world.close();
});

for (const { name } of benches.filter((one) => all || !LONG.includes(one.name))) {
  bench(`${name}: one line of JSON with its keys, and nothing failed`, async ({ world }) => {
    const runner = join(import.meta.dirname, '../../bench/run.js');
    const drawing = join(world.root, 'ready.svg');
    const plot = name === 'fan-out' ? ['--plot', drawing] : [];
    const ended = await start(process.execPath, [runner, name, '--smoke', '--json', ...plot], { env: world.env }).ended;
    assert.is(ended.code, 0, ended.stderr);
    const result = JSON.parse(ended.stdout) as Record<string, unknown>;
    for (const key of KEYS[name] ?? ['failed']) assert.ok(key in result, `${key} in ${ended.stdout}`);
    assert.is(result['failed'], 0);
    if (name === 'fan-out') assert.is(drawn(readFileSync(drawing, 'utf8')), Number(result['n']));
  });
}

bench('a plot is refused where there is none, before anything is measured', async ({ world }) => {
  const runner = join(import.meta.dirname, '../../bench/run.js');
  const ended = await start(process.execPath, [runner, 'eval', '--smoke', '--plot', 'x.svg'], { env: world.env }).ended;
  assert.is(ended.code, 2);
  assert.match(ended.stderr, /--plot is for fan-out/);
});

/** How many children the bars of a drawing count. */
const drawn = (svg: string): number => {
  assert.ok(svg.startsWith('<svg ') && svg.endsWith('</svg>\n'), svg);
  const bars = [...svg.matchAll(/class="bar".*?<title>(\d+)<\/title>/g)];
  return bars.reduce((sum, bar) => sum + Number(bar[1]), 0);
};

bench.run();
