/** The codec of the framed agent protocol that guest.ts describes. Pure; used by the main thread and by workers. */
import { FRAME_HEADER_BYTES, FRAME_MAGIC, FrameType } from './guest.js';
import { limits } from './limits.js';

export interface Frame {
  type: number;
  id: number;
  payload: Uint8Array;
}

const utf8 = new TextEncoder();
const text = new TextDecoder();

export const encodeFrame = (type: number, id: number, body: object): Uint8Array =>
  encodePayload(type, id, utf8.encode(JSON.stringify(body)));

/** A frame whose payload is bytes. */
export const encodePayload = (type: number, id: number, payload: Uint8Array): Uint8Array => {
  const frame = new Uint8Array(FRAME_HEADER_BYTES + payload.length);
  const view = new DataView(frame.buffer);
  view.setUint16(0, FRAME_MAGIC, true);
  view.setUint8(2, type);
  view.setUint32(4, id, true);
  view.setUint32(8, payload.length, true);
  frame.set(payload, FRAME_HEADER_BYTES);
  return frame;
};

export const encodeRequest = (id: number, body: object): Uint8Array => encodeFrame(FrameType.request, id, body);

/** Bytes of a stream; at most `STREAM_CHUNK_BYTES` in one frame. */
export const encodeData = (id: number, channel: number, data: Uint8Array): Uint8Array => {
  const payload = new Uint8Array(1 + data.length);
  payload[0] = channel;
  payload.set(data, 1);
  return encodePayload(FrameType.data, id, payload);
};

export const encodeCredit = (id: number, bytes: number): Uint8Array => {
  const payload = new Uint8Array(4);
  new DataView(payload.buffer).setUint32(0, bytes, true);
  return encodePayload(FrameType.credit, id, payload);
};

export const encodeEnd = (id: number, channel: number): Uint8Array =>
  encodePayload(FrameType.end, id, Uint8Array.of(channel));

/** The grant of a credit frame. */
export const creditOf = ({ payload }: Frame): number =>
  payload.length < 4 ? 0 : new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);

/** Payload of a frame as the object it must be. Throws SyntaxError, TypeError, or RangeError when it is made to fill memory. */
export const parsePayload = (frame: Pick<Frame, 'payload'>): Record<string, unknown> => {
  requireFewValues(frame.payload);
  const value: unknown = JSON.parse(text.decode(frame.payload));
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new TypeError('not a JSON object');
  return value as Record<string, unknown>;
};

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPENING = new Set([0x5b, 0x7b]);
const CLOSING = new Set([0x5d, 0x7d]);
/** What is shorter can do no harm. */
const COUNTED_FROM_BYTES = 16 * 1024;
/** Levels of brackets: answers have three. */
const DEPTH_MAX = 32;

/**
 * Text becomes as much memory as it has characters; brackets and commas become twenty times as much, and deep ones take long. So they
 * are counted first: everything that is not inside a string.
 */
const requireFewValues = (json: Uint8Array): void => {
  if (json.length < COUNTED_FROM_BYTES) return;
  let outside = 0;
  let depth = 0;
  let isInside = false;
  for (let at = 0; at < json.length; at++) {
    const byte = json[at] as number;
    if (byte === QUOTE) {
      isInside = !isInside;
    } else if (isInside) {
      if (byte === BACKSLASH) at++;
    } else {
      outside++;
      if (OPENING.has(byte)) depth++;
      else if (CLOSING.has(byte)) depth--;
      if (depth > DEPTH_MAX) throw new RangeError('too many brackets');
    }
  }
  if (outside > limits.agentValuesMaxBytes) throw new RangeError('too many values');
};

const BRACE = 0x7b;

/** A header with the first byte of a JSON payload: what a guest says first is a hello, a reply, or that a stream is open. */
const looksLikeHeader = (data: Uint8Array, at: number): boolean =>
  data[at] === (FRAME_MAGIC & 0xff) &&
  data[at + 1] === FRAME_MAGIC >> 8 &&
  (data[at + 2] as number) <= FrameType.opened &&
  data[at + 3] === 0 &&
  data[at + FRAME_HEADER_BYTES] === BRACE;

/**
 * Asked at each header: whether somebody waits for this frame. What nobody waits for is skipped, and never held. May throw: then the
 * bytes are not what was agreed on.
 */
export type Wanted = (type: number, id: number, length: number) => boolean;

const withinLimit: Wanted = (_type, _id, length) => {
  if (length > limits.agentFrameMaxBytes) throw new RangeError(`frame of ${length} bytes`);
  return true;
};

/** Collects bytes as they come and yields whole frames. Throws RangeError on bytes that are not this protocol. */
export class FrameDecoder {
  #parts: Uint8Array[] = [];
  #held = 0;
  /** Bytes the frame at the front needs in all; the header alone until it is known. */
  #needed = FRAME_HEADER_BYTES;
  /** Bytes of a payload that are still to come, and that nobody wants. */
  #unwanted = 0;
  #midway: boolean;

  /** `midway`: the stream may begin in the middle of a frame, as that of a guest that was copied while it answered. */
  constructor(
    midway = false,
    readonly wanted: Wanted = withinLimit,
  ) {
    this.#midway = midway;
  }

  /** Whether the first header is still looked for. */
  get isMidway(): boolean {
    return this.#midway;
  }

  /** Bytes that wait for the rest of their frame. */
  get heldBytes(): number {
    return this.#held;
  }

  /** The frames that `bytes` completes. Parts of a large frame are joined once, not at every read. */
  push(bytes: Uint8Array): Frame[] {
    const skipped = Math.min(this.#unwanted, bytes.length);
    this.#unwanted -= skipped;
    // What is skipped must not be held by an empty rest of it.
    if (skipped < bytes.length) this.#parts.push(skipped > 0 ? bytes.subarray(skipped) : bytes);
    this.#held += bytes.length - skipped;
    const frames: Frame[] = [];
    while (this.#held >= this.#needed) {
      const data = this.#midway ? this.#skip(this.#join()) : this.#join();
      // Still nothing that begins a frame, or not enough of it to tell.
      if (this.#midway || data.length < FRAME_HEADER_BYTES) break;
      const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
      const [type, id, length] = [view.getUint8(2), view.getUint32(4, true), view.getUint32(8, true)];
      // Asked once for each frame: at its header.
      if (this.#needed === FRAME_HEADER_BYTES) {
        if (view.getUint16(0, true) !== FRAME_MAGIC) throw new RangeError('bad frame magic');
        if (!this.wanted(type, id, length)) {
          this.#unwanted = Math.max(0, FRAME_HEADER_BYTES + length - data.length);
          this.#keep(data.subarray(Math.min(data.length, FRAME_HEADER_BYTES + length)));
          continue;
        }
      }
      const end = FRAME_HEADER_BYTES + length;
      if (data.length < end) {
        this.#needed = end;
        break;
      }
      frames.push({ type, id, payload: data.subarray(FRAME_HEADER_BYTES, end) });
      this.#keep(data.subarray(end));
    }
    return frames;
  }

  #keep(rest: Uint8Array): void {
    this.#parts = [rest];
    this.#held = rest.length;
    this.#needed = FRAME_HEADER_BYTES;
  }

  /**
   * Drops what comes before the first header. JSON holds no byte below 0x20, so it never looks like one; the bytes of a stream
   * could, if somebody wrote them so.
   */
  #skip(data: Uint8Array): Uint8Array {
    let at = 0;
    while (at + FRAME_HEADER_BYTES < data.length && !looksLikeHeader(data, at)) at++;
    this.#midway = at + FRAME_HEADER_BYTES >= data.length;
    const rest = data.subarray(at);
    this.#keep(rest);
    return rest;
  }

  #join(): Uint8Array {
    const [first] = this.#parts;
    if (this.#parts.length === 1 && first) return first;
    const whole = new Uint8Array(this.#held);
    let at = 0;
    for (const part of this.#parts) {
      whole.set(part, at);
      at += part.length;
    }
    this.#parts = [whole];
    return whole;
  }
}
