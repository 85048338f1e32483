/**
 * Tells a service manager how the daemon is, by the protocol of sd_notify(3): lines in a datagram to $NOTIFY_SOCKET. Without
 * such a manager it tells nobody. A manager that set a watchdog hears from the event loop twice in its time.
 */
import { native } from '../../native/binding.js';

export class Supervisor {
  readonly #socket: string | undefined;
  readonly #watchdogMs: number;
  #beat: NodeJS.Timeout | undefined;

  /** Takes what it needs out of `env`: it is for this process, and not for those that it starts. */
  constructor(
    env: NodeJS.ProcessEnv,
    readonly onProblem: (reason: string) => void,
  ) {
    const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = env;
    this.#socket = NOTIFY_SOCKET || undefined;
    const isMine = WATCHDOG_PID === undefined || Number(WATCHDOG_PID) === process.pid;
    this.#watchdogMs = isMine ? Number(WATCHDOG_USEC ?? 0) / 1000 : 0;
    for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[name];
  }

  ready(status: string): void {
    this.#tell('READY=1', `STATUS=${status}`);
    if (this.#beat || !(this.#watchdogMs > 0) || this.#socket === undefined) return;
    this.#beat = setInterval(() => this.#tell('WATCHDOG=1'), this.#watchdogMs / 2).unref();
  }

  reloading(): void {
    // For Type=notify-reload, which has to know which signal this is the answer to.
    this.#tell('RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
  }

  stopping(): void {
    this.#tell('STOPPING=1', 'STATUS=draining');
  }

  #tell(...lines: string[]): void {
    if (this.#socket === undefined) return;
    try {
      native.datagramSend(this.#socket, lines.join('\n'));
    } catch (error) {
      this.onProblem(`cannot tell the service manager: ${String(error)}`);
    }
  }
}
