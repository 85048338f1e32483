/** An image of a running Docker engine, by the engine's HTTP interface on its Unix socket: `GET /images/NAME/get` is a `docker save`. */
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { parseReference } from '../registry/reference.js';

/** As skopeo and podman call it. */
export const DOCKER_PREFIX = 'docker-daemon:';

const SOCKET = '/var/run/docker.sock';
/** The engine reads all layers before the first byte of some of them. */
const IDLE_MS = 120_000;
const ANSWER_MAX_BYTES = 64 * 1024;

export interface DockerHooks {
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

/** Saves an image into `work` and returns the archive's path. Throws IMAGE_NOT_FOUND, IMAGE_UNSUPPORTED, an Error with the reason, CANCELLED. */
export const saveFromDocker = async (
  image: string,
  work: string,
  { signal, onProgress }: DockerHooks = {},
): Promise<string> => {
  const name = image.slice(DOCKER_PREFIX.length);
  const missing = (reason: string, cause?: unknown) => new ForkdError('IMAGE_NOT_FOUND', { image, reason }, cause);
  if (!parseReference(name)) throw missing(`'${name}' is not the name of an image`);
  const socketPath = socketOf(process.env['DOCKER_HOST'], image);
  const { Agent, request } = await import('undici');
  const dispatcher = new Agent({ connect: { socketPath }, headersTimeout: IDLE_MS, bodyTimeout: IDLE_MS });
  const path = join(work, 'docker.tar');
  try {
    const encoded = name.split('/').map(encodeURIComponent).join('/');
    const url = `http://docker/images/${encoded}/get`;
    const reply = await request(url, { dispatcher, ...(signal ? { signal } : {}) }).catch((error: unknown) => {
      if (signal?.aborted) throw new ForkdError('CANCELLED');
      throw missing(`no Docker engine answers at ${socketPath}: ${reasonOf(error)}`, error);
    });
    if (reply.statusCode !== 200) throw missing(`the Docker engine says: ${await said(reply.body)}`);
    const out = createWriteStream(path, { flags: 'wx' });
    let bytes = 0;
    try {
      for await (const part of reply.body as AsyncIterable<Buffer>) {
        bytes += part.length;
        if (bytes > limits.imageContentMaxBytes) throw new Error('it is larger than an image can be');
        onProgress?.(bytes, 0);
        if (!out.write(part)) await once(out, 'drain');
      }
      out.end();
      await finished(out);
    } finally {
      out.destroy();
    }
    return path;
  } catch (error) {
    await rm(path, { force: true });
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await dispatcher.destroy();
  }
};

/** DOCKER_HOST as Docker's own command reads it, as far as it is a socket of this host. */
const socketOf = (host: string | undefined, image: string): string => {
  if (host === undefined || host === '') return SOCKET;
  if (host.startsWith('unix://')) return host.slice('unix://'.length);
  throw new ForkdError('IMAGE_UNSUPPORTED', { image, reason: `DOCKER_HOST is ${host}, and only unix:// is spoken` });
};

/** `{"message": "No such image: ..."}`, or the beginning of whatever it is. */
const said = async (body: AsyncIterable<Buffer>): Promise<string> => {
  let text = '';
  for await (const part of body) {
    text += part.toString('utf8');
    if (text.length > ANSWER_MAX_BYTES) break;
  }
  try {
    const { message } = JSON.parse(text) as { message?: unknown };
    if (typeof message === 'string') return message.replace(/[^\x20-\x7e]+/g, ' ').slice(0, 300);
  } catch {
    // Shown as it is.
  }
  return text.replace(/[^\x20-\x7e]+/g, ' ').slice(0, 300);
};
