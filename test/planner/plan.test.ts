import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { limits } from '../../src/contract/limits.js';
import { Namespaces } from '../../src/main/planner/namespaces.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { deal, type ForkRequest, type HostState, type Plan, planFork } from '../../src/main/planner/plan.js';
import { manifest } from '../support/manifest.js';

const plan = suite('plan');

const GIB = 2 ** 30;
let ids = 0;
const host = (change: Partial<HostState> = {}): HostState => ({
  resources: { memoryAvailable: 64 * GIB, descriptorsLeft: 100_000 },
  netns: new Set(['forkd-child-1', 'forkd-child-2']),
  makesNetworks: false,
  netnsTaken: new Set(),
  hotForkProblem: undefined,
  hotFrom: 2,
  newId: () => `sb-0-${ids++}`,
  newMachineId: () => 'f'.repeat(32),
  ...change,
});

const refused = (
  code: string,
  request: Partial<ForkRequest>,
  change: Partial<HostState> = {},
  snapshot = manifest(),
) => {
  assert.throws(
    () => planFork({ tag: 'base', n: 1, ...request }, snapshot, host(change)),
    (error: unknown) => error instanceof ForkdError && error.code === code,
  );
};

plan('every child has an id of its own, and counts from 1', () => {
  for (const n of [1, 2, 101]) {
    const { children } = planFork({ tag: 'base', n }, manifest(), host());
    assert.is(new Set(children.map((c) => c.id)).size, n);
    assert.equal(
      children.map((c) => c.index),
      Array.from({ length: n }, (_, i) => i + 1),
    );
  }
});

plan('every child is dealt to one batch, and batches differ by at most one', () => {
  for (const n of [1, 2, 3, 7, 10, 101]) {
    const batches = deal(n, 2);
    assert.equal(
      batches.flat().sort((a, b) => a - b),
      Array.from({ length: n }, (_, i) => i),
    );
    const sizes = batches.map((b) => b.length);
    assert.ok(Math.max(...sizes) - Math.min(...sizes) <= 1 && Math.min(...sizes) > 0);
  }
});

plan('a hot fork wherever it can be had, else the reason', () => {
  const chosen = (request: Partial<ForkRequest>, change: Partial<HostState> = {}, snapshot = manifest()) => {
    const { mechanism, fallback } = planFork({ tag: 'base', n: 2, ...request }, snapshot, host(change));
    return fallback ?? mechanism;
  };
  assert.is(chosen({}), 'hot-fork');
  assert.is(chosen({ cold: true }), 'cold-restore');
  assert.match(chosen({ n: 1 }), /fewer than 2/);
  assert.is(chosen({ n: 1 }, { hotFrom: 1 }), 'hot-fork');
  assert.is(chosen({ n: 1, branchable: true }), 'hot-fork');
  assert.match(chosen({}, {}, manifest({ isolation: 'kvm' })), /KVM/);
  assert.match(chosen({ perChildNetns: true }), /namespace/);
  assert.match(chosen({ n: 1 }, {}, manifest({ tap: 'tap0' })), /network card/);
  assert.match(chosen({}, { hotForkProblem: 'the shim is not built' }), /shim/);
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
  refused(
    'MEMORY_SHORT',
    { n: 100, cold: true },
    { resources: { memoryAvailable: 4 * GIB, descriptorsLeft: 100_000 } },
  );
  refused('MEMORY_SHORT', { n: 100 }, { resources: { memoryAvailable: GIB / 4, descriptorsLeft: 100_000 } });
  refused('DESCRIPTORS_SHORT', { n: 100 }, { resources: { memoryAvailable: 64 * GIB, descriptorsLeft: 256 } });
});

plan('a network card is one child’s, or each has a namespace', () => {
  const withTap = manifest({ tap: 'forkd-tap0' });
  refused('TAP_SHARED', { n: 2 }, {}, withTap);
  const { children } = planFork({ tag: 'base', n: 2, perChildNetns: true }, withTap, host());
  assert.equal(
    children.map((c) => c.netns),
    ['forkd-child-1', 'forkd-child-2'],
  );
  refused('NETNS_MISSING', { n: 3, perChildNetns: true });
});

plan('networks are made where no namespaces are, and a card is what they need', () => {
  const makes = { makesNetworks: true };
  const wish = { allow: ['10.0.0.0/8'], allowDomains: [] };
  refused('NETWORK_CARD_MISSING', { network: wish }, makes);
  const withCard = manifest({ network_card: true });
  const asked = planFork({ tag: 'base', n: 3, network: wish }, withCard, host(makes));
  // Eight descriptors each, and nine where names are answered.
  const few = host({ ...makes, resources: { memoryAvailable: 64 * GIB, descriptorsLeft: 64 + 30 * 8 } });
  assert.is(planFork({ tag: 'base', n: 30, network: wish }, withCard, few).children.length, 30);
  const byName = { ...wish, allowDomains: ['pypi.org'] };
  assert.throws(
    () => planFork({ tag: 'base', n: 30, network: byName }, withCard, few),
    /270 descriptors, 304 are left/,
  );
  assert.equal([asked.network, asked.mechanism], [wish, 'hot-fork']);
  // Two are there, three are wanted: those of somebody else are left alone.
  const named = planFork({ tag: 'base', n: 3, perChildNetns: true }, withCard, host(makes));
  assert.equal(named.network, { allow: [], allowDomains: [] });
  assert.equal(
    named.children.map((child) => child.netns),
    ['forkd-child-3', 'forkd-child-4', 'forkd-child-5'],
  );
  const entered = planFork({ tag: 'base', n: 2, perChildNetns: true }, withCard, host(makes));
  assert.equal([entered.network, entered.mechanism], [undefined, 'cold-restore']);
});

plan('namespaces that are taken are passed over, for as long as they are', async () => {
  const namespaces = new Namespaces();
  const netns = new Set(Array.from({ length: 4 }, (_, i) => `forkd-child-${i + 1}`));
  const living = { birth: { netns: 'forkd-child-2' }, state: 'ready' } as Sandbox;
  const make = (n: number) => {
    const netnsTaken = namespaces.takenBy([living]);
    return planFork({ tag: 'base', n, perChildNetns: true }, manifest(), host({ netns, netnsTaken }));
  };
  const names = ({ children }: Plan) => children.map((child) => child.netns);
  const first = make(2);
  assert.equal(names(first), ['forkd-child-1', 'forkd-child-3']);
  await namespaces.during(first, async () => {
    assert.equal(names(make(1)), ['forkd-child-4']);
    assert.throws(() => make(2), /forkd-child-5/);
  });
  assert.equal(names(make(1)), ['forkd-child-1']);
});

plan('a namespace that is kept for somebody is his alone', () => {
  const namespaces = new Namespaces();
  namespaces.keep('forkd-child-2');
  const make = (own?: string) => {
    const netnsTaken = namespaces.takenBy([], own);
    const request = { tag: 'base', n: 1, perChildNetns: true, ...(own === undefined ? {} : { netns: own }) };
    const made = host({ netns: new Set(), makesNetworks: true, netnsTaken });
    return planFork(request, manifest({ network_card: true }), made).children[0]?.netns;
  };
  const living = { birth: { netns: 'forkd-child-2' }, state: 'ready' } as Sandbox;
  assert.equal([make(), make('forkd-child-2')], ['forkd-child-1', 'forkd-child-2']);
  assert.ok(namespaces.takenBy([living], 'forkd-child-2').has('forkd-child-2'), 'somebody else has it all the same');
  namespaces.letGo('forkd-child-2');
  assert.equal([...namespaces.takenBy([])], []);
});

plan.run();
