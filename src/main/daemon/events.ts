/**
 * What happens, told to whoever listens: the newest are kept, so that a listener that comes back misses nothing.
 * A listener that does not read is let go before it costs memory.
 */
import { EventEmitter } from 'node:events';
import type { EventBody, SandboxBody, SnapshotBody, WorkspaceBody } from '../../contract/rest.js';

/** Kept for listeners that come back. */
const KEPT = 1000;

export class Events {
  readonly #emitter = new EventEmitter().setMaxListeners(0);
  readonly #kept: EventBody[] = [];
  #last = 0;

  sandbox(action: 'created' | 'died' | 'deleted', sandbox: SandboxBody): void {
    this.#tell({ kind: 'sandbox', action, object: sandbox.id, sandbox });
  }

  snapshot(action: 'writing' | 'ready' | 'failed', snapshot: SnapshotBody): void {
    this.#tell({ kind: 'snapshot', action, object: snapshot.tag, snapshot });
  }

  snapshotGone(tag: string): void {
    this.#tell({ kind: 'snapshot', action: 'deleted', object: tag });
  }

  workspace(action: 'created' | 'suspended' | 'resumed' | 'stale' | 'deleted', workspace: WorkspaceBody): void {
    this.#tell({ kind: 'workspace', action, object: workspace.name, workspace });
  }

  /** Events after `after` that are kept still. */
  since(after: number): EventBody[] {
    return this.#kept.filter(({ id }) => id > after);
  }

  /** Returns how to stop. */
  listen(onEvent: (event: EventBody) => void): () => void {
    this.#emitter.on('event', onEvent);
    return () => void this.#emitter.off('event', onEvent);
  }

  get listeners(): number {
    return this.#emitter.listenerCount('event');
  }

  #tell(what: Omit<EventBody, 'id' | 'at_unix_ms'>): void {
    const event: EventBody = { id: ++this.#last, at_unix_ms: Date.now(), ...what };
    this.#kept.push(event);
    if (this.#kept.length > KEPT) this.#kept.shift();
    this.#emitter.emit('event', event);
  }
}
