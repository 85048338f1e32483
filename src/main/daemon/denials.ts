/** What guests tried to reach and were not let reach, and what they were held in: told in the log and in the audit log, each thing of each sandbox once. */
import { setImmediate as others } from 'node:timers/promises';
import type { FastifyBaseLogger } from 'fastify';
import type { Held } from '../../contract/held.js';
import type { Denied } from '../../contract/network.js';
import type { Audit } from './audit.js';
import type { Registry } from './registry.js';

/** The kernel remembers what it denied; this is how soon it is told. */
const LOOK_MS = 2000;
/** Each look reads files of the kernel: requests have their turn between so many. */
const AT_ONCE = 16;

export class Denials {
  readonly #told = new Map<string, Set<string>>();
  readonly #timer: NodeJS.Timeout;
  #isLooking = false;

  constructor(
    readonly registry: Registry,
    readonly audit: Audit,
    readonly log: FastifyBaseLogger,
  ) {
    this.#timer = setInterval(() => void this.look(), LOOK_MS).unref();
    // One that lives shorter than that is asked when it ends.
    registry.events.listen(({ kind, action, object, sandbox }) => {
      if (kind !== 'sandbox' || action === 'created') return;
      this.#tell(object, sandbox?.network?.denied ?? [], sandbox?.held ?? []);
      if (action === 'deleted') this.#told.delete(object);
    });
  }

  async look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    try {
      for (const [i, { sandbox }] of this.registry.list().entries()) {
        if (i % AT_ONCE === AT_ONCE - 1) await others();
        if (sandbox.state !== 'dead') this.#tell(sandbox.id, sandbox.birth.network?.denied() ?? [], sandbox.held());
      }
    } finally {
      this.#isLooking = false;
    }
  }

  #tell(id: string, denied: Denied[], held: Held[]): void {
    const told = this.#told.get(id) ?? new Set();
    for (const { to, count } of denied) {
      if (told.has(to)) continue;
      this.#told.set(id, told.add(to));
      this.log.warn({ sandbox: id, to, count }, 'not let through');
      this.audit.denied(id, to);
    }
    for (const { kind, what } of held) {
      if (told.has(kind)) continue;
      this.#told.set(id, told.add(kind));
      this.log.warn({ sandbox: id, kind, what }, 'held');
      this.audit.held(id, kind);
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
