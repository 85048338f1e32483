/** What is written down of a sandbox, and how the daemon that comes after one that was killed makes it its own again. */
import { dirname } from 'node:path';
import { reasonOf } from '../../contract/errors.js';
import type { ForkReceipt } from '../../contract/guest.js';
import type { TemplatePort } from '../../contract/hotfork.js';
import {
  type LimitsBody,
  type LimitsChange,
  limitsBody,
  limitsOfBody,
  type ResourceLimits,
} from '../../contract/resources.js';
import type { Isolation, SnapshotManifest } from '../../contract/snapshot.js';
import type { StartedVmm } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { Cgroup } from '../host/cgroup/cgroup.js';
import { identify, isRunning, type ProcessIdentity } from '../host/process.js';
import { WorkDir } from '../host/workdir.js';
import type { Pool } from '../pool.js';
import { takeMark } from '../agent/send-mark.js';
import { lastLines } from '../../workers/vmm/obituary.js';
import type { ChildNetwork } from '../network/network.js';
import type { KeptFds } from './keeper.js';
import { type Birth, Sandbox } from './sandbox.js';

export interface SandboxRecord {
  process: ProcessIdentity | null;
  created_at_unix: number;
  index: number;
  snapshot_tag: string;
  hostname: string;
  isolation: Isolation;
  console_path: string;
  netns: string | null;
  /** Its own, and what it may reach. Absent when an older daemon wrote it. */
  network?: { number: number; allow: string[]; allow_domains: string[] } | null;
  memory_limit_mib: number | null;
  /** Its group and what it is limited to there; records of older daemons have none. */
  cgroup?: string | null;
  limits?: LimitsBody;
  /** Which snapshot of that tag it comes from. */
  snapshot: { created_at_unix: number; memory_root: string } | null;
  /** Descriptor numbers inside it, when it was hot-forked. */
  numbers: Omit<TemplatePort, 'controlFd'> | null;
  receipt: ForkReceipt | null;
  /** In a pid namespace of its own; absent when an older daemon wrote it. */
  inside?: StartedVmm['inside'] | null;
}

export const recordOf = ({ birth, vmm, createdAt, receipt }: Sandbox): SandboxRecord => {
  const { index, tag, hostname, isolation, consolePath, netns, network, cgroup, snapshot, numbers } = birth;
  return {
    process: identify(vmm.pid) ?? null,
    created_at_unix: createdAt,
    index,
    snapshot_tag: tag,
    hostname,
    isolation,
    console_path: consolePath,
    netns: netns ?? null,
    network: network?.record ?? null,
    memory_limit_mib: cgroup?.limits.memoryMib ?? null,
    cgroup: cgroup?.name ?? null,
    limits: limitsBody(cgroup?.limits),
    snapshot: snapshot ? { created_at_unix: snapshot.created_at_unix, memory_root: snapshot.memory_root } : null,
    numbers: numbers && vmm.controlFd !== undefined ? numbersOf(numbers) : null,
    receipt: receipt ?? null,
    inside: vmm.inside ?? null,
  };
};

const numbersOf = ({ control, qmp, agent, consoles, taps, others, line }: Omit<TemplatePort, 'controlFd'>) => ({
  control,
  qmp,
  agent,
  consoles,
  taps,
  others,
  ...(line === undefined ? {} : { line }),
});

/** What a keeper is to hold of it; undefined when it has ended, or is of those that end with the daemon. */
export const keptFdsOf = ({ state, vmm, birth }: Sandbox): KeptFds | undefined => {
  const life = vmm.controlFd ?? vmm.tetherFd;
  const lock = WorkDir.lockOf(dirname(birth.consolePath));
  if (state === 'dead' || life === undefined || lock === undefined) return undefined;
  return { life, qmp: vmm.qmpFd, agent: vmm.agentFd, lock };
};

const present = (limits: LimitsChange): ResourceLimits =>
  Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== null));

const birthOf = (id: string, record: SandboxRecord, snapshot: SnapshotManifest | undefined): Birth => {
  const { index, snapshot_tag: tag, hostname, isolation, console_path, netns, numbers } = record;
  // An older daemon named the group of a VM with a memory limit after it.
  const { memory_limit_mib: memory, cgroup = memory === null ? null : id } = record;
  const limits = present(limitsOfBody(record.limits ?? { memory_limit_mib: memory }));
  return {
    id,
    index,
    tag,
    hostname,
    isolation,
    consolePath: console_path,
    ...(netns === null ? {} : { netns }),
    ...(cgroup == null ? {} : { cgroup: Cgroup.open(cgroup, limits, snapshot?.rootfs) }),
    ...(snapshot ? { snapshot } : {}),
    // A daemon before this one may have known of no taps.
    ...(numbers ? { numbers: { ...numbers, taps: numbers.taps ?? [] } } : {}),
  };
};

/** For the list: it has ended. */
export const goneSandbox = (id: string, record: SandboxRecord): Sandbox => {
  const sandbox = Sandbox.gone(birthOf(id, record, undefined), record.process?.pid ?? 0);
  sandbox.createdAt = record.created_at_unix;
  return sandbox;
};

export interface Claim {
  id: string;
  record: SandboxRecord;
  /** From the keeper; whoever takes over owns them. */
  fds: KeptFds | undefined;
}

/** Made its own, and `lock` of its work directory with it; or why not: then it has been ended, if it was still there. */
export type Taken = { claim: Claim } & ({ sandbox: Sandbox; lock: number } | { reason: string });

export interface TakeOverContext {
  pool: Pool;
  /** The snapshot that it comes from, if it is still there. */
  manifestOf: (record: SandboxRecord) => SnapshotManifest | undefined;
  /** Takes back the network of a machine that lives. */
  networkOf: (record: SandboxRecord, pidfd: number) => ChildNetwork | undefined;
  onEnd: (sandbox: Sandbox) => void;
}

/** Each is checked by pid, start time and boot; its shim and its agent must answer. Descriptors of those that are not taken are closed. */
export const takeOver = async (claims: Claim[], context: TakeOverContext): Promise<Taken[]> => {
  const found = claims.map((claim) => identified(claim, context));
  const lost = await silentShims(found, context.pool);
  const taken: Taken[] = [];
  const check = async (one: Taken): Promise<Taken> => {
    if ('reason' in one) return one;
    const { claim, sandbox, lock } = one;
    const reason = lost.get(claim.id) ?? (await silence(sandbox));
    sandbox.returned();
    if (reason === undefined) return one;
    sandbox.kill();
    native.fdClose(lock);
    return { claim, reason };
  };
  const queue = [...found];
  const lane = async () => {
    for (let one = queue.shift(); one; one = queue.shift()) taken.push(await check(one));
  };
  await Promise.all(Array.from({ length: WINDOW }, lane));
  return taken;
};

/** Agents that are asked at a time: each has to be woken, and all at once would be late together. */
const WINDOW = 16;

const identified = (claim: Claim, { manifestOf, networkOf, onEnd }: TakeOverContext): Taken => {
  const { id, record, fds } = claim;
  const pidfd = record.process ? openProcess(record.process) : undefined;
  if (pidfd !== undefined && fds) {
    const { life, qmp: qmpFd, agent: agentFd, lock } = fds;
    const ties = record.numbers ? { controlFd: life } : { tetherFd: life };
    const inside = record.inside ? { inside: record.inside } : {};
    const vmm = { index: record.index, pid: record.process?.pid ?? 0, pidfd, ...inside, qmpFd, agentFd, ...ties };
    const network = networkOf(record, pidfd);
    const birth = { ...birthOf(id, record, manifestOf(record)), ...(network ? { network } : {}) };
    const sandbox = new Sandbox(birth, vmm, onEnd);
    sandbox.createdAt = record.created_at_unix;
    if (record.receipt) sandbox.ready(record.receipt);
    return { claim, sandbox, lock };
  }
  for (const fd of Object.values(fds ?? {})) native.fdClose(fd);
  if (pidfd === undefined) return { claim, reason: `it ended while no daemon ran${lastLines(record.console_path)}` };
  native.pidfdSignal(pidfd, SIGKILL);
  native.fdClose(pidfd);
  return { claim, reason: 'nobody had kept its connections' };
};

const SIGKILL = 9;

/** A descriptor of this very process; undefined when it is gone. */
const openProcess = (identity: ProcessIdentity): number | undefined => {
  if (!isRunning(identity)) return undefined;
  let pidfd: number;
  try {
    pidfd = native.pidfdOpen(identity.pid);
  } catch {
    return undefined;
  }
  // What is true after it was opened is true of what was opened.
  if (isRunning(identity)) return pidfd;
  native.fdClose(pidfd);
  return undefined;
};

/** Why a shim is of no use any more, by id. */
const silentShims = async (found: Taken[], pool: Pool): Promise<Map<string, string>> => {
  const shims = found.flatMap((one) => {
    const controlFd = 'sandbox' in one ? one.sandbox.vmm.controlFd : undefined;
    return controlFd === undefined ? [] : [{ name: one.claim.id, controlFd }];
  });
  if (shims.length === 0) return new Map();
  const { lost } = await pool.run('regain', { shims });
  return new Map(lost.map(({ name, reason }) => [name, `its shim does not answer: ${reason}`]));
};

/** An agent answers at once; on a host with a thousand sandboxes and no free processor that is not soon. */
const PING_MS = 60_000;

/** Why its agent cannot be used, or undefined when it answers. */
const silence = async (sandbox: Sandbox): Promise<string | undefined> => {
  // A request that was cut off: the agent would take what comes next for the rest of it.
  const cut = takeMark(sandbox.markPath);
  if (cut > 0) sandbox.agent.pad(cut);
  try {
    await sandbox.agent.call({ action: 'ping' }, PING_MS);
    return undefined;
  } catch (error) {
    return reasonOf(error);
  }
};
