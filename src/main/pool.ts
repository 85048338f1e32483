/** The worker pool. The only file that knows piscina. */
import { availableParallelism } from 'node:os';
import { MessageChannel, type MessagePort, receiveMessageOnPort } from 'node:worker_threads';
import { Piscina } from 'piscina';
import { closeCustody, lastArrived, makeCustody } from '../contract/custody.js';
import { ForkdError, reasonOf } from '../contract/errors.js';
import type { Outcome, TaskEvent, TaskInput, TaskName, TaskOutput } from '../contract/task.js';
import { native } from '../native/binding.js';
import type { Job, RoleJob } from '../workers/entry.js';

/** Tasks that wait for a guest hold a thread but no processor, so there are more threads than processors. */
const THREADS_PER_CPU = 8;

export class Pool {
  #piscina: Piscina | undefined;

  /** Workers that a fan-out is divided among: one for each processor. */
  readonly width = availableParallelism();

  /** Workers are started on first use: commands that need none start faster. */
  #pool(): Piscina {
    this.#piscina ??= new Piscina({
      filename: new URL('../workers/entry.js', import.meta.url).href,
      minThreads: this.width,
      maxThreads: this.width * THREADS_PER_CPU,
      idleTimeout: 10_000,
      // Descriptors are handed from thread to thread: Node must not close those that a worker opened when it ends.
      trackUnmanagedFds: false,
    });
    return this.#piscina;
  }

  /**
   * Runs one task in a worker. Every event is delivered before this settles, so what the worker handed over is known
   * to its new owner whichever way the task ends; what had arrived there and was not handed over is closed. Throws ForkdError;
   * WORKER_DIED when the thread ended before its task.
   */
  async run<T extends TaskName>(
    task: T,
    input: TaskInput<T>,
    onEvent?: (event: TaskEvent) => void,
  ): Promise<TaskOutput<T>> {
    const { port1, port2 } = new MessageChannel();
    const custody = makeCustody();
    let spawned = 0;
    const deliver = (event: TaskEvent) => {
      if (event.type === 'spawned') spawned++;
      onEvent?.(event);
    };
    if (onEvent) port1.on('message', deliver);
    try {
      const job: Job<T> = { task, input, port: port2, custody };
      const outcome = (await this.#pool().run(job, { transferList: [port2] })) as Outcome<T>;
      if (!outcome.ok) throw ForkdError.fromData(outcome.error);
      return outcome.value;
    } catch (error) {
      throw error instanceof ForkdError
        ? error
        : new ForkdError('WORKER_DIED', { task, reason: reasonOf(error) }, error);
    } finally {
      // Before its last words are read: whatever it was to tell of, it tells of before more arrives.
      const arrived = closeCustody(custody);
      for (let m = receiveMessageOnPort(port1); m !== undefined; m = receiveMessageOnPort(port1))
        deliver(m.message as TaskEvent);
      port1.close();
      if (arrived > spawned) for (const fd of lastArrived(custody)) native.fdClose(fd);
    }
  }

  /** Gives a long-lived role a worker and its port; settles when the role has ended. */
  async serve(role: RoleJob['role'], port: MessagePort): Promise<void> {
    const job: RoleJob = { role, port };
    await this.#pool().run(job, { transferList: [port] });
  }

  get state(): { threads: number; waiting: number } {
    return { threads: this.#piscina?.threads.length ?? 0, waiting: this.#piscina?.queueSize ?? 0 };
  }

  /** Starts the workers now, so that the first task does not wait for them. */
  warm(): void {
    this.#pool();
  }

  async close(): Promise<void> {
    await this.#piscina?.destroy();
  }
}
