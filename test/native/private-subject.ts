import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const source = join(import.meta.dirname, '../../../test/native/private-subject.c');

/** Compiles private-subject.c into `folder`. */
export function compileSubject(folder: string): string {
  const program = join(folder, 'private-subject');
  execFileSync('gcc', ['-D_GNU_SOURCE', '-std=gnu11', '-O2', '-Wall', '-o', program, source]);
  return program;
}

/** A process that has mapped a memory file privately, in `parts` mappings. */
export class Subject {
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  constructor(program: string, memfd: number, parts = 1) {
    this.#child = spawn(program, ['3', String(parts)], { stdio: ['pipe', 'pipe', 'inherit', memfd] });
    this.pid = this.#child.pid ?? 0;
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  /** Sends commands together, and waits until all are done. */
  async do(...commands: string[]): Promise<void> {
    this.#child.stdin!.write(commands.map((command) => `${command}\n`).join(''));
    for (const command of commands) {
      const { value } = await this.#answers.next();
      if (value !== 'ok') throw new Error(`${command}: ${value}`);
    }
  }

  async end(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGKILL');
    await once(this.#child, 'exit');
  }
}
