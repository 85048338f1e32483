/** The templates that are resident, one for each snapshot. A dead one is replaced; idle ones give way when memory runs short. */
import type { SnapshotManifest } from '../../contract/snapshot.js';
import { MiB } from '../../contract/units.js';
import type { Template } from './template.js';

/** With less available than this, templates that nobody uses are given up. */
export const MEMORY_FLOOR_BYTES = 512 * MiB;

interface Resident {
  template: Promise<Template>;
  /** The same, when it is there. */
  started?: Template;
  usedAt: number;
}

export class Templates {
  readonly #resident = new Map<string, Resident>();

  get count(): number {
    return this.#resident.size;
  }

  /** Children forked ahead that wait. */
  get spares(): number {
    return [...this.#resident.values()].reduce((sum, { started }) => sum + (started?.spares?.size ?? 0), 0);
  }

  has(manifest: SnapshotManifest): boolean {
    return this.#resident.has(keyOf(manifest));
  }

  /** The live template of a snapshot. Callers that come while it is being started wait for the same one. */
  async obtain(manifest: SnapshotManifest, start: () => Promise<Template>): Promise<Template> {
    const key = keyOf(manifest);
    const known = this.#resident.get(key);
    if (known) {
      known.usedAt = performance.now();
      const template = await known.template;
      if (template.isAlive) return template;
      await this.#drop(key, known);
      return this.obtain(manifest, start);
    }
    const resident: Resident = { template: start(), usedAt: performance.now() };
    this.#resident.set(key, resident);
    try {
      resident.started = await resident.template;
      return resident.started;
    } catch (error) {
      if (this.#resident.get(key) === resident) this.#resident.delete(key);
      throw error;
    }
  }

  /** Makes a branch the template of the snapshot that it was written as. */
  async adopt(manifest: SnapshotManifest, template: Template): Promise<void> {
    const key = keyOf(manifest);
    const known = this.#resident.get(key);
    this.#resident.set(key, { template: Promise.resolve(template), started: template, usedAt: performance.now() });
    if (known) await this.#drop(key, known);
  }

  /** Ends spares and retires idle templates, the longest unused first, when less than the floor is available. Returns how many templates. */
  async relieve(memoryAvailable: number): Promise<number> {
    if (memoryAvailable >= MEMORY_FLOOR_BYTES) return 0;
    const entries = [...this.#resident].sort(([, a], [, b]) => a.usedAt - b.usedAt);
    for (const [, { template }] of entries) await (await template.catch(() => undefined))?.spares?.drain();
    let retired = 0;
    for (const [key, resident] of entries) {
      const template = await resident.template.catch(() => undefined);
      if (!template?.isIdle) continue;
      await this.#drop(key, resident);
      retired++;
    }
    return retired;
  }

  /** Retires the idle templates of a tag. */
  async forget(tag: string): Promise<void> {
    for (const [key, resident] of [...this.#resident]) {
      if (!key.startsWith(`${tag} `)) continue;
      const template = await resident.template.catch(() => undefined);
      if (template?.isIdle) await this.#drop(key, resident);
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#resident].map(([key, resident]) => this.#drop(key, resident)));
  }

  async #drop(key: string, resident: Resident): Promise<void> {
    if (this.#resident.get(key) === resident) this.#resident.delete(key);
    const template = await resident.template.catch(() => undefined);
    await template?.retire();
  }
}

/** A tag that was made again is another snapshot. */
const keyOf = ({ tag, created_at_unix, vmstate, vmstate_bytes }: SnapshotManifest): string =>
  [tag, created_at_unix, vmstate, vmstate_bytes].join(' ');
