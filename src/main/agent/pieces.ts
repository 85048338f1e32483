/**
 * Output of a stream that has come and was not taken. Many small pieces are joined, and small ones are copied out of the read that they
 * came in: else a guest that sends single bytes would fill this host with a few hundred times as much.
 */

/** One piece of output. The `end` of a channel has no data. */
export interface Piece {
  channel: number;
  data: Uint8Array;
}

interface Slot extends Piece {
  /** What `data` is the begin of; more fits into it. */
  room?: Uint8Array;
}

const SMALL_BYTES = 1024;
const JOINED_BYTES = 8192;

export class Pieces {
  #slots: Slot[] = [];

  push(channel: number, data: Uint8Array): void {
    const last = this.#slots.at(-1);
    if (data.length === 0 || data.length > SMALL_BYTES) {
      this.#slots.push({ channel, data });
    } else if (last?.room && last.channel === channel && last.data.length + data.length <= last.room.length) {
      last.room.set(data, last.data.length);
      last.data = last.room.subarray(0, last.data.length + data.length);
    } else if (last) {
      const room = new Uint8Array(JOINED_BYTES);
      room.set(data);
      this.#slots.push({ channel, data: room.subarray(0, data.length), room });
    } else {
      this.#slots.push({ channel, data: data.slice() });
    }
  }

  shift(): Piece | undefined {
    const slot = this.#slots.shift();
    return slot && { channel: slot.channel, data: slot.data };
  }

  clear(): void {
    this.#slots = [];
  }
}
