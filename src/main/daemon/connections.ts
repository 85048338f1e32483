/** Connections of the port: how many there may be, in all and from one address. One too many gets an answer, and is closed. */
import type { Socket } from 'node:net';
import { Server as TlsServer } from 'node:https';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import type { Listener } from './listener.js';

export class Connections {
  readonly #over = new WeakSet<Socket>();
  readonly #from = new Map<string, number>();
  #open = 0;

  constructor(
    readonly max: number = limits.connectionsMax,
    readonly maxPerAddress: number = limits.connectionsPerAddressMax,
  ) {}

  watch(server: Listener): void {
    // Beyond that they are closed unheard: also what never gets as far as a request takes a descriptor.
    server.maxConnections = 2 * this.max;
    server.on(server instanceof TlsServer ? 'secureConnection' : 'connection', (socket: Socket) => this.#count(socket));
  }

  /** Throws CONNECTIONS_FULL for a request on one too many. */
  require(socket: Socket): void {
    if (this.#over.has(socket)) throw new ForkdError('CONNECTIONS_FULL');
  }

  #count(socket: Socket): void {
    const { remoteAddress: from = '' } = socket;
    const here = (this.#from.get(from) ?? 0) + 1;
    if (++this.#open > this.max || here > this.maxPerAddress) this.#over.add(socket);
    this.#from.set(from, here);
    socket.once('close', () => {
      this.#open--;
      const left = (this.#from.get(from) ?? 1) - 1;
      if (left > 0) this.#from.set(from, left);
      else this.#from.delete(from);
    });
  }
}
