/** What an engine is for, which it is told once. */
import type { Patience } from '../contract/patience.js';

export interface EngineOptions {
  /** The engine outlives its requests: templates are warmed in full and kept. */
  resident?: boolean;
  /** Children of each template that are forked ahead of requests; 0 when absent. For resident engines. */
  spares?: number;
  /** Every memory is loaded whole before anything runs, whatever a request says. */
  eager?: boolean;
  /** Sandboxes live as long as somebody holds their descriptors (sandbox/keeper.ts), not as long as this process. */
  tied?: boolean;
  /** VMMs go to jail (host/jail.ts), each in a group of its own, unless this is false: only a measurement of what that costs wants it otherwise. */
  jail?: boolean;
  /** Nothing is forked where a part of that cannot be enforced. */
  strict?: boolean;
  /** As that of a request, which goes before. */
  onWeaker?: (reason: string) => void;
  /** With the servers of tags that were pulled lazily. */
  patience?: Partial<Patience>;
  /** Where the tags are; the user's own directory when absent. */
  snapshotRoot?: string;
  /** Unix socket at which sandboxes are offered to other processes; one in a work directory when absent, or too long. */
  agentSocket?: string;
}
