/** The facade that the CLI and the daemon share. It owns everything that lives; `close` ends it all. */
import { ForkdError, reasonOf } from '../contract/errors.js';
import type {
  EvalReply,
  ExecReply,
  GuestRequest,
  PingReply,
  PlainReply,
  RunOptions,
  StreamRequest,
} from '../contract/guest.js';
import { parseTag } from '../contract/names.js';
import type { LimitsChange } from '../contract/resources.js';
import type { Isolation } from '../contract/snapshot.js';
import { judgeIn } from './agent/judge.js';
import { serveLine } from './agent/line.js';
import type { AgentStream } from './agent/stream.js';
import type { EngineOptions } from './engine-options.js';
import { type ForkResult, Forks } from './forks.js';
import type { ForkHooks, Hooks } from './hooks.js';
import { Jails, termsOf } from './host/jails.js';
import { tscKhz } from './host/tsc.js';
import type { GuestImage, Progress } from './image/index.js';
import { bootThroughKvm } from './kvm-boot.js';
import { type Branch, LiveBranches, type TagBranch } from './live-branches.js';
import { type LoadOptions, loadSnapshot } from './load-snapshot.js';
import { makeSnapshot, type SnapshotRequest, type SnapshotResult } from './make-snapshot.js';
import { completeSnapshot, type CompleteHooks } from './memory/complete.js';
import type { LoadedSnapshot } from './memory/loaded.js';
import { Networks } from './network/networks.js';
import type { DiskContext } from './oci/disk-vm.js';
import { installExtras } from './oci/extras.js';
import { hostFile, imagesDir, snapshotsDir } from './paths.js';
import { Namespaces } from './planner/namespaces.js';
import type { ForkRequest } from './planner/plan.js';
import { Pool } from './pool.js';
import { CALL_GRACE_MS, callEach, type CallResult } from './sandbox/calls.js';
import { end } from './sandbox/end.js';
import { Publisher } from './sandbox/publisher.js';
import { Roster } from './sandbox/roster.js';
import type { Sandbox } from './sandbox/sandbox.js';
import type { Claim, Taken } from './sandbox/take-over.js';
import { Warden } from './sandbox/warden.js';
import { type Compacted, type CompactRequest, compact } from './store/compact.js';
import { type Verification, verify } from './store/inspection.js';
import { Store } from './store/store.js';
import { takeBack } from './take-back.js';
import { TemplateSupply } from './template/supply.js';
import type { Template } from './template/template.js';
import { findQemu } from './vmm/find.js';
import { chooseIsolation, type KvmVerdict, NOT_ASKED, PROBE_SECS, probeKvm } from './vmm/probe.js';
import type { QemuDriver } from './vmm/qemu.js';

export type { Branch, CallResult, ForkHooks, ForkResult, Hooks, TagBranch };

export type NewSnapshot = Omit<SnapshotRequest, 'kernel' | 'initrd' | 'rootfs' | 'isolation' | 'tscKhz'> &
  Partial<Pick<SnapshotRequest, 'kernel' | 'initrd' | 'rootfs'>> & { require?: Isolation };

export class Engine {
  readonly store: Store;
  readonly pool = new Pool();
  readonly namespaces = new Namespaces();
  readonly networks: Networks;
  readonly publisher: Publisher;
  readonly #roster: Roster;
  readonly #templates: TemplateSupply;
  readonly #branches: LiveBranches;
  readonly #forks: Forks;
  #driver: Promise<QemuDriver> | undefined;
  readonly #jails: Jails;

  constructor(readonly options: EngineOptions = {}) {
    const { jail = true, tied: outlivesEngine = false } = options;
    const { pool, namespaces } = this;
    const store = new Store(options.snapshotRoot ?? snapshotsDir());
    const networks = new Networks(pool, options.resident);
    const publisher = new Publisher(options.agentSocket, judgeIn(pool));
    const roster = new Roster(pool, publisher);
    const jails = new Jails({ ...termsOf(options, options), none: !jail, outlivesEngine });
    const driver = () => this.driver();
    const load: Engine['load'] = (tag, how) => this.load(tag, how);
    const templates = new TemplateSupply({ pool, jails, driver, load, options });
    const branches = new LiveBranches({ pool, store, roster, templates });
    const parts = { jails, networks, namespaces, roster, templates, branches };
    this.#forks = new Forks({ pool, store, ...parts, driver, load, options });
    this.store = store;
    this.networks = networks;
    this.publisher = publisher;
    this.#roster = roster;
    this.#jails = jails;
    this.#templates = templates;
    this.#branches = branches;
  }

  driver(): Promise<QemuDriver> {
    this.#driver ??= findQemu();
    return this.#driver;
  }

  /** The default guest image, built on first use. */
  async image(onProgress?: Progress, signal?: AbortSignal): Promise<GuestImage> {
    // What reads Debian packages is of no use to those who fork.
    const { buildDefaultImage } = await import('./image/index.js');
    return buildDefaultImage({
      cacheDir: imagesDir(),
      ...(onProgress ? { onProgress } : {}),
      ...(signal ? { signal } : {}),
    });
  }

  /** Whether KVM works on this host, found out by a boot the first time. */
  async kvm(hooks: Hooks = {}): Promise<KvmVerdict> {
    const driver = await this.driver();
    return probeKvm(hostFile(), driver, async () => {
      hooks.onStep?.(`trying KVM on this host (once, at most ${PROBE_SECS} s)`);
      const image = await this.image(undefined, hooks.signal);
      await bootThroughKvm(image, this.pool, driver, hooks.signal);
    });
  }

  /** Adds packages to a root disk. Throws what `installExtras` throws. */
  async installExtras(
    disk: string,
    image: string,
    packages: string[],
    signal?: AbortSignal,
  ): Promise<string | undefined> {
    return installExtras(disk, image, packages, await this.diskContext(signal));
  }

  /** What a VM needs that makes a root disk. */
  async diskContext(signal?: AbortSignal): Promise<DiskContext> {
    const [driver, guest] = [await this.driver(), await this.image(undefined, signal)];
    const isolation = chooseIsolation(await this.kvm(signal ? { signal } : {}), undefined);
    const context = { pool: this.pool, driver, guest, isolation, tscKhz: await tscKhz(hostFile()) };
    const inJail: DiskContext['inJail'] = (work) => this.#jails.use({}, work);
    return { ...context, inJail, ...(signal ? { signal } : {}) };
  }

  /** Boots a parent, warms it and saves it under `request.tag`. Kernel, initramfs and root default to the embedded image. */
  async snapshot(request: NewSnapshot, hooks: Hooks = {}): Promise<SnapshotResult> {
    const { signal, onStep } = hooks;
    parseTag(request.tag);
    if (this.store.exists(request.tag) && !request.force) throw new ForkdError('SNAPSHOT_EXISTS', { tag: request.tag });
    const driver = await this.driver();
    const image = await this.image(hooks.onProgress, signal);
    const isolation = chooseIsolation(request.require === 'tcg' ? NOT_ASKED : await this.kvm(hooks), request.require);
    const whole = {
      ...request,
      kernel: request.kernel ?? image.kernel,
      initrd: request.initrd ?? image.initrd,
      rootfs: request.rootfs ?? image.rootfs,
      isolation,
      tscKhz: await tscKhz(hostFile()),
    };
    const context = { store: this.store, pool: this.pool, driver };
    const more = { ...(signal ? { signal } : {}), ...(onStep ? { onStep } : {}) };
    // It is told once: to whoever listens for the whole engine, if anybody does.
    const here = onStep && !this.options.onWeaker ? { onWeaker: onStep } : {};
    return this.#jails.use(here, (make) =>
      makeSnapshot(whole, { ...context, ...more, ...(make ? { makeJail: make } : {}) }),
    );
  }

  /** Opens a tag after checking that it fits this host. The caller closes what it gets. */
  load(tag: string, options: LoadOptions = {}): Promise<LoadedSnapshot> {
    const { store, pool } = this;
    const host = { driver: () => this.driver(), kvm: () => this.kvm() };
    return loadSnapshot(tag, options, { store, pool, ...host, patience: this.options.patience });
  }

  /** Makes one base of a chain, under a new tag. */
  compact(request: CompactRequest, hooks: Hooks = {}): Promise<Compacted> {
    return compact(this.store, request, this.pool, hooks.signal);
  }

  /** Reads and checks every chunk of a tag and its ancestors. */
  verify(tag: string): Promise<Verification> {
    return verify(this.store, tag);
  }

  /** Brings the rest of a tag that was pulled with --lazy. Throws what its server makes it throw, SNAPSHOT_BUSY, CANCELLED. */
  complete(tag: string, hooks: CompleteHooks = {}): Promise<void> {
    return completeSnapshot(this.store, parseTag(tag), this.pool, hooks);
  }

  /** Forks `n` children from a tag. Each has taken its own identity and has answered when this settles. */
  fork(request: ForkRequest, hooks: ForkHooks = {}): Promise<ForkResult> {
    return this.#forks.fromTag(request, hooks);
  }

  /** Forks `n` children from a template that the caller holds, e.g. a branch. */
  forkFrom(template: Template, request: Omit<ForkRequest, 'tag'>, hooks: ForkHooks = {}): Promise<ForkResult> {
    return this.#forks.fromTemplate(template, { ...request, tag: template.manifest.tag }, hooks);
  }

  /** Gives up idle templates when less than the floor is available; returns how many. Each fork asks by itself. */
  relieve(memoryAvailable?: number): Promise<number> {
    return this.#templates.relieve(memoryAvailable);
  }

  /** Makes sure that a tag has a template before it is asked for: a daemon does so, and a benchmark. */
  async warm(
    tag: string,
    options: { firstEval?: string; eager?: boolean } = {},
    hooks: ForkHooks = {},
  ): Promise<Template> {
    const template = await this.#templates.obtain(
      this.store.open(parseTag(tag)),
      { tag, n: this.pool.width, ...options },
      hooks,
    );
    template.snapshot?.memory.populate();
    return template;
  }

  /**
   * Forks a running sandbox without stopping it for longer than the fork itself takes. The copy stays frozen and is a
   * template at once: `forkFrom` makes children of it. The caller retires it. Throws BRANCH_UNSUPPORTED.
   */
  branch(id: string): Promise<Branch> {
    return this.#branches.branch(id);
  }

  /**
   * Branches a running sandbox into a tag. Children fork from the tag at once, from memory; `written` settles when it is on
   * disk, or with the reason why it is not, and then the tag is as it was. The engine keeps the template, as it does any tag's.
   * Throws SNAPSHOT_EXISTS, SNAPSHOT_BUSY, BRANCH_UNSUPPORTED.
   */
  branchInto(id: string, options: { tag: string; force?: boolean }): Promise<TagBranch> {
    return this.#branches.branchInto(id, options);
  }

  /** Ends a template that `branch` made. Its children live on. */
  retire(template: Template): Promise<void> {
    return this.#branches.retire(template);
  }

  /** Gives up the templates of a tag that is gone, or is to be another one. Children live on. */
  forgetTemplates(tag: string): Promise<void> {
    return this.#templates.forget(tag);
  }

  /** For metrics. */
  state(): { templates: number; spares: number; threads: number; waiting: number } {
    const { templates, spares } = this.#templates.state;
    return { templates: templates + this.#branches.count, spares, ...this.pool.state };
  }

  /** Makes sandboxes reachable for other processes. Throws what the file system throws. */
  publish(sandboxes: Sandbox[]): Promise<void> {
    return this.publisher.publish(sandboxes);
  }

  /** Offers a sandbox's agent at an address of this host. Throws LISTEN_FAILED. */
  async listen(sandbox: Sandbox, address: { host: string; port: number }): Promise<void> {
    try {
      const server = await serveLine(address, sandbox.agent, judgeIn(this.pool));
      void sandbox.ended.then(() => server.close());
    } catch (error) {
      throw new ForkdError('LISTEN_FAILED', { ...address, reason: reasonOf(error) }, error);
    }
  }

  /** Takes back sandboxes of an engine that was killed; they are published again, where that can be done. What came of each is returned. */
  takeOver(claims: Claim[], onProblem: (reason: string) => void): Promise<Taken[]> {
    const { pool, store, networks, publisher } = this;
    return takeBack(claims, { pool, store, networks, publisher, roster: this.#roster, onProblem });
  }

  /** Throws SANDBOX_NOT_FOUND. */
  sandbox(id: string): Sandbox {
    return this.#roster.get(id);
  }

  get sandboxes(): Sandbox[] {
    return this.#roster.all;
  }

  async ping(id: string, timeoutMs = 3000): Promise<PingReply> {
    return (await this.sandbox(id).call({ action: 'ping' }, timeoutMs)) as PingReply;
  }

  async eval(id: string, code: string, timeoutMs = 30_000): Promise<EvalReply> {
    return (await this.sandbox(id).call({ action: 'eval', code }, timeoutMs)) as EvalReply;
  }

  /** `timeoutSecs` is the guest's: it kills the process group and returns the output so far. */
  async exec(id: string, args: string[], timeoutSecs = 30): Promise<ExecReply> {
    const request = { action: 'exec' as const, args, timeout: timeoutSecs };
    return (await this.sandbox(id).call(request, timeoutSecs * 1000 + CALL_GRACE_MS)) as ExecReply;
  }

  /**
   * Opens a stream: a program whose output is heard while it runs, a connection to a service inside, a file or a directory on its
   * way. Throws SANDBOX_NOT_FOUND, GUEST_OUTDATED, VMM_DIED; whether it could be opened, `opened` tells.
   */
  stream(id: string, request: StreamRequest): AgentStream {
    return this.sandbox(id).stream(request);
  }

  /** Runs a program whose output is heard while it runs. It ends with the stream. */
  execStream(id: string, options: RunOptions): AgentStream {
    return this.stream(id, { action: 'run', ...options });
  }

  /** Changes what a sandbox may use of this host, while it runs. Throws SANDBOX_NOT_FOUND, LIMITS_IMPOSSIBLE, CGROUP_FAILED, VMM_DIED. */
  async limit(id: string, change: LimitsChange): Promise<void> {
    await this.sandbox(id).limit(change);
  }

  /** Asks about files, or about programs in the background. Throws GUEST_OUTDATED, AGENT_ERROR and what `call` of a sandbox throws. */
  ask<T extends PlainReply>(id: string, request: GuestRequest, timeoutMs?: number): Promise<T> {
    return this.sandbox(id).ask<T>(request, timeoutMs);
  }

  /**
   * One call to each of many sandboxes, all at once. `onResult` hears of each as it comes. Fresh children are called by
   * the worker pool; one whose socket the main thread has taken over already is called from there.
   */
  async callAll(
    sandboxes: Sandbox[],
    requestFor: (sandbox: Sandbox) => GuestRequest,
    timeoutSecs: number,
    onResult?: (result: CallResult) => void,
  ): Promise<CallResult[]> {
    const timeoutMs = timeoutSecs * 1000 + CALL_GRACE_MS;
    return callEach(this.pool, sandboxes, { requestFor, timeoutMs, onResult });
  }

  /** Ends sandboxes and waits until they are gone. */
  async kill(sandboxes: Sandbox[]): Promise<void> {
    await end(sandboxes);
  }

  /** Ends every sandbox, then the workers, and removes every work directory. `leave`: but for sandboxes, and what is theirs. */
  async close({ leave = false }: { leave?: boolean } = {}): Promise<void> {
    await Promise.all([this.#branches.settled(), this.#roster.joined()]);
    if (!leave) await end(this.sandboxes);
    await this.#branches.close();
    await this.#templates.close();
    Warden.endRest();
    if (!leave) await this.#roster.closed();
    await this.networks.close({ leave });
    await this.pool.close();
    await this.publisher.close();
  }
}
