/** The bearer token: read from a file, read again when the file changes, compared in constant time. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';

/** Why a token may not be used, or undefined. */
export const tokenProblem = (token: string): string | undefined => {
  if (token === '') return 'the token file is empty';
  if (/^(REPLACE_ME|CHANGE_ME)/.test(token)) return 'the token file still holds a placeholder';
  if (Buffer.byteLength(token) < limits.tokenMinBytes) return `the token is shorter than ${limits.tokenMinBytes} bytes`;
  return undefined;
};

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

/** Constant-time, whatever the lengths. */
export const sameToken = (a: string, b: string): boolean => timingSafeEqual(digest(a), digest(b));

export class Tokens {
  #token: string;
  #stamp: string;

  /** Throws DAEMON_REFUSED for a file that cannot be read or holds a weak token. */
  constructor(
    readonly path: string,
    readonly onProblem: (reason: string) => void,
  ) {
    try {
      this.#stamp = stampOf(path);
      this.#token = readFileSync(path, 'utf8').trim();
    } catch (error) {
      throw new ForkdError('DAEMON_REFUSED', { reason: `cannot read the token file: ${reasonOf(error)}` }, error);
    }
    const reason = tokenProblem(this.#token);
    if (reason !== undefined) throw new ForkdError('DAEMON_REFUSED', { reason });
  }

  /** Throws TOKEN_MISSING, TOKEN_WRONG. */
  require(header: string | undefined): void {
    this.#reload();
    const given = header?.startsWith('Bearer ') ? header.slice(7).trim() : '';
    if (given === '') throw new ForkdError('TOKEN_MISSING');
    if (!sameToken(given, this.#token)) throw new ForkdError('TOKEN_WRONG');
  }

  /** A changed file that holds no good token changes nothing: a half-written one must not open the door or lock everyone out. */
  #reload(): void {
    try {
      const stamp = stampOf(this.path);
      if (stamp === this.#stamp) return;
      this.#stamp = stamp;
      const token = readFileSync(this.path, 'utf8').trim();
      const reason = tokenProblem(token);
      if (reason === undefined) this.#token = token;
      else this.onProblem(`the old token stays: ${reason}`);
    } catch (error) {
      this.onProblem(`the old token stays: ${reasonOf(error)}`);
    }
  }
}

const stampOf = (path: string): string => {
  const { ino, size, mtimeMs, ctimeMs } = statSync(path);
  return `${ino} ${size} ${mtimeMs} ${ctimeMs}`;
};
