/** Encrypted packs: the whole file in age's format (age-encryption.org/v1), for which there are tools everywhere. */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { ReadableStream, TransformStream } from 'node:stream/web';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { invalid } from './format.js';

export interface ByteSink {
  /** `part` may change after it. */
  write(part: Uint8Array): Promise<void>;
}

const MAGIC = 'age-encryption.org/v1\n';
/** Begins the last line of a header. */
const HEADER_END = '\n--- ';

/** Loaded on first use: most commands need none of it. */
const library = () => import('age-encryption');

/** `age1...`, or the name of a file with such lines. Throws KEY_INVALID. */
export const readRecipients = (texts: string[]): Promise<string[]> =>
  readAll(texts, 'age1', async (line) => {
    const { Encrypter } = await library();
    new Encrypter().addRecipient(line);
  });

/** Files with lines `AGE-SECRET-KEY-...`, as age-keygen writes them. Throws KEY_INVALID. */
export const readIdentities = (paths: string[]): Promise<string[]> =>
  readAll(paths, undefined, async (line) => {
    const { Decrypter } = await library();
    new Decrypter().addIdentity(line);
  });

const readAll = async (
  texts: string[],
  literal: string | undefined,
  check: (line: string) => Promise<void>,
): Promise<string[]> => {
  const all = await Promise.all(
    texts.map(async (text) => {
      try {
        const isLiteral = literal !== undefined && text.startsWith(literal);
        const lines = (isLiteral ? text : readFileSync(text, 'utf8')).split('\n').map((line) => line.trim());
        const keys = lines.filter((line) => line !== '' && !line.startsWith('#'));
        if (keys.length === 0) throw new Error('there is none in it');
        for (const key of keys) await check(key);
        return keys;
      } catch (error) {
        throw new ForkdError('AGE_KEY_INVALID', { path: text, reason: reasonOf(error) }, error);
      }
    }),
  );
  return all.flat();
};

/** A sink in front of another: what is written to it arrives there encrypted, the end of it when `finish` has returned. */
export class EncryptingSink implements ByteSink {
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #arrived: Promise<void>;

  private constructor(writer: WritableStreamDefaultWriter<Uint8Array>, arrived: Promise<void>) {
    this.#writer = writer;
    this.#arrived = arrived;
    arrived.catch((error) => writer.abort(error)).catch(() => undefined);
  }

  static async to(sink: ByteSink, recipients: string[]): Promise<EncryptingSink> {
    const { Encrypter } = await library();
    const encrypter = new Encrypter();
    for (const recipient of recipients) encrypter.addRecipient(recipient);
    const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
    const out = await encrypter.encrypt(readable as globalThis.ReadableStream<Uint8Array>);
    const pump = async () => {
      for await (const part of out as unknown as AsyncIterable<Uint8Array>) await sink.write(part);
    };
    return new EncryptingSink(writable.getWriter(), pump());
  }

  async write(part: Uint8Array): Promise<void> {
    // The caller's memory changes before the cipher has come to it.
    await this.#writer.write(Uint8Array.from(part));
  }

  async finish(): Promise<void> {
    await this.#writer.close();
    await this.#arrived;
  }
}

/** Is it encrypted? Throws PACK_INVALID when its header is none that can be read. */
export const isEncrypted = (path: string): boolean => {
  const head = headOf(path);
  if (!head.startsWith(MAGIC)) return false;
  // Its reader would look for the end of the header in all of the file, and try each of any number of recipients.
  if (!head.includes(HEADER_END)) throw invalid(path, 'the header of its encryption is too large, or cut short');
  return true;
};

/** What is in an encrypted pack. Throws PACK_ENCRYPTED when none of the identities opens it, PACK_INVALID; while it is read, an Error for what is damaged. */
export const decrypted = async (
  path: string,
  input: AsyncIterable<Buffer>,
  identities: string[],
): Promise<AsyncIterable<Uint8Array>> => {
  const encrypted = (reason: string, cause?: unknown) => new ForkdError('PACK_ENCRYPTED', { path, reason }, cause);
  if (identities.length === 0) throw encrypted('');
  const { Decrypter } = await library();
  const decrypter = new Decrypter();
  for (const identity of identities) decrypter.addIdentity(identity);
  const stream = ReadableStream.from(input) as unknown as globalThis.ReadableStream<Uint8Array>;
  const content = await decrypter.decrypt(stream).catch((error: unknown) => {
    const reason = reasonOf(error);
    throw /no identity matched/.test(reason)
      ? encrypted(', and not for this identity', error)
      : invalid(path, reason, error);
  });
  return content as unknown as AsyncIterable<Uint8Array>;
};

const headOf = (path: string): string => {
  const fd = openSync(path, 'r');
  try {
    const head = Buffer.alloc(limits.ageHeaderMaxBytes);
    return head.toString('latin1', 0, readSync(fd, head, 0, head.length, 0));
  } finally {
    closeSync(fd);
  }
};
