/** One sandbox of the daemon, from birth to end. */
import { Controller } from './controller.js';
import type { GuestStream } from './stream.js';
import type {
  BranchOptions,
  Bytes,
  ControllerOptions,
  ExecOptions,
  ExecResult,
  FileEntry,
  PingResult,
  RunOptions,
  SandboxInfo,
  SnapshotInfo,
  SpawnOptions,
  WriteFileOptions,
} from './types.js';

export type CreateOptions = Omit<SpawnOptions, 'n'> & ControllerOptions;

export class Sandbox {
  readonly id: string;
  #killed = false;

  constructor(
    readonly controller: Controller,
    readonly info: SandboxInfo,
  ) {
    this.id = info.id;
  }

  /** Spawns one. */
  static async create(options: CreateOptions): Promise<Sandbox> {
    const controller = new Controller(options);
    const [info] = await controller.spawnSandboxes({ ...options, n: 1 });
    if (!info) throw new Error('the daemon made no sandbox');
    return new Sandbox(controller, info);
  }

  /** Spawns one, hands it to `use`, and kills it whatever happens. */
  static async with<T>(options: CreateOptions, use: (sandbox: Sandbox) => Promise<T>): Promise<T> {
    const sandbox = await Sandbox.create(options);
    try {
      return await use(sandbox);
    } finally {
      await sandbox.kill();
    }
  }

  exec(args: string[], options: ExecOptions = {}): Promise<ExecResult> {
    return this.controller.execCommand(this.id, args, options);
  }

  /** The value of the code as text. Throws what went wrong in the guest. */
  async eval(code: string): Promise<string | null> {
    const { result, error } = await this.controller.evalCode(this.id, code);
    if (error) throw new Error(error);
    return result;
  }

  /** A program that is heard while it runs. */
  run(args: string[], options: RunOptions = {}): GuestStream {
    return this.controller.runCommand(this.id, args, options);
  }

  /** A connection to a service inside. */
  connect(port: number): GuestStream {
    return this.controller.connectPort(this.id, port);
  }

  readFile(path: string): AsyncGenerator<Uint8Array, void> {
    return this.controller.readFile(this.id, path);
  }

  writeFile(path: string, data: Bytes, options: WriteFileOptions = {}): Promise<{ size: number }> {
    return this.controller.writeFile(this.id, path, data, options);
  }

  listFiles(path: string): Promise<FileEntry[]> {
    return this.controller.listFiles(this.id, path);
  }

  async removeFile(path: string, options: { recursive?: boolean } = {}): Promise<void> {
    await this.controller.removeFile(this.id, path, options);
  }

  ping(): Promise<PingResult> {
    return this.controller.pingSandbox(this.id);
  }

  branch(options: BranchOptions = {}): Promise<SnapshotInfo> {
    return this.controller.branchSandbox(this.id, options);
  }

  /** A second call does nothing; after a failure it tries again. */
  async kill(): Promise<void> {
    if (this.#killed) return;
    this.#killed = true;
    try {
      await this.controller.killSandbox(this.id);
    } catch (error) {
      this.#killed = false;
      throw error;
    }
  }
}
