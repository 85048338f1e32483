/**
 * How a VMM hands its memory over to a fault server: one message on a Unix socket, with its userfaultfd attached. It is
 * Firecracker's `Uffd` handshake: a JSON array of
 * `{"base_host_virt_addr": N, "size": N, "offset": N, "page_size_kib": N}`, all of them in bytes, the last one too.
 */
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { type FaultRegion, native } from '../../native/binding.js';

const PAGE_BYTES = 4096;
/** The reason when the VMM has ended instead. */
export const CLOSED = 'the connection was closed';
/** QEMU and Firecracker have one or two: RAM below and above the PCI hole. */
const REGIONS_MAX = 64;
const MESSAGE_BYTES_MAX = 65536;

export interface Handshake {
  /** Belongs to the caller. */
  uffd: number;
  regions: FaultRegion[];
}

/** Waits for the message. Throws MEMORY_HANDSHAKE; then no descriptor is left open. */
export const receiveHandshake = (socket: number, vm: string, imageBytes: number, timeoutMs: number): Handshake => {
  let fds: number[] = [];
  try {
    const message = native.recvFds(socket, MESSAGE_BYTES_MAX, 1, timeoutMs);
    fds = message.fds;
    const [uffd] = fds;
    if (message.data.length === 0) throw new Error(CLOSED);
    if (uffd === undefined) throw new Error('no descriptor came with the message');
    return { uffd, regions: parseRegions(new TextDecoder().decode(message.data), imageBytes) };
  } catch (error) {
    for (const fd of fds) native.fdClose(fd);
    throw new ForkdError('MEMORY_HANDSHAKE', { vm, reason: reasonOf(error) }, error);
  }
};

/** Throws an Error that says what is wrong. */
export const parseRegions = (text: string, imageBytes: number): FaultRegion[] => {
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch {
    throw new Error('the message is not JSON');
  }
  if (!Array.isArray(list)) throw new Error('the message is not an array');
  if (list.length === 0 || list.length > REGIONS_MAX) throw new Error(`${list.length} regions`);
  const regions = list.map((entry, i) => parseRegion(entry, `region ${i}`, imageBytes));
  const sorted = [...regions].sort((a, b) => a.base - b.base);
  for (const [i, region] of sorted.entries()) {
    const next = sorted[i + 1];
    if (next && region.base + region.bytes > next.base) throw new Error('two regions overlap');
  }
  return regions;
};

const parseRegion = (entry: unknown, name: string, imageBytes: number): FaultRegion => {
  const fields = (entry ?? {}) as Record<string, unknown>;
  const pages = (key: string): number => {
    const value = fields[key];
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
      throw new Error(`${name}: ${key} is not a whole number`);
    if (value % PAGE_BYTES !== 0) throw new Error(`${name}: ${key} is not a multiple of ${PAGE_BYTES}`);
    return value;
  };
  const region = { base: pages('base_host_virt_addr'), bytes: pages('size'), offset: pages('offset') };
  if (region.bytes === 0) throw new Error(`${name}: it is empty`);
  if (region.offset + region.bytes > imageBytes) throw new Error(`${name}: it reaches past the end of the image`);
  const pageBytes = pages('page_size_kib');
  if (pageBytes !== PAGE_BYTES) throw new Error(`${name}: pages of ${pageBytes} bytes cannot be served`);
  return region;
};
