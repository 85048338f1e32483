import type { MessagePort } from 'node:worker_threads';
import { expose } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { ForkdError } from '../../contract/errors.js';
import type { RemoteFetcher, RemoteJob, RemoteOutcome } from '../../contract/remote-role.js';
import { Http } from '../../http/client.js';
import { native } from '../../native/binding.js';
import { fetchFrames } from '../remote/fetch.js';
import { Landing } from '../remote/landing.js';

/** Frames that somebody waits for, fetched at once; and bytes of one request ahead of need: a fault must find the link free soon. */
const URGENT_MAX = 4;
const AHEAD_BYTES = 2 * 1024 * 1024;
const AHEAD_MAX = 2;

const [AWAY, LOST] = [0, 2] as const;

class Fetcher {
  readonly http: Http;
  readonly landing: Landing;
  /** Frames on their way. */
  readonly #coming = new Set<number>();
  /** Items that somebody waits for. */
  readonly #asked = new Set<number>();
  readonly #lost = new Set<number>();
  /** Frames to bring before anybody waits for them, in order. */
  #ahead: number[] = [];
  #urgent: number[] = [];
  #running = { urgent: 0, ahead: 0 };
  #fetched = 0;
  #failure: ForkdError | undefined;
  #whole: { resolve: (outcome: RemoteOutcome) => void; promise: Promise<RemoteOutcome> } | undefined;
  readonly #abort = new AbortController();

  constructor(readonly job: RemoteJob) {
    this.http = new Http(job.patience);
    this.landing = new Landing(job);
    this.#ahead = this.landing.framesOf(job.workingSet);
  }

  run(): void {
    void this.#listen();
    this.#go();
  }

  async #listen(): Promise<void> {
    for (;;) {
      const items = await native.arrivalsAskedAside(this.job.arrivals);
      if (items.length === 0) return;
      for (const item of items) this.#asked.add(item);
      const ahead = new Set(this.#whole ? [] : this.#ahead);
      // What comes anyway in a moment would only come twice.
      for (const frame of this.landing.framesOf(items)) if (!ahead.has(frame)) this.#urgent.push(frame);
      this.#go();
    }
  }

  /** What was given up before is tried again. */
  fetchAll(): Promise<RemoteOutcome> {
    if (!this.#whole) {
      let resolve: (outcome: RemoteOutcome) => void = () => undefined;
      const promise = new Promise<RemoteOutcome>((done) => {
        resolve = done;
      });
      this.#whole = { promise, resolve };
      const all = Array.from({ length: this.landing.frames }, (_, frame) => frame);
      this.#ahead = [...new Set([...this.#ahead, ...all])];
      this.retry();
    }
    const { promise } = this.#whole;
    this.#go();
    return promise;
  }

  /** Starts what may be started. */
  #go(): void {
    if (this.#abort.signal.aborted) return;
    while (this.#running.urgent < URGENT_MAX) {
      const frame = this.#next(this.#urgent);
      if (frame === undefined) break;
      this.#start('urgent', [frame]);
    }
    // The working set lies together and is wanted in its order: one request. The rest leaves room for who waits.
    const [lanes, bytesMax] = this.#whole ? [AHEAD_MAX, AHEAD_BYTES] : [1, Number.POSITIVE_INFINITY];
    while (this.#running.ahead < lanes) {
      const frame = this.#next(this.#ahead);
      if (frame === undefined) break;
      const group = [frame];
      let bytes = this.landing.stored(frame);
      while (this.#ahead[0] === (group.at(-1) as number) + 1 && bytes < bytesMax) {
        const more = this.#next(this.#ahead);
        if (more === undefined) break;
        if (more !== (group.at(-1) as number) + 1) {
          this.#ahead.unshift(more);
          break;
        }
        group.push(more);
        bytes += this.landing.stored(more);
      }
      this.#start('ahead', group);
    }
    const idle = this.#running.ahead === 0 && this.#running.urgent === 0;
    if (this.#whole && idle && this.#ahead.length === 0) {
      this.#whole.resolve(this.#failure ? { ok: false, error: this.#failure.toData() } : { ok: true });
      this.#whole = undefined;
    }
  }

  #next(frames: number[]): number | undefined {
    for (let frame = frames.shift(); frame !== undefined; frame = frames.shift())
      if (!this.landing.isHere(frame) && !this.#coming.has(frame)) return frame;
    return undefined;
  }

  #start(kind: 'urgent' | 'ahead', frames: number[]): void {
    this.#running[kind]++;
    for (const frame of frames) this.#coming.add(frame);
    const { job, landing } = this;
    void fetchFrames(this.http, job, frames, landing, this.#abort.signal, (frame, stored) => {
      this.#fetched += stored.length;
      for (const item of landing.land(frame, stored)) this.#asked.delete(item);
      this.#coming.delete(frame);
    })
      .catch((error: unknown) => this.#fail(ForkdError.from(error)))
      .finally(() => {
        for (const frame of frames) this.#coming.delete(frame);
        this.#running[kind]--;
        this.#go();
      });
  }

  /** Who waits must not wait for ever, and is told why. */
  #fail(error: ForkdError): void {
    if (this.#abort.signal.aborted) return;
    this.#failure = error;
    const text = Buffer.from(error.message).subarray(0, this.job.problem.length - 1);
    this.job.problem.fill(0);
    this.job.problem.set(text);
    this.#ahead = [];
    this.#urgent = [];
    const items = this.landing.missing(this.#asked);
    for (const item of items) this.#lost.add(item);
    this.#asked.clear();
    native.arrivalsSettle(this.job.arrivals, items, LOST);
  }

  retry(): void {
    native.arrivalsSettle(this.job.arrivals, Uint32Array.from(this.#lost), AWAY);
    this.#lost.clear();
    this.#failure = undefined;
  }

  get stats() {
    return { fetched_bytes: this.#fetched, here_bytes: this.landing.hereBytes, bytes: this.job.bytes };
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    native.arrivalsClose(this.job.arrivals);
    await this.http.close();
  }
}

/** Stays with one snapshot until it is told to stop. */
export const serveRemote = (port: MessagePort): Promise<void> =>
  new Promise((resolve) => {
    let fetcher: Fetcher | undefined;
    const server: RemoteFetcher = {
      start: (job) => {
        fetcher = new Fetcher(job);
        fetcher.run();
      },
      fetchAll: async () => (await fetcher?.fetchAll()) ?? { ok: true },
      retry: () => fetcher?.retry(),
      stats: () => fetcher?.stats ?? { fetched_bytes: 0, here_bytes: 0, bytes: 0 },
      stop: () => {
        void fetcher?.stop();
        // After this turn, so that comlink can still send the answer.
        setImmediate(() => {
          port.close();
          resolve();
        });
      },
    };
    expose(server, nodeEndpoint(port));
  });
