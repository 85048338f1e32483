/**
 * Netlink messages: a header, a fixed part, and attributes, which nest. netlink(7).
 *
 *     | length u32 | type u16 | flags u16 | sequence u32 | port u32 |  fixed part  |  attribute ...
 *     attribute: | length u16 | type u16 | value, padded to 4 |
 *
 * Numbers are the processor's (x86: little endian) in rtnetlink, and big endian in nftables' attributes.
 */
import { native } from '../native/binding.js';

const HEADER_BYTES = 16;
const ATTRIBUTE_BYTES = 4;
const NESTED = 0x8000;
const TYPE_MASK = 0x3fff;

/** NLM_F_*. */
export const Flag = { request: 1, ack: 4, excl: 0x200, create: 0x400, dump: 0x300, append: 0x800 } as const;

/** An attribute: its value, or those in it. */
export type Attribute = readonly [type: number, value: Uint8Array | readonly Attribute[]];

export const u8 = (value: number): Uint8Array => Uint8Array.of(value);

const written = (bytes: number, write: (view: DataView) => void): Uint8Array => {
  const value = new Uint8Array(bytes);
  write(new DataView(value.buffer));
  return value;
};
export const u32 = (value: number): Uint8Array => written(4, (view) => view.setUint32(0, value >>> 0, true));
export const be16 = (value: number): Uint8Array => written(2, (view) => view.setUint16(0, value));
export const be32 = (value: number): Uint8Array => written(4, (view) => view.setUint32(0, value >>> 0));
export const be64 = (value: number): Uint8Array => written(8, (view) => view.setBigUint64(0, BigInt(value)));
/** Terminated, as the kernel wants names. */
export const text = (value: string): Uint8Array => new TextEncoder().encode(`${value}\0`);

const padded = (bytes: number): number => (bytes + 3) & ~3;

export const concat = (parts: readonly Uint8Array[]): Uint8Array => {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
};

const encodeAttribute = ([type, value]: Attribute): Uint8Array => {
  const isNested = !(value instanceof Uint8Array);
  const payload = isNested ? encodeAttributes(value) : value;
  const bytes = new Uint8Array(padded(ATTRIBUTE_BYTES + payload.length));
  const view = new DataView(bytes.buffer);
  view.setUint16(0, ATTRIBUTE_BYTES + payload.length, true);
  view.setUint16(2, isNested ? type | NESTED : type, true);
  bytes.set(payload, ATTRIBUTE_BYTES);
  return bytes;
};

export const encodeAttributes = (attributes: readonly Attribute[]): Uint8Array =>
  concat(attributes.map(encodeAttribute));

export const encodeMessage = (
  type: number,
  flags: number,
  fixed: Uint8Array,
  attributes: readonly Attribute[],
): Uint8Array => {
  const body = concat([fixed, encodeAttributes(attributes)]);
  const message = new Uint8Array(padded(HEADER_BYTES + body.length));
  const view = new DataView(message.buffer);
  view.setUint32(0, HEADER_BYTES + body.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, flags | Flag.request, true);
  message.set(body, HEADER_BYTES);
  return message;
};

export interface Message {
  type: number;
  body: Uint8Array;
}

export const decodeMessages = (bytes: Uint8Array): Message[] => {
  const messages: Message[] = [];
  const view = viewOf(bytes);
  for (let at = 0; at + HEADER_BYTES <= bytes.length; ) {
    const length = view.getUint32(at, true);
    if (length < HEADER_BYTES) break;
    messages.push({ type: view.getUint16(at + 4, true), body: bytes.subarray(at + HEADER_BYTES, at + length) });
    at += padded(length);
  }
  return messages;
};

/** In their order: a list has several of one type. */
export const decodeAttributes = (bytes: Uint8Array): [type: number, value: Uint8Array][] => {
  const found: [number, Uint8Array][] = [];
  const view = viewOf(bytes);
  for (let at = 0; at + ATTRIBUTE_BYTES <= bytes.length; ) {
    const length = view.getUint16(at, true);
    if (length < ATTRIBUTE_BYTES) break;
    found.push([view.getUint16(at + 2, true) & TYPE_MASK, bytes.subarray(at + ATTRIBUTE_BYTES, at + length)]);
    at += padded(length);
  }
  return found;
};

export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The kernel answers at once, but for a lock that the removal of many namespaces may hold. */
const ANSWER_MS = 60_000;

/** Throws what the kernel refuses, as `{code, syscall: 'netlink', errno}`. */
export const call = (socket: number, messages: readonly Uint8Array[]): Message[] =>
  decodeMessages(native.netlinkCall(socket, concat(messages), ANSWER_MS));
