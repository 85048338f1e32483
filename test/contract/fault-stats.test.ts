import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { FAULT_COUNTERS, FaultTimes, makeFaultStats } from '../../src/contract/fault-stats.js';

test('latencies are told once, those not written yet later, and of too many the newest', () => {
  const stats = makeFaultStats(4);
  const times = new FaultTimes(stats);
  const [answered, ring] = [FAULT_COUNTERS.indexOf('answered'), FAULT_COUNTERS.length];
  const count = () => Number(Atomics.add(stats, answered, 1n));
  const write = (number: number, ns: number) => Atomics.store(stats, ring + (number % 4), BigInt(ns));
  assert.equal(times.takeNs(), []);
  write(count(), 10);
  const slow = count();
  write(count(), 30);
  assert.equal(times.takeNs(), [10]);
  write(slow, 20);
  assert.equal(times.takeNs(), [20, 30]);
  for (let ns = 1; ns <= 6; ns++) write(count(), ns);
  assert.equal(times.takeNs(), [3, 4, 5, 6]);
  assert.equal(times.takeNs(), []);
});

test.run();
