/** One JSON line for each request, in a file that is opened anew on SIGHUP. */
import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { ForkdError, reasonOf } from '../../contract/errors.js';

export interface AuditLine {
  method: string;
  /** Without the query. */
  path: string;
  status: number;
  latency_us: number;
  ua: string;
  remote: string;
  request_id: string;
  /** Id, tag or name that it was about. */
  object?: string;
  /** `ok`, or the code of the failure. */
  outcome: string;
}

export class Audit {
  #fd: number;

  /** Throws DAEMON_REFUSED. */
  constructor(
    readonly path: string,
    readonly onProblem: (reason: string) => void,
  ) {
    try {
      mkdirSync(dirname(path), { recursive: true });
      this.#fd = openSync(path, 'a', 0o600);
    } catch (error) {
      throw new ForkdError('DAEMON_REFUSED', { reason: `cannot open the audit log: ${reasonOf(error)}` }, error);
    }
  }

  /** No request: a guest tried to reach something. */
  denied(object: string, to: string): void {
    this.#write({ event: 'network.denied', object, to });
  }

  /** Nor here: a guest was held in something. */
  held(object: string, kind: string): void {
    this.#write({ event: 'sandbox.held', object, kind });
  }

  write(line: AuditLine): void {
    this.#write(line);
  }

  #write(line: object): void {
    const ts = new Date().toISOString().replace(/\.\d+Z$/, 'Z');
    try {
      writeSync(this.#fd, `${JSON.stringify({ ts, ...line })}\n`);
    } catch (error) {
      this.onProblem(`cannot write the audit log: ${reasonOf(error)}`);
    }
  }

  /** For log rotation. When the new file cannot be opened, the old one goes on being written. */
  reopen(): void {
    try {
      const fd = openSync(this.path, 'a', 0o600);
      closeSync(this.#fd);
      this.#fd = fd;
    } catch (error) {
      this.onProblem(`cannot reopen the audit log: ${reasonOf(error)}`);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}
