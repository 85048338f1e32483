import { type ErrorData, ForkdError } from '../../contract/errors.js';
import { FORK_PIN, FORK_TIED, Say } from '../../contract/hotfork.js';
import type { HotChild, TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { Deadline } from '../deadline.js';
import { FirstAnswers } from '../vmm/first-answers.js';
import { withEntries } from '../vmm/hot-child.js';
import { bornOf, childOf, type ForkedChild, HotforkControl } from '../vmm/hotfork.js';
import { explain } from '../vmm/obituary.js';

/**
 * Children that are between their fork and their answer at a time, for each template. With one, a sixth of the processors' time is
 * lost while a child, its template and this worker wait for each other; more than two gain little and make each child later
 * (measured, 100 children: 453 ms with one, 377 with two, 357 with three).
 */
const WINDOW = 2;

export const hotfork = (
  input: TaskInput<'hotfork'>,
  emit: (event: TaskEvent) => void,
  custody: Int32Array,
): TaskOutput<'hotfork'> => new FanOut(input, emit, custody).run();

class FanOut {
  readonly #shim: HotforkControl;
  readonly #queue: HotChild[];
  /** Requests under way, by id. */
  readonly #requested = new Map<number, { child: HotChild; at: number }>();
  readonly #infants: FirstAnswers<HotChild>;
  readonly #failures: { index: number; error: ErrorData }[] = [];
  readonly #forkUs: number[] = [];

  constructor(
    readonly input: TaskInput<'hotfork'>,
    readonly emit: (event: TaskEvent) => void,
    custody: Int32Array,
  ) {
    this.#shim = new HotforkControl(input.port.controlFd, 'the template', custody);
    this.#queue = [...input.children];
    const { answerMs, firstEval, seal = false } = input;
    this.#infants = new FirstAnswers({
      answerMs,
      seal,
      emit,
      fail: (child, error) => this.#fail(child, error),
      ...(firstEval === undefined ? {} : { firstEval }),
    });
  }

  run(): TaskOutput<'hotfork'> {
    const { controlFd } = this.input.port;
    while (this.#queue.length > 0 || this.#requested.size > 0 || this.#infants.size > 0) {
      this.#request();
      const waitFor = this.#infants.descriptors;
      if (this.#requested.size > 0) waitFor.push(controlFd);
      // A request that could not even be sent has failed all that was left: nothing will come.
      if (waitFor.length === 0) continue;
      for (const fd of native.pollReadable(waitFor, this.#infants.patience)) {
        if (fd === controlFd) this.#hear();
        else this.#infants.listen(fd);
      }
      this.#infants.expire();
    }
    return { failures: this.#failures, fork_us: this.#forkUs };
  }

  #request(): void {
    if (Atomics.load(this.input.cancel, 0) !== 0) {
      for (const child of this.#queue.splice(0)) this.#fail(child, new ForkdError('CANCELLED'));
    }
    while (this.#queue.length > 0 && this.#requested.size + this.#infants.size < WINDOW) {
      const child = this.#queue.shift() as HotChild;
      const at = performance.now();
      try {
        const id = withEntries(this.input.port, child, (entries, given) =>
          this.#shim.requestFork(child.index, this.#flags, entries, given, new Deadline(this.input.answerMs)),
        );
        this.#requested.set(id, { child, at });
      } catch (error) {
        this.#abandon(child, error);
      }
    }
  }

  get #flags(): number {
    return this.input.tied ? FORK_PIN | FORK_TIED : FORK_PIN;
  }

  /** A packet of the shim: a child, the end of a request, or a refusal. */
  #hear(): void {
    try {
      const message = this.#shim.receive(new Deadline(this.input.answerMs));
      const request = this.#requested.get(message.id);
      if (message.type === Say.done) this.#requested.delete(message.id);
      if (message.type !== Say.child) return;
      const born = childOf(message);
      if (!request)
        throw new ForkdError('HOTFORK_BROKEN', { vm: 'the template', reason: 'nobody asked for this child' });
      this.#forkUs.push(born.fork_us);
      this.#greet(request.child, request.at, born);
    } catch (error) {
      // Requests are answered in order, and a template that cannot make this child cannot make the next.
      const all = [...this.#requested.values()].map(({ child }) => child);
      this.#requested.clear();
      for (const child of all) this.#abandon(child, error);
    }
  }

  #greet(child: HotChild, requestedAt: number, forked: ForkedChild): void {
    const vmm = bornOf(forked, child.index, child.name, this.input.port);
    this.emit({ type: 'spawned', vmm });
    this.#infants.greet(child, vmm.agentFd, requestedAt, performance.now());
  }

  /** The template is of no more use: this child and those that wait fail for the same reason. */
  #abandon(child: HotChild, error: unknown): void {
    for (const each of [child, ...this.#queue.splice(0)])
      this.#failures.push({ index: each.index, error: ForkdError.from(error).toData() });
  }

  #fail(child: HotChild, error: unknown): void {
    this.#failures.push({ index: child.index, error: explain(error, child.name, child.consolePath).toData() });
  }
}
