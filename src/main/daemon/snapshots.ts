/** The tags as the API shows them: those on disk, those that are being written, and those whose writing failed. */
import { ForkdError } from '../../contract/errors.js';
import type { SnapshotBody } from '../../contract/rest.js';
import type { SnapshotSummary } from '../../contract/snapshot.js';
import type { Store } from '../store/store.js';
import type { Events } from './events.js';
import type { Journal } from './journal.js';
import { storedTag } from './tags.js';

/** Failed ones that are remembered, so that a client that polls hears of it. */
const FAILED_MAX = 100;

/** What is known of a snapshot beside what is on disk. */
export type Facts = Omit<SnapshotBody, 'tag' | 'dir' | 'created_at_unix' | 'status' | 'bootable' | 'warning'>;

interface Known {
  /** A tag that was made again is another snapshot. */
  created_at_unix: number;
  facts: Facts;
}

export class Snapshots {
  readonly #pending = new Map<string, SnapshotBody>();
  readonly #known = new Map<string, Known>();

  constructor(
    readonly store: Store,
    readonly events: Events,
    readonly journal: Journal,
  ) {
    for (const [tag, known] of journal.entries<Known>('snapshots')) this.#known.set(tag, known);
  }

  writing(body: SnapshotBody): void {
    this.#pending.set(body.tag, body);
    this.events.snapshot('writing', body);
  }

  /** Returns how it is listed from now on. */
  async written(tag: string, facts: Facts): Promise<SnapshotBody> {
    const known: Known = { created_at_unix: this.store.manifest(tag).created_at_unix, facts };
    await this.journal.put('snapshots', tag, known);
    this.#pending.delete(tag);
    this.#known.set(tag, known);
    const body = this.one(tag);
    this.events.snapshot('ready', body);
    return body;
  }

  /** A tag means what `from` does; what it meant has got another name, if `kept` is one, and keeps what was known of it. */
  async promoted(tag: string, from: string, kept: string | undefined): Promise<void> {
    if (kept !== undefined) await this.written(kept, this.#known.get(tag)?.facts ?? {});
    await this.written(tag, this.#known.get(from)?.facts ?? {});
  }

  failed(tag: string, warning: string): void {
    const body = this.#pending.get(tag);
    if (!body) return;
    const failed: SnapshotBody = { ...body, status: 'failed', bootable: false, warning };
    this.#pending.set(tag, failed);
    this.events.snapshot('failed', failed);
    const all = [...this.#pending.values()].filter(({ status }) => status === 'failed');
    if (all.length > FAILED_MAX && all[0]) this.#pending.delete(all[0].tag);
  }

  forgetFailed(tag: string): void {
    if (this.#pending.get(tag)?.status === 'failed') this.#pending.delete(tag);
  }

  /** Throws SNAPSHOT_NOT_FOUND and what Store.remove throws. */
  remove(tag: string, options: { cascade?: boolean; force?: boolean } = {}): string[] {
    const wasFailed = this.#pending.get(tag)?.status === 'failed' && this.#pending.delete(tag);
    const removed = this.store.exists(tag) || !wasFailed ? this.store.remove(tag, options) : [tag];
    for (const one of removed) {
      // What is left of it after a crash means nothing: a tag made again has another time.
      if (this.#known.delete(one)) void this.journal.remove('snapshots', one).catch(() => undefined);
      this.events.snapshotGone(one);
    }
    return removed;
  }

  /** Throws SNAPSHOT_NOT_READY for a tag that is being written, or whose writing failed and that is not there. */
  requireReady(tag: string): void {
    const body = this.#pending.get(tag);
    if (!body || (body.status === 'failed' && this.store.exists(tag))) return;
    const reason = body.status === 'failed' ? `writing it failed (${body.warning ?? ''})` : 'it is still being written';
    throw new ForkdError('SNAPSHOT_NOT_READY', { tag, reason });
  }

  /** By tag. */
  all(): SnapshotBody[] {
    const found = new Map(this.store.list().map((one) => [one.tag, this.#bodyOf(one)]));
    // One that failed must not hide what was made under its name since.
    for (const body of this.#pending.values())
      if (body.status === 'writing' || !found.has(body.tag)) found.set(body.tag, body);
    return [...found.values()].sort((a, b) => (a.tag < b.tag ? -1 : 1));
  }

  /** Throws SNAPSHOT_NOT_FOUND. */
  one(text: string): SnapshotBody {
    const tag = storedTag(this.store, text);
    const found = this.all().find((each) => each.tag === tag);
    if (!found) throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag });
    return found;
  }

  /** Tags on disk; what is being written is not counted. */
  get count(): number {
    return this.store.tags().length;
  }

  #bodyOf(one: SnapshotSummary): SnapshotBody {
    const known = this.#known.get(one.tag);
    return {
      tag: one.tag,
      dir: one.dir,
      created_at_unix: one.created_at_unix,
      status: one.problem === undefined ? 'ready' : 'failed',
      bootable: one.problem === undefined,
      ...(known?.created_at_unix === one.created_at_unix ? known.facts : {}),
      ...(one.problem === undefined ? {} : { warning: one.problem }),
    };
  }
}
