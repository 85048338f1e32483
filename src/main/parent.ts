/** A parent VM: booted, and ended when its user is done with it, whichever way that goes. */
import { type BootSpec, VmmFd, type VmmDriver } from './vmm/driver.js';
import type { Hello } from '../contract/guest.js';
import { ForkdError } from '../contract/errors.js';
import { MiB } from '../contract/units.js';
import { native, shimPath } from '../native/binding.js';
import type { Jail, JailWishes } from './host/jail.js';
import { WorkDir } from './host/workdir.js';
import { MemoryImage } from './memory/image.js';

import type { Pool } from './pool.js';
import { end } from './sandbox/end.js';
import { Sandbox } from './sandbox/sandbox.js';
import { Undo } from './undo.js';

export interface Parent {
  sandbox: Sandbox;
  memfd: number;
  hello: Hello;
  bootMs: number;
}

export interface ParentOptions {
  pool: Pool;
  driver: VmmDriver;
  /** Tag, for names of directories and in errors. */
  name: string;
  kind: 'parent' | 'probe';
  waitMs: number;
  /** What its network card is connected to. */
  tap?: number | string;
  keepWorkDir?: boolean;
  /** It is sent to jail before the guest runs. */
  makeJail?: (wishes: JailWishes) => Jail;
  signal?: AbortSignal;
}

/** Boots a parent, waits until its agent answers, hands it to `use`, and ends it. Throws CANCELLED when `signal` fires. */
export const withParent = async <T>(
  spec: BootSpec,
  options: ParentOptions,
  use: (parent: Parent) => Promise<T>,
): Promise<T> => {
  const { pool, driver, name, kind, waitMs, tap, keepWorkDir = false, signal } = options;
  const undo = new Undo();
  let sandbox: Sandbox | undefined;
  const onAbort = () => sandbox?.kill();
  try {
    signal?.throwIfAborted();
    const workDir = WorkDir.create(kind, name);
    undo.push(() => workDir.close(keepWorkDir));
    const memfd = MemoryImage.blank(`forkd:${name}`, spec.memoryMib * MiB);
    undo.push(() => native.fdClose(memfd));
    undo.push(() => {
      sandbox?.returned();
      return sandbox ? end([sandbox]) : undefined;
    });
    const consolePath = workDir.file('parent.console');
    const anyCall = spec.isolation === 'kvm';
    const wishes = { ownNetwork: typeof tap !== 'string', builds: spec.builds !== undefined, anyCall };
    const jail = options.makeJail?.(wishes);
    const start = { name: 'the parent', consolePath, memfd, ...(tap === undefined ? {} : { tap }) };
    const vmm = {
      ...driver.boot(spec, start, jail && shimPath),
      ...(jail ? { confinement: jail.confinement } : {}),
    };
    const order = jail ? { jail: { ...jail.terms, controlTarget: VmmFd.control } } : {};
    signal?.addEventListener('abort', onAbort);
    const { hello, boot_ms } = await pool.run('boot', { vmm, waitMs, ...order }, (event) => {
      if (event.type !== 'spawned') return;
      const birth = { id: name, index: 0, tag: name, hostname: name, isolation: spec.isolation, consolePath };
      sandbox = new Sandbox(birth, event.vmm);
      if (signal?.aborted) sandbox.kill();
    });
    if (!sandbox) throw new ForkdError('INTERNAL', { reason: 'the parent was started but not announced' });
    const result = await use({ sandbox, memfd, hello, bootMs: boot_ms });
    signal?.throwIfAborted();
    return result;
  } catch (error) {
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
    await undo.run();
  }
};
