/**
 * Client of the daemon: one method for each route. The reference's TypeScript SDK has the same names, arguments and
 * results; what it lacks is added beside them.
 */
import { readFileSync } from 'node:fs';
import type { NetworkWish } from '../contract/network.js';
import { ControllerError } from './error.js';
import { serverEvents, textOf } from './event-stream.js';
import { GuestStream, streamUrl } from './stream.js';
import { type Call, type Transport, transportTo } from './transport.js';
import type {
  BranchOptions,
  BranchTree,
  Bytes,
  ControllerOptions,
  CreateSnapshotOptions,
  CreateWorkspaceOptions,
  DeleteSnapshotOptions,
  DiffPart,
  DiffReport,
  EvalResult,
  EventInfo,
  EventsOptions,
  ExecOptions,
  ExecResult,
  FileEntry,
  LimitOptions,
  FileEvent,
  ListOptions,
  PingResult,
  PromoteReport,
  PruneOptions,
  PruneReport,
  RunFacts,
  RunOptions,
  SandboxInfo,
  SandboxUsage,
  SnapshotDetail,
  SnapshotInfo,
  SpawnOptions,
  StreamRequest,
  WatchOptions,
  WorkspaceInfo,
  WriteFileOptions,
} from './types.js';

export const DEFAULT_URL = 'http://127.0.0.1:8889';
const TIMEOUT_MS = 60_000;
const EXEC_SECS = 30;
/** On top of what a command in a guest may take: its way there and back. */
const EXEC_GRACE_MS = 10_000;
/** A boot, and saving it. */
const BOOT_MS = 180_000;
/** Two forks, and reading the files of two guests. */
const DIFF_MS = 180_000;

export class Controller {
  readonly baseUrl: string;
  readonly token: string | undefined;
  readonly timeoutMs: number;
  readonly #transport: Transport;
  readonly #ca: string | undefined;

  constructor({ baseUrl, token, timeoutMs = TIMEOUT_MS, fetch, ca }: ControllerOptions = {}) {
    this.baseUrl = (baseUrl ?? (process.env['FORKD_URL'] || DEFAULT_URL)).replace(/\/+$/, '');
    this.token = token ?? (process.env['FORKD_TOKEN'] || undefined);
    this.timeoutMs = timeoutMs;
    this.#ca = ca ?? caFor(this.baseUrl);
    this.#transport = transportTo(this.baseUrl, { fetch, ca: this.#ca });
  }

  /** Whether a daemon answers there; needs no token. */
  health(): Promise<{ ok: boolean }> {
    return this.#json('GET', '/healthz');
  }

  version(): Promise<{ version: string; api: string }> {
    return this.#json('GET', '/version');
  }

  listSnapshots(options: ListOptions = {}): Promise<SnapshotInfo[]> {
    return this.#json('GET', `/v1/snapshots${labelQuery(options)}`);
  }

  /** Boots a guest and saves it. Takes as long as a boot does. */
  createSnapshot(options: CreateSnapshotOptions): Promise<SnapshotInfo> {
    const { tag, kernel, initrd, rootfs, net, tap, bootWaitSecs, memoryMib, vcpus, warmEval, labels } = options;
    const body = { tag, kernel, initrd, rootfs, net, tap, boot_wait_secs: bootWaitSecs, memory_mib: memoryMib, vcpus };
    const timeoutMs = Math.max(this.timeoutMs, BOOT_MS);
    const volumes = options.volumes?.map((one) => ({
      host_path: one.hostPath,
      guest_path: one.guestPath,
      read_only: one.readOnly,
    }));
    return this.#json('POST', '/v1/snapshots', { ...body, warm_eval: warmEval, volumes, labels }, timeoutMs);
  }

  getSnapshot(tag: string): Promise<SnapshotInfo> {
    return this.#json('GET', snapshotPath(tag));
  }

  /** Sizes, ancestors and dependents. */
  snapshotInfo(tag: string): Promise<SnapshotDetail> {
    return this.#json('GET', `${snapshotPath(tag)}/info`);
  }

  /** Makes one base of a snapshot and its ancestors, under another tag. */
  compactSnapshot(tag: string, to: string): Promise<SnapshotInfo> {
    return this.#json('POST', `${snapshotPath(tag)}/compact`, { to });
  }

  /** Snapshots, and the sandboxes that run from them. */
  branchTree(): Promise<BranchTree> {
    return this.#json('GET', '/v1/tree');
  }

  /** What differs between two branches: tags, or sandboxes. Takes two forks, and longer for guests with many files. */
  diffBranches(a: string, b: string, parts?: DiffPart[]): Promise<DiffReport> {
    const query = new URLSearchParams({ a, b, ...(parts === undefined ? {} : { parts: parts.join(',') }) });
    return this.#json('GET', `/v1/diff?${query}`, undefined, Math.max(this.timeoutMs, DIFF_MS));
  }

  /** Makes the tag `as` mean this snapshot; what it meant before stays, under the name `previous` of the answer. */
  promoteSnapshot(tag: string, as: string): Promise<PromoteReport> {
    return this.#json('POST', `${snapshotPath(tag)}/promote`, { as });
  }

  /** Makes a tag mean what a sandbox is now; it runs on. */
  promoteSandbox(id: string, as: string): Promise<PromoteReport> {
    return this.#json('POST', `${sandboxPath(id)}/promote`, { as });
  }

  /** Removes branches that no sandbox, workspace or other snapshot needs. */
  pruneSnapshots(options: PruneOptions = {}): Promise<PruneReport> {
    const { under, all, olderThanSecs, keep, only, dryRun } = options;
    const body = { dry_run: dryRun, all, under, older_than_secs: olderThanSecs, keep, only };
    return this.#json('POST', '/v1/snapshots/prune', body);
  }

  async deleteSnapshot(tag: string, { cascade, force }: DeleteSnapshotOptions = {}): Promise<void> {
    const query = new URLSearchParams();
    if (cascade) query.set('cascade', 'true');
    if (force) query.set('force', 'true');
    await this.#json('DELETE', `${snapshotPath(tag)}${query.size > 0 ? `?${query}` : ''}`);
  }

  /** The body has every boolean that was given, false too. */
  spawnSandboxes(options: SpawnOptions): Promise<SandboxInfo[]> {
    const { snapshotTag, n = 1, perChildNetns = false, memoryLimitMib, prewarm, liveFork, hugepages } = options;
    const { network, labels, ttlSecs, idleSecs, cpus, ioMibPerS, pids, strict } = options;
    return this.#json('POST', '/v1/sandboxes', {
      snapshot_tag: snapshotTag,
      n,
      per_child_netns: perChildNetns,
      memory_limit_mib: memoryLimitMib,
      cpus,
      io_mib_per_s: ioMibPerS,
      pids,
      strict,
      network: networkBody(network),
      prewarm,
      live_fork: liveFork,
      hugepages,
      labels,
      ttl_secs: ttlSecs,
      idle_secs: idleSecs,
    });
  }

  listSandboxes(options: ListOptions = {}): Promise<SandboxInfo[]> {
    return this.#json('GET', `/v1/sandboxes${labelQuery(options)}`);
  }

  getSandbox(id: string): Promise<SandboxInfo> {
    return this.#json('GET', sandboxPath(id));
  }

  /** While it runs. Null lifts a limit; what is absent stays. */
  limitSandbox(id: string, { cpus, memoryLimitMib, ioMibPerS, pids }: LimitOptions): Promise<SandboxInfo> {
    const body = { cpus, memory_limit_mib: memoryLimitMib, io_mib_per_s: ioMibPerS, pids };
    return this.#json('PATCH', sandboxPath(id), body);
  }

  /** What it uses, and where it met its limits. */
  sandboxUsage(id: string): Promise<SandboxUsage> {
    return this.#json('GET', `${sandboxPath(id)}/usage`);
  }

  async killSandbox(id: string): Promise<void> {
    await this.#json('DELETE', sandboxPath(id));
  }

  /** Makes a snapshot of a running sandbox, which goes on. */
  branchSandbox(id: string, options: BranchOptions = {}): Promise<SnapshotInfo> {
    const { tag, mode, diff, measure_diff, wait, parentTag, labels } = options;
    return this.#json('POST', `${sandboxPath(id)}/branch`, {
      tag,
      ...(mode ? { mode } : diff ? { diff } : {}),
      ...(measure_diff ? { measure_diff } : {}),
      ...(wait === false ? { wait } : {}),
      parent_tag: parentTag,
      labels,
    });
  }

  /** Runs a program in a sandbox. A failure in the guest is a result, not an error. */
  execCommand(id: string, args: string[], options: ExecOptions = {}): Promise<ExecResult> {
    const { timeoutSecs = EXEC_SECS, env, cwd, user, stdin } = options;
    const timeoutMs = Math.max(this.timeoutMs, timeoutSecs * 1000 + EXEC_GRACE_MS);
    const body = { args, timeout_secs: timeoutSecs, env, cwd, user, stdin };
    return this.#json('POST', `${sandboxPath(id)}/exec`, body, timeoutMs);
  }

  /** Runs code in the warm interpreter of a sandbox. A failure in the guest is a result, not an error. */
  evalCode(id: string, code: string): Promise<EvalResult> {
    return this.#json('POST', `${sandboxPath(id)}/eval`, { code });
  }

  pingSandbox(id: string): Promise<PingResult> {
    return this.#json('POST', `${sandboxPath(id)}/ping`);
  }

  /** A program that is heard while it runs. `opened` of it tells whether it could be started. */
  runCommand(id: string, args: string[], options: RunOptions = {}): GuestStream {
    const { timeoutSecs, ...run } = options;
    return this.openStream(id, {
      action: 'run',
      args,
      ...run,
      ...(timeoutSecs === undefined ? {} : { timeout: timeoutSecs }),
    });
  }

  /** Leaves a program in the background; `attachRun` hears it. */
  startRun(id: string, args: string[], options: RunOptions = {}): Promise<{ run: number; pid: number }> {
    const { env, cwd, user, tty, stdin, timeoutSecs } = options;
    return this.#json('POST', `${sandboxPath(id)}/runs`, {
      args,
      env,
      cwd,
      user,
      tty,
      stdin,
      timeout_secs: timeoutSecs,
    });
  }

  listRuns(id: string): Promise<RunFacts[]> {
    return this.#json('GET', `${sandboxPath(id)}/runs`);
  }

  attachRun(id: string, run: number): GuestStream {
    return this.openStream(id, { action: 'attach', run });
  }

  /** A connection to a service inside. */
  connectPort(id: string, port: number): GuestStream {
    return this.openStream(id, { action: 'connect', port });
  }

  /** Any stream of the guest. Not with a `fetch` of your own. */
  openStream(id: string, request: StreamRequest): GuestStream {
    return new GuestStream(streamUrl(this.baseUrl, `${sandboxPath(id)}/stream`), this.token, request, this.#ca);
  }

  statFile(id: string, path: string): Promise<FileEntry> {
    return this.#json('GET', filePath(id, '/stat', { path }));
  }

  listFiles(id: string, path: string): Promise<FileEntry[]> {
    return this.#json('GET', filePath(id, '/list', { path }));
  }

  async makeDir(id: string, path: string, { mode, parents = true }: WriteFileOptions = {}): Promise<void> {
    await this.#json('POST', filePath(id, '/dir', { path, ...octal(mode), parents: String(parents) }));
  }

  async removeFile(id: string, path: string, { recursive = false }: { recursive?: boolean } = {}): Promise<void> {
    await this.#json('DELETE', filePath(id, '', { path, recursive: String(recursive) }));
  }

  /** What is in a file, as it comes. */
  readFile(id: string, path: string): AsyncGenerator<Uint8Array, void> {
    return this.#bytes(filePath(id, '', { path }));
  }

  /** Whole or not at all. */
  writeFile(
    id: string,
    path: string,
    data: Bytes,
    { mode, parents = false }: WriteFileOptions = {},
  ): Promise<{ size: number }> {
    return this.#put(filePath(id, '', { path, ...octal(mode), parents: String(parents) }), data);
  }

  /** Resolves when it is watched: to what changes there from then on, until that is left or what is watched is gone. */
  async watchFiles(
    id: string,
    path: string,
    { recursive = false, signal }: WatchOptions = {},
  ): Promise<AsyncGenerator<FileEvent, void>> {
    const url = filePath(id, '/watch', { path, recursive: String(recursive) });
    const abort = new AbortController();
    const end = () => abort.abort();
    signal?.addEventListener('abort', end);
    try {
      const headers = { accept: 'text/event-stream', ...this.#auth };
      const { status, parts } = await this.#transport.stream({
        method: 'GET',
        path: url,
        headers,
        signal: abort.signal,
      });
      if (status !== 200) throw new ControllerError(status, parsed(await textOf(parts)), this.baseUrl + url);
      return changesOf(parts, this.baseUrl + url, abort, signal);
    } catch (error) {
      signal?.removeEventListener('abort', end);
      abort.abort();
      throw error;
    }
  }

  /** A directory as a tar archive. */
  readDir(id: string, path: string): AsyncGenerator<Uint8Array, void> {
    return this.#bytes(filePath(id, '/tar', { path }));
  }

  /** Unpacks a tar archive into a directory. */
  writeDir(id: string, path: string, archive: Bytes): Promise<{ entries: number }> {
    return this.#put(filePath(id, '/tar', { path }), archive);
  }

  listWorkspaces(options: ListOptions = {}): Promise<WorkspaceInfo[]> {
    return this.#json('GET', `/v1/workspaces${labelQuery(options)}`);
  }

  getWorkspace(name: string): Promise<WorkspaceInfo> {
    return this.#json('GET', workspacePath(name));
  }

  /** A sandbox that can be suspended and resumed, under a name that survives the daemon. */
  createWorkspace(options: CreateWorkspaceOptions): Promise<WorkspaceInfo> {
    const { name, snapshotTag, perChildNetns = false, memoryLimitMib, network, labels } = options;
    const body = { name, snapshot_tag: snapshotTag, per_child_netns: perChildNetns, network: networkBody(network) };
    return this.#json('POST', '/v1/workspaces', { ...body, memory_limit_mib: memoryLimitMib, labels });
  }

  /** Writes its state to disk, then ends its sandbox. */
  suspendWorkspace(name: string, { diff = false }: { diff?: boolean } = {}): Promise<WorkspaceInfo> {
    return this.#json('POST', `${workspacePath(name)}/suspend`, { diff });
  }

  resumeWorkspace(name: string): Promise<WorkspaceInfo> {
    return this.#json('POST', `${workspacePath(name)}/resume`);
  }

  async deleteWorkspace(name: string): Promise<void> {
    await this.#json('DELETE', workspacePath(name));
  }

  /** What happens from now on, until `signal` fires or the daemon ends. Throws ControllerError when it is refused. */
  async *events({ kinds, after, signal }: EventsOptions = {}): AsyncGenerator<EventInfo, void> {
    const query = new URLSearchParams();
    if (kinds) query.set('kinds', kinds.join(','));
    if (after !== undefined) query.set('after', String(after));
    const path = `/v1/events${query.size > 0 ? `?${query}` : ''}`;
    const abort = new AbortController();
    const end = () => abort.abort();
    signal?.addEventListener('abort', end);
    if (signal?.aborted) return;
    try {
      const headers = { accept: 'text/event-stream', ...this.#auth };
      const { status, parts } = await this.#transport.stream({ method: 'GET', path, headers, signal: abort.signal });
      if (status !== 200) throw new ControllerError(status, parsed(await textOf(parts)), this.baseUrl + path);
      for await (const { data } of serverEvents(parts)) yield JSON.parse(data) as EventInfo;
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      signal?.removeEventListener('abort', end);
      abort.abort();
    }
  }

  /** The body of an answer as it comes. Throws ControllerError when it is refused. */
  async *#bytes(path: string): AsyncGenerator<Uint8Array, void> {
    const abort = new AbortController();
    try {
      const call = { method: 'GET' as const, path, headers: this.#auth, signal: abort.signal };
      const { status, parts } = await this.#transport.stream(call);
      if (status !== 200) throw new ControllerError(status, parsed(await textOf(parts)), this.baseUrl + path);
      yield* parts;
    } finally {
      abort.abort();
    }
  }

  /** No limit of time: it takes as long as the bytes do. */
  async #put<T>(path: string, body: Bytes): Promise<T> {
    const headers = { ...this.#auth, 'content-type': 'application/octet-stream' };
    const { signal } = new AbortController();
    const { status, text } = await this.#transport.send({ method: 'PUT', path, headers, body, signal });
    if (status !== 200) throw new ControllerError(status, parsed(text), this.baseUrl + path);
    return JSON.parse(text) as T;
  }

  get #auth(): Record<string, string> {
    return this.token === undefined ? {} : { authorization: `Bearer ${this.token}` };
  }

  /** Ends the kept connections. Not needed for a process to end. */
  close(): Promise<void> {
    return this.#transport.close();
  }

  async #json<T>(method: Call['method'], path: string, body?: object, timeoutMs = this.timeoutMs): Promise<T> {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), timeoutMs);
    try {
      const { status, text } = await this.#transport.send({
        method,
        path,
        headers: {
          accept: 'application/json',
          ...this.#auth,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: abort.signal,
      });
      if (status < 200 || status > 299)
        throw new ControllerError(status, text === '' ? {} : parsed(text), this.baseUrl + path);
      return text === '' ? (null as T) : JSON.parse(text);
    } finally {
      clearTimeout(timer);
    }
  }
}

async function* changesOf(
  parts: AsyncIterable<Uint8Array>,
  url: string,
  abort: AbortController,
  signal: AbortSignal | undefined,
): AsyncGenerator<FileEvent, void> {
  try {
    for await (const { name, data } of serverEvents(parts)) {
      if (name === 'failed') throw new ControllerError(0, JSON.parse(data), url);
      yield JSON.parse(data) as FileEvent;
    }
  } catch (error) {
    if (!signal?.aborted) throw error;
  } finally {
    abort.abort();
  }
}

/** Throws what reading the file throws: going on without it would only tell later, and less. */
const caFor = (baseUrl: string): string | undefined => {
  const path = process.env['FORKD_CA'];
  return path && baseUrl.startsWith('https:') ? readFileSync(path, 'utf8') : undefined;
};

const labelQuery = ({ labels = {} }: ListOptions): string => {
  const query = new URLSearchParams(
    Object.entries(labels).map(([key, value]): [string, string] => ['label', `${key}=${value}`]),
  );
  return query.size > 0 ? `?${query}` : '';
};

const networkBody = (network: Partial<NetworkWish> | undefined) =>
  network && { allow: network.allow, allow_domains: network.allowDomains };

const snapshotPath = (tag: string): string => `/v1/snapshots/${encodeURIComponent(tag)}`;

const workspacePath = (name: string): string => `/v1/workspaces/${encodeURIComponent(name)}`;

const sandboxPath = (id: string): string => `/v1/sandboxes/${encodeURIComponent(id)}`;

const filePath = (id: string, what: string, query: Record<string, string>): string =>
  `${sandboxPath(id)}/files${what}?${new URLSearchParams(query)}`;

const octal = (mode: number | undefined): { mode?: string } => (mode === undefined ? {} : { mode: mode.toString(8) });

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};
