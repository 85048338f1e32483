/** Prometheus metrics: the reference's names, then what it lacks. The only file that knows prom-client. */
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry as Prometheus } from 'prom-client';
import type { Engine } from '../engine.js';
import { takeFaultTimes } from '../memory/lazy.js';
import type { Events } from './events.js';
import { memoryOf } from './memory.js';
import type { Registry } from './registry.js';
import type { Slots } from './slots.js';
import type { Snapshots } from './snapshots.js';

/** Seconds. A hot fork takes milliseconds, a cold restore under emulation seconds. */
const FORK_BUCKETS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30];
const CALL_BUCKETS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300];
/** A chunk that is in the page cache takes about 0.1 ms, one from a disk milliseconds. */
const FAULT_BUCKETS = [0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1];
const ENDS = ['deleted', 'died', 'expired'] as const;
const PAUSE_BUCKETS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5];

export interface Sources {
  engine: Engine;
  registry: Registry;
  snapshots: Snapshots;
  slots: Slots;
  events: Events;
  version: string;
}

export class Metrics {
  readonly #prometheus = new Prometheus();
  readonly forkReady: Histogram;
  readonly spawn: Histogram;
  readonly call: Histogram<'action'>;
  readonly branchPause: Histogram;
  readonly request: Histogram<'method' | 'route' | 'status'>;

  constructor({ engine, registry, snapshots, slots, events, version }: Sources) {
    const registers = [this.#prometheus];
    const gauge = (name: string, help: string, value: () => number) =>
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(value());
        },
      });
    const histogram = <T extends string>(name: string, help: string, buckets: number[], labelNames: T[] = []) =>
      new Histogram<T>({ name, help, buckets, labelNames, registers });

    gauge('forkd_snapshots_total', 'Snapshots in the store.', () => snapshots.count);
    gauge('forkd_sandboxes_active', 'Sandboxes that run.', () => registry.running);
    gauge('forkd_branches_in_flight', 'Snapshots that are being written.', () => slots.taken);
    gauge('forkd_branch_concurrency_cap', 'How many may be written at once.', () => slots.max);
    new Gauge({ name: 'forkd_build_info', help: 'Version.', labelNames: ['version'], registers }).set({ version }, 1);

    gauge('forkd_sandboxes_dead', 'Sandboxes that ended and were not deleted.', () => {
      return registry.list().length - registry.running;
    });
    gauge('forkd_templates', 'Frozen virtual machines that children are forked from.', () => engine.state().templates);
    gauge('forkd_spares', 'Children that were forked ahead and wait.', () => engine.state().spares);
    gauge('forkd_pool_threads', 'Worker threads.', () => engine.state().threads);
    gauge('forkd_pool_waiting', 'Tasks that wait for a worker.', () => engine.state().waiting);
    new Gauge({
      name: 'forkd_sandbox_memory_bytes',
      help: 'Memory of a sandbox: private to it, and shared with its template and siblings.',
      labelNames: ['id', 'kind'],
      registers,
      async collect() {
        this.reset();
        for (const { id, private: own, shared } of await memoryOf(registry.list())) {
          this.set({ id, kind: 'private' }, own);
          this.set({ id, kind: 'shared' }, shared);
        }
      },
    });

    this.forkReady = histogram(
      'forkd_fork_ready_seconds',
      'From the fork of a child to its first answer.',
      FORK_BUCKETS,
    );
    this.spawn = histogram('forkd_spawn_seconds', 'From the request to the last child being ready.', FORK_BUCKETS);
    this.call = histogram('forkd_call_seconds', 'Calls into sandboxes.', CALL_BUCKETS, ['action']);
    this.branchPause = histogram('forkd_branch_pause_seconds', 'How long a branch stopped its source.', PAUSE_BUCKETS);
    this.request = histogram('forkd_http_request_seconds', 'Requests.', CALL_BUCKETS, ['method', 'route', 'status']);
    new Histogram({
      name: 'forkd_fault_seconds',
      help: 'How long a guest waited for memory that was not loaded yet.',
      buckets: FAULT_BUCKETS,
      registers,
      collect() {
        for (const ns of takeFaultTimes()) this.observe(ns / 1e9);
      },
    });
    const ended = new Counter<'how'>({
      name: 'forkd_sandboxes_ended_total',
      help: 'Sandboxes that were deleted, also by a suspension, that died, and whose time (ttl_secs, idle_secs) was over.',
      labelNames: ['how'],
      registers,
    });
    for (const how of ENDS) ended.inc({ how }, 0);
    events.listen(({ kind, action, object, sandbox }) => {
      if (kind !== 'sandbox') return;
      if (action === 'died') ended.inc({ how: registry.find(object)?.endedFor === undefined ? 'died' : 'expired' });
      // A dead one that is deleted has been counted.
      if (action === 'deleted' && sandbox?.status === 'running') ended.inc({ how: 'deleted' });
    });
    collectDefaultMetrics({ register: this.#prometheus });
  }

  /** The text format, version 0.0.4. */
  text(): Promise<string> {
    return this.#prometheus.metrics();
  }
}
