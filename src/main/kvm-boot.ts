/** The real boot by which it is found out whether KVM works on this host. */
import { SERIAL_PORTS } from '../contract/snapshot.js';
import { tscKhz } from './host/tsc.js';
import type { GuestImage } from './image/index.js';
import { withParent } from './parent.js';
import { hostFile } from './paths.js';
import type { Pool } from './pool.js';
import type { VmmDriver } from './vmm/driver.js';
import { kernelArgs } from './vmm/kernel-args.js';
import { PROBE_SECS } from './vmm/probe.js';

/** Throws what `withParent` throws, when no guest answers through it. */
export const bootThroughKvm = async (
  image: GuestImage,
  pool: Pool,
  driver: VmmDriver,
  signal?: AbortSignal,
): Promise<void> => {
  const spec = {
    ...image,
    isolation: 'kvm' as const,
    memoryMib: 256,
    vcpus: 1,
    cpuModel: 'host',
    serialPorts: SERIAL_PORTS,
    volumes: [],
    card: false,
    kernelArgs: kernelArgs('kvm', await tscKhz(hostFile())),
  };
  const options = { pool, driver, name: 'kvm', kind: 'probe' as const, waitMs: PROBE_SECS * 1000 };
  await withParent(spec, { ...options, ...(signal ? { signal } : {}) }, () => Promise.resolve());
};
