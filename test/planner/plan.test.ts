import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { limits } from '../../src/contract/limits.js';
import { type ForkRequest, type HostState, planFork } from '../../src/main/planner/plan.js';
import { manifest } from '../support/manifest.js';

const plan = suite('plan');

const GIB = 2 ** 30;
let ids = 0;
const host = (change: Partial<HostState> = {}): HostState => ({
  resources: { memoryAvailable: 64 * GIB, descriptorsLeft: 100_000 },
  netns: new Set(['forkd-child-1', 'forkd-child-2']),
  width: 2,
  newId: () => `sb-0-${ids++}`,
  newMachineId: () => 'f'.repeat(32),
  ...change,
});

const refused = (code: string, request: Partial<ForkRequest>, change: Partial<HostState> = {}, snapshot = manifest()) => {
  assert.throws(
    () => planFork({ tag: 'base', n: 1, ...request }, snapshot, host(change)),
    (error: unknown) => error instanceof ForkdError && error.code === code,
  );
};

plan('every child is in one batch, and batches differ by at most one', () => {
  for (const n of [1, 2, 3, 7, 10, 101]) {
    const { children, batches } = planFork({ tag: 'base', n }, manifest(), host());
    assert.is(children.length, n);
    assert.equal(batches.flat().sort((a, b) => a - b), [...children.keys()]);
    const sizes = batches.map((b) => b.length);
    assert.ok(Math.max(...sizes) - Math.min(...sizes) <= 1);
    assert.is(new Set(children.map((c) => c.id)).size, n);
    assert.equal(children.map((c) => c.index), Array.from({ length: n }, (_, i) => i + 1));
  }
});

plan('counts outside the limits are refused', () => {
  for (const n of [0, -1, 1.5, Number.NaN, limits.childrenMax + 1]) refused('COUNT_INVALID', { n });
});

plan('an isolation that the snapshot does not have is refused', () => {
  refused('KVM_REQUIRED', { require: 'kvm' });
  refused('TCG_REQUIRED', { require: 'tcg' }, {}, manifest({ isolation: 'kvm' }));
  assert.is(planFork({ tag: 'base', n: 1, require: 'tcg' }, manifest(), host()).isolation, 'tcg');
});

plan('more children than memory or descriptors is refused before any is started', () => {
  refused('MEMORY_SHORT', { n: 100 }, { resources: { memoryAvailable: GIB, descriptorsLeft: 100_000 } });
  refused('MEMORY_SHORT', { n: 100 }, { resources: { memoryAvailable: 64 * GIB, descriptorsLeft: 256 } });
});

plan('a network card is one child’s, or each has a namespace', () => {
  const withTap = manifest({ tap: 'forkd-tap0' });
  refused('TAP_SHARED', { n: 2 }, {}, withTap);
  const { children } = planFork({ tag: 'base', n: 2, perChildNetns: true }, withTap, host());
  assert.equal(children.map((c) => c.netns), ['forkd-child-1', 'forkd-child-2']);
  refused('NETNS_MISSING', { n: 3, perChildNetns: true });
});

plan.run();
