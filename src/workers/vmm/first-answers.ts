/** Children between their first words and their first answers: identity taken, and the first eval when one was asked for. */
import { ForkdError } from '../../contract/errors.js';
import { type EvalReply, type ForkReceipt, type ForkReply, FrameType } from '../../contract/guest.js';
import type { TaskEvent } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { AgentPort } from './agent.js';
import { EVAL_ID, FORK_ID, firstWords } from './hot-child.js';
import { clockNs, correctClock, type Identity, receiptOf } from './identity.js';

export interface Newborn {
  index: number;
  name: string;
  identity: Identity;
}

interface Infant<C extends Newborn> {
  child: C;
  agent: AgentPort;
  requestedAt: number;
  bornAt: number;
  sentAt: number;
  deadline: Deadline;
  receipt?: ForkReceipt;
  firstResult?: EvalReply;
}

export interface FirstAnswersOptions<C extends Newborn> {
  answerMs: number;
  firstEval?: string;
  /** Seal each again when it has answered, before it is told of: it waits for another identity then. */
  seal?: boolean;
  emit: (event: TaskEvent) => void;
  fail: (child: C, error: unknown) => void;
}

export class FirstAnswers<C extends Newborn> {
  /** By the descriptor of their agent. */
  readonly #infants = new Map<number, Infant<C>>();

  constructor(readonly options: FirstAnswersOptions<C>) {}

  get size(): number {
    return this.#infants.size;
  }

  /** What to wait for. */
  get descriptors(): number[] {
    return [...this.#infants.keys()];
  }

  /** Milliseconds until the first of them is late. */
  get patience(): number {
    return Math.min(this.options.answerMs, ...[...this.#infants.values()].map(({ deadline }) => deadline.leftMs));
  }

  /** Sends the first words. `requestedAt` is when it was asked for, `bornAt` when it was there; both `performance.now()`. */
  greet(child: C, agentFd: number, requestedAt: number, bornAt: number): void {
    const deadline = new Deadline(this.options.answerMs);
    const agent = new AgentPort(agentFd, child.name);
    agent.expect(FORK_ID, 'fork');
    agent.expect(EVAL_ID, 'eval');
    const sentAt = performance.now();
    try {
      agent.write(firstWords({ ...child.identity, clock_ns: clockNs() }, this.options.firstEval), deadline);
      this.#infants.set(agentFd, { child, agent, requestedAt, bornAt, sentAt, deadline });
    } catch (error) {
      this.options.fail(child, error);
    }
  }

  /** There is something to read from one. */
  listen(fd: number): void {
    const infant = this.#infants.get(fd);
    if (!infant) return;
    const { child, agent, deadline } = infant;
    try {
      for (const frame of agent.read(deadline)) {
        if (frame.type !== FrameType.reply) continue;
        if (frame.id === FORK_ID) infant.receipt = receiptOf(child.name, agent.parse(frame) as Partial<ForkReply>);
        if (frame.id === EVAL_ID) infant.firstResult = agent.parse(frame) as unknown as EvalReply;
      }
      if (!infant.receipt || (this.options.firstEval !== undefined && !infant.firstResult)) return;
      this.#infants.delete(fd);
      correctClock(agent, infant.sentAt, deadline);
      if (this.options.seal) agent.call({ action: 'seal' }, deadline);
      this.#ready(infant, infant.receipt);
    } catch (error) {
      this.#infants.delete(fd);
      this.options.fail(child, error);
    }
  }

  /** Gives up those that are late. */
  expire(): void {
    for (const [fd, { child, deadline }] of this.#infants) {
      if (!deadline.passed) continue;
      this.#infants.delete(fd);
      const seconds = deadline.totalMs / 1000;
      this.options.fail(child, new ForkdError('AGENT_TIMEOUT', { target: child.name, seconds }));
    }
  }

  #ready({ child, requestedAt, bornAt, firstResult }: Infant<C>, receipt: ForkReceipt): void {
    const now = performance.now();
    const times = {
      spawn_ms: bornAt - requestedAt,
      load_ms: 0,
      first_answer_ms: now - bornAt,
      ready_at: performance.timeOrigin + now,
    };
    this.options.emit({ type: 'ready', index: child.index, receipt, times, ...(firstResult ? { firstResult } : {}) });
  }
}
