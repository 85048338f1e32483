/** Answers that are server-sent events (the HTML standard's `text/event-stream`), which a browser's EventSource can read too. */
import { PassThrough } from 'node:stream';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { limits } from '../../contract/limits.js';

/** A comment now and then, so that what lies between does not take the connection for dead. */
const BEAT_MS = 15_000;

export interface EventStream {
  /** False when the listener has not taken what was told before. */
  tell(event: { id?: number; name: string; data: object }): boolean;
  /** Settles when there is room again, or when it is over. */
  room(): Promise<void>;
  end(): void;
  /** Without what was not taken. */
  cut(): void;
  onClose(work: () => void): void;
}

const streams = new WeakMap<FastifyInstance, Set<PassThrough>>();

/** Begins the answer. */
export const openEventStream = (app: FastifyInstance, request: FastifyRequest, reply: FastifyReply): EventStream => {
  const open = streams.get(app) ?? new Set<PassThrough>();
  streams.set(app, open);
  const stream = new PassThrough({ highWaterMark: limits.listenerBacklogBytes });
  open.add(stream);
  stream.write(': forkd\n\n');
  const beat = setInterval(() => stream.write(': beat\n\n'), BEAT_MS).unref();
  stream.on('close', () => {
    clearInterval(beat);
    open.delete(stream);
    socket.off('close', cut);
  });
  stream.on('finish', () => clearInterval(beat));
  const { socket } = request.raw;
  const cut = () => void stream.destroy();
  socket.on('close', cut);
  // It may have gone while the guest was asked.
  if (socket.destroyed) cut();
  void reply
    .header('content-type', 'text/event-stream; charset=utf-8')
    .header('cache-control', 'no-cache')
    .send(stream);
  return {
    tell: ({ id, name, data }) => {
      const number = id === undefined ? '' : `id: ${id}\n`;
      return stream.writable && stream.write(`${number}event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
    },
    room: () =>
      new Promise((resolve) => {
        if (!stream.writable || !stream.writableNeedDrain) return resolve();
        const done = () => {
          stream.off('drain', done).off('close', done);
          resolve();
        };
        stream.on('drain', done).on('close', done);
      }),
    end: () => stream.end(),
    cut,
    onClose: (work) => void stream.on('close', work),
  };
};

/** They may never end by themselves, and a server that ends waits for what is under way. */
export const closeEventStreams = (app: FastifyInstance): void => {
  for (const stream of streams.get(app) ?? []) stream.end();
};
