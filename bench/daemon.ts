/** A daemon in a process of its own, and a client of it that counts what goes wrong instead of stopping. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent } from 'undici';

const CONTROLLER = join(import.meta.dirname, '../src/cli/controller.js');

export class BenchDaemon {
  readonly #dispatcher: Agent;
  /** Answers that were not 2xx, and requests without an answer; the first of them, for whoever looks. */
  errors = 0;
  firstError: string | undefined;

  private constructor(
    readonly child: ChildProcess,
    readonly root: string,
  ) {
    this.#dispatcher = new Agent({
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: { socketPath: join(root, 'd.sock') },
    });
  }

  static async start(args: string[]): Promise<BenchDaemon> {
    const root = await mkdtemp(join(tmpdir(), 'bench-daemon-'));
    const own = ['--bind', '127.0.0.1:0', '--socket', join(root, 'd.sock'), '--state', join(root, 'state.json')];
    const child = spawn(
      process.execPath,
      [CONTROLLER, 'serve', ...own, '--audit-log', join(root, 'audit.log'), ...args],
      {
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    );
    await new Promise<void>((resolve, reject) => {
      let said = '';
      child.stderr?.on('data', (data: Buffer) => {
        said += data.toString('utf8');
        if (said.includes('listening on port')) resolve();
      });
      child.on('exit', (code) => reject(new Error(`the daemon ended with ${code}: ${said}`)));
    });
    return new BenchDaemon(child, root);
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  /** The answer's text; undefined when it was no good one. */
  async text(method: 'GET' | 'POST' | 'DELETE', path: string, body?: object): Promise<string | undefined> {
    try {
      const reply = await this.#dispatcher.request({
        origin: 'http://forkd',
        method,
        path,
        ...(body ? { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) } : {}),
      });
      const text = await reply.body.text();
      if (reply.statusCode >= 200 && reply.statusCode < 300) return text;
      this.#count(`${method} ${path}: ${reply.statusCode} ${text}`);
    } catch (error) {
      this.#count(`${method} ${path}: ${String(error)}`);
    }
    return undefined;
  }

  async json<T>(method: 'GET' | 'POST' | 'DELETE', path: string, body?: object): Promise<T | undefined> {
    const text = await this.text(method, path, body);
    return text === undefined ? undefined : (JSON.parse(text) as T);
  }

  /** Counts an answer that was wrong. */
  expect(isRight: boolean, what: string): void {
    if (!isRight) this.#count(what);
  }

  /** Memory that no one else has, and descriptors. */
  state(): { anon_kib: number; descriptors: number } {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8');
    const anon_kib = Number(/^RssAnon:\s+(\d+)/m.exec(status)?.[1]);
    return { anon_kib, descriptors: readdirSync(`/proc/${this.pid}/fd`).length };
  }

  async stop(): Promise<void> {
    await this.#dispatcher.close();
    const ended = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.kill('SIGTERM');
    await ended;
    rmSync(this.root, { recursive: true, force: true });
  }

  #count(what: string): void {
    this.errors++;
    this.firstError ??= what;
  }
}
