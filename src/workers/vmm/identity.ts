import { ForkdError } from '../../contract/errors.js';
import type { ForkReceipt, ForkReply, ForkRequest } from '../../contract/guest.js';
import type { Deadline } from '../deadline.js';
import type { AgentPort } from './agent.js';

/**
 * The wall clock as the agent wants it. Read as late as possible: what passes until it arrives is the child's clock error. The clock
 * itself, not `performance.timeOrigin`, which knows of no step that it was set by since this process began, nor of a suspended host.
 */
export const clockNs = (): string => `${Date.now()}000000`;

export type Identity = Omit<ForkRequest, 'clock_ns'>;

/** The clock is behind by at most the round trip in which it was set; one longer than this is set again. */
const CLOCK_ROUND_TRIP_MS = 50;
/** On a host that is busy many round trips are long; one that is not comes soon. */
const CLOCK_ATTEMPTS = 25;

/** Gives a child its identity and returns the receipt. Fails closed: throws IDENTITY_FAILED when any step failed. */
export const takeIdentity = (agent: AgentPort, identity: Identity, deadline: Deadline): ForkReceipt => {
  const sent = performance.now();
  const request: ForkRequest = { ...identity, clock_ns: clockNs() };
  const receipt = receiptOf(agent.name, agent.call(request, deadline) as unknown as Partial<ForkReply>);
  correctClock(agent, sent, deadline);
  return receipt;
};

/** Sets the clock again, until it was set within a short round trip, when the message sent at `sentAt` took long. */
export const correctClock = (agent: AgentPort, sentAt: number, deadline: Deadline): void => {
  let sent = sentAt;
  for (let i = 0; i < CLOCK_ATTEMPTS && performance.now() - sent > CLOCK_ROUND_TRIP_MS; i++) {
    sent = performance.now();
    setClock(agent, deadline);
  }
};

export const setClock = (agent: AgentPort, deadline: Deadline): void => {
  agent.call({ action: 'clock', clock_ns: clockNs() }, deadline);
};

export const receiptOf = (vm: string, reply: Partial<ForkReply>): ForkReceipt => {
  const { receipt, error } = reply;
  const failed = isReceipt(receipt) ? failuresOf(receipt) : [];
  if (isReceipt(receipt) && error === undefined && failed.length === 0) return receipt;
  throw new ForkdError('IDENTITY_FAILED', { vm, failed: failed.join(', ') || error || 'no receipt' });
};

/** Steps of every agent that there has been, of which none may be left out. */
const STEPS = ['kernel_rng', 'clock', 'hostname', 'machine_id'];

const failuresOf = ({ done, failed }: ForkReceipt): string[] => [
  ...Object.entries(failed).map(([step, why]) => `${step} (${why})`),
  ...STEPS.filter((step) => !done.includes(step) && failed[step] === undefined).map(
    (step) => `${step} (it is not in the receipt)`,
  ),
];

/** What a guest calls one is kept, shown and counted on. */
const isReceipt = (value: unknown): value is ForkReceipt => {
  const { generation, done, skipped, failed, boot_id } = (value ?? {}) as Partial<ForkReceipt>;
  const areTexts = (texts: unknown[]) => texts.every((one) => typeof one === 'string');
  const isTable = (table: unknown) =>
    typeof table === 'object' && table !== null && !Array.isArray(table) && areTexts(Object.values(table));
  if (!Number.isSafeInteger(generation) || !Array.isArray(done) || typeof boot_id !== 'string') return false;
  return areTexts(done) && isTable(skipped) && isTable(failed);
};
