/** Local `snapshot`: boot a parent, warm it, save it under a tag. */
import { randomBytes } from 'node:crypto';
import { statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { ForkdError } from '../contract/errors.js';
import { limits } from '../contract/limits.js';
import { parseTag } from '../contract/names.js';
import {
  type FileDigest,
  type Isolation,
  MEMORY_FILE,
  SNAPSHOT_FORMAT,
  type SnapshotManifest,
  STATE_FILE,
  type Volume,
  SERIAL_PORTS,
} from '../contract/snapshot.js';
import { formatBytes, MiB } from '../contract/units.js';
import { fileDigest } from './file-digest.js';
import { GATEWAY_ADDRESS } from '../net/ruleset.js';
import { deadEnd, type HostTap, hostTap } from './network/host-tap.js';
import { type Parent, withParent } from './parent.js';
import type { Jail, JailWishes } from './host/jail.js';
import type { Pool } from './pool.js';
import type { Store } from './store/store.js';
import { Undo } from './undo.js';
import type { BootSpec, VmmDriver } from './vmm/driver.js';
import { kernelArgs } from './vmm/kernel-args.js';
import { consoleTail } from '../workers/vmm/obituary.js';

export interface SnapshotRequest {
  tag: string;
  kernel: string;
  initrd: string;
  rootfs: string;
  isolation: Isolation;
  tscKhz: number;
  memoryMib?: number;
  vcpus?: number;
  /** A network card, behind nothing while the parent is made. */
  net?: boolean;
  /** A network card, on this interface of the host. */
  tap?: string;
  volumes?: Volume[];
  /** Upper bound for the boot, seconds. */
  bootWaitSecs?: number;
  /** A program that is run before it is saved, to its end. */
  warmExec?: string[];
  /** Python that the warm interpreter runs before it is saved, after `warmExec`. */
  warmEval?: string;
  /** The agent that the guest runs; when absent, init decides. */
  agent?: 'python' | 'c';
  force?: boolean;
  keepWorkDir?: boolean;
}

export interface SnapshotContext {
  store: Store;
  pool: Pool;
  driver: VmmDriver;
  signal?: AbortSignal;
  onStep?: (step: string) => void;
  /** As ParentOptions.makeJail. */
  makeJail?: (wishes: JailWishes) => Jail;
}

export interface SnapshotResult {
  manifest: SnapshotManifest;
  dir: string;
  boot_ms: number;
  state_ms: number;
  memory_ms: number;
  written_bytes: number;
}

export const DEFAULT_MEMORY_MIB = 512;
/** One: two are no faster for Python, and every fork rebuilds each vCPU's thread. */
export const DEFAULT_VCPUS = 1;
/** Emulated boots take about ten seconds here; a slow or busy host may need several times as long. */
export const DEFAULT_BOOT_WAIT_SECS = 120;

/** Times the parent walks through what a child does first: the second time runs warm code, the third shows that it does. */
const REHEARSALS = 3;

/**
 * All that QEMU can emulate, but for what costs and serves nobody here: five-level page tables make every walk of the
 * emulated MMU a fifth longer, and protection keys add a check to it. "Enhanced rep movsb" is a promise that bytes are moved as
 * fast as words: emulated they are moved one by one, and a kernel that believes it copies and clears memory an eighth as fast.
 */
export const EMULATED_CPU = 'max,la57=off,pku=off,erms=off,fsrm=off';

/** How large device state may be; what is asked of the file system beside the RAM. */
const STATE_ROOM_BYTES = 16 * MiB;

export const makeSnapshot = async (request: SnapshotRequest, context: SnapshotContext): Promise<SnapshotResult> => {
  const { store, pool, driver, makeJail, signal, onStep = () => undefined } = context;
  const tag = parseTag(request.tag);
  const spec = bootSpec(request);
  const undo = new Undo();
  try {
    const lock = store.lock(tag);
    undo.push(() => lock.release());
    if (store.exists(tag) && !request.force) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
    store.requireNoDependents(tag);
    store.requireSpace(spec.memoryMib * MiB + STATE_ROOM_BYTES);
    const staging = store.stage(tag);
    undo.push(() => staging.discard());

    // The tmpfs of a guest has half of its memory.
    const writable = (spec.memoryMib * MiB) / 2;
    const bootWaitSecs = request.bootWaitSecs ?? DEFAULT_BOOT_WAIT_SECS;
    for (const { guest_path, host_path } of spec.volumes.filter((one) => !one.read_only)) {
      if (statSync(host_path).size <= writable) continue;
      onStep(
        `${guest_path} is larger than what a child may write, to this volume and all else: ${formatBytes(writable)} (--mem-size-mib)`,
      );
    }
    onStep(`booting the parent (${spec.isolation}, ${spec.memoryMib} MiB, at most ${bootWaitSecs} s)`);
    const digests = digestsOf([spec.kernel, spec.initrd, spec.rootfs, ...spec.volumes.map((v) => v.host_path)]);
    digests.catch(() => undefined);
    const save = async (parent: Parent) => {
      requireMounted(spec.volumes, parent.sandbox.birth.consolePath);
      onStep(`agent answered after ${(parent.bootMs / 1000).toFixed(1)} s; warming and saving`);
      const saved = await pool.run('save', saveInput(parent, request, staging));
      return { saved, hello: parent.hello, boot_ms: parent.bootMs };
    };
    const connection = connect(request);
    undo.push(() => connection?.close());
    const options = { pool, driver, name: tag, kind: 'parent' as const, waitMs: bootWaitSecs * 1000 };
    const { saved, hello, boot_ms } = await withParent(
      spec,
      {
        ...options,
        ...(makeJail ? { makeJail } : {}),
        ...(connection ? { tap: connection.tap } : {}),
        keepWorkDir: request.keepWorkDir ?? false,
        ...(signal ? { signal } : {}),
      },
      save,
    );
    const [kernel, initrd, rootfs, ...volumeDigests] = await digests;
    const manifest: SnapshotManifest = {
      vmstate: join(store.dir(tag), STATE_FILE),
      memory: join(store.dir(tag), MEMORY_FILE),
      volumes: spec.volumes,
      rootfs: spec.rootfs,
      format: SNAPSHOT_FORMAT,
      tag,
      created_at_unix: Math.floor(Date.now() / 1000),
      isolation: spec.isolation,
      vmm: {
        name: 'qemu',
        version: driver.version,
        machine: driver.machine,
        cpu_model: spec.cpuModel,
        serial_ports: spec.serialPorts,
      },
      tsc_khz: request.tscKhz,
      memory_mib: spec.memoryMib,
      vcpus: spec.vcpus,
      kernel: kernel as FileDigest,
      initrd: initrd as FileDigest,
      rootfs_digest: rootfs as FileDigest,
      volume_digests: volumeDigests,
      agent_generation: hello.generation,
      ...(request.net ? { network_card: true as const } : {}),
      ...(request.tap ? { tap: request.tap } : {}),
      memory_root: saved.memory_root,
      memory_bytes: spec.memoryMib * MiB,
      vmstate_bytes: saved.state_bytes,
    };
    signal?.throwIfAborted();
    staging.publish(manifest, request.force ?? false);
    const { state_ms, memory_ms, written_bytes } = saved;
    return { manifest, dir: store.dir(tag), boot_ms, state_ms, memory_ms, written_bytes };
  } catch (error) {
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await undo.run();
  }
};

/** Checks what the user gave. Throws FILE_MISSING, VOLUME_INVALID, ARGUMENT_INVALID. */
const bootSpec = (request: SnapshotRequest): BootSpec => {
  const { memoryMib = DEFAULT_MEMORY_MIB, vcpus = DEFAULT_VCPUS, volumes = [], net, tap, isolation } = request;
  requireRange('--mem-size-mib', memoryMib, limits.memoryMinMib, limits.memoryMaxMib);
  requireRange('--vcpus', vcpus, 1, limits.vcpusMax);
  requireRange('--boot-wait-secs', request.bootWaitSecs ?? 1, 1, limits.bootWaitMaxSecs);
  if (volumes.length > limits.volumesMax) {
    throw new ForkdError('VOLUME_INVALID', {
      volume: String(volumes.length),
      reason: `at most ${limits.volumesMax} volumes`,
    });
  }
  for (const volume of volumes) requireVolume(volume);
  return {
    kernel: requireFile('kernel', request.kernel),
    initrd: requireFile('initramfs', request.initrd),
    rootfs: requireFile('root file system', request.rootfs),
    kernelArgs: [
      ...kernelArgs(isolation, request.tscKhz),
      ...(request.agent === 'c' ? ['forkd.agent=c'] : []),
      // Its own network's gateway answers questions for names; a host interface has whatever its owner has set up.
      ...(net ? [`forkd.dns=${GATEWAY_ADDRESS}`] : []),
    ],
    isolation,
    memoryMib,
    vcpus,
    cpuModel: isolation === 'kvm' ? 'host' : EMULATED_CPU,
    serialPorts: SERIAL_PORTS,
    volumes: volumes.map((v) => ({ ...v, host_path: resolve(v.host_path) })),
    card: net === true || tap !== undefined,
  };
};

/** What the parent's card is connected to. Throws NETWORK_DENIED, NETWORK_FAILED. */
const connect = ({ net, tap }: SnapshotRequest): HostTap | undefined =>
  tap !== undefined ? hostTap(tap) : net ? deadEnd() : undefined;

const requireFile = (what: string, path: string): string => {
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) throw new ForkdError('FILE_MISSING', { what, path });
  return resolve(path);
};

const requireRange = (argument: string, value: number, min: number, max: number): void => {
  if (Number.isSafeInteger(value) && value >= min && value <= max) return;
  throw new ForkdError('ARGUMENT_INVALID', {
    argument,
    reason: `must be a whole number from ${min} to ${max}`,
    command: 'snapshot',
  });
};

/** One after the other: the guest is booting beside it. */
const digestsOf = async (paths: string[]): Promise<FileDigest[]> => {
  const digests: FileDigest[] = [];
  for (const path of paths) {
    // Before it is read: what changes it meanwhile is noticed later.
    const { mtimeMs: mtime_ms } = statSync(path);
    digests.push({ path, ...(await fileDigest(path)), mtime_ms });
  }
  return digests;
};

const saveInput = (
  { sandbox, memfd }: Parent,
  request: SnapshotRequest,
  staging: { file: (name: string) => string },
) => ({
  name: 'the parent',
  pid: sandbox.vmm.pid,
  qmpFd: sandbox.vmm.qmpFd,
  agentFd: sandbox.vmm.agentFd,
  consolePath: sandbox.birth.consolePath,
  memfd,
  statePath: staging.file(STATE_FILE),
  memoryPath: staging.file(MEMORY_FILE),
  rehearsal: {
    action: 'fork' as const,
    entropy: randomBytes(64).toString('base64'),
    hostname: 'forkd-parent',
    machine_id: randomBytes(16).toString('hex'),
    index: 0,
  },
  rehearsals: REHEARSALS,
  ...(request.warmExec === undefined ? {} : { warmExec: request.warmExec }),
  ...(request.warmEval === undefined ? {} : { warmEval: request.warmEval }),
});

/** The guest runs on without a volume that it could not mount, but has said so. Throws VOLUME_INVALID. */
const requireMounted = (volumes: Volume[], consolePath: string): void => {
  const said = volumes.length > 0 ? consoleTail(consolePath, limits.jailFileBytes).split(/\r?\n/) : [];
  for (const { host_path, guest_path } of volumes) {
    if (!said.some((line) => line.includes('cannot mount volume') && line.endsWith(` at ${guest_path}`))) continue;
    const reason = 'the guest cannot mount it: it holds no file system that the guest knows (ext4, squashfs, erofs)';
    throw new ForkdError('VOLUME_INVALID', { volume: `${host_path}:${guest_path}`, reason });
  }
};

/** `HOST:GUEST[:ro|:rw]`. Throws VOLUME_INVALID. */
export const parseVolume = (text: string): Volume => {
  const [host = '', guest = '', mode = 'rw', ...rest] = text.split(':');
  if (rest.length > 0) throw new ForkdError('VOLUME_INVALID', { volume: text, reason: 'too many parts' });
  if (mode !== 'ro' && mode !== 'rw')
    throw new ForkdError('VOLUME_INVALID', { volume: text, reason: `'${mode}' is neither ro nor rw` });
  return requireVolume({ host_path: host, guest_path: guest, read_only: mode === 'ro' });
};

/** What init can mount by the kernel's command line, of a file that is there. Throws VOLUME_INVALID. */
const requireVolume = (volume: Volume): Volume => {
  const { host_path: host, guest_path: guest } = volume;
  const refuse = (reason: string) => new ForkdError('VOLUME_INVALID', { volume: `${host}:${guest}`, reason });
  if (!host || !guest) throw refuse('the host or guest part is empty');
  if (!guest.startsWith('/') || guest === '/' || /[\s,:"]/.test(guest))
    throw refuse('the guest part must be an absolute path without spaces, commas, colons or quotes');
  // A NUL ends a path for the kernel, and Node throws for one.
  if (host.includes('\0') || !statSync(host, { throwIfNoEntry: false })?.isFile())
    throw refuse(`the file ${host} does not exist`);
  return volume;
};
