/** IPv4 addresses and networks, as numbers and as bytes. */
import { isIPv4 } from 'node:net';
import type { Network } from '../contract/network.js';

export const numberOf = (address: string): number =>
  address.split('.').reduce((number, part) => number * 256 + Number(part), 0);

export const dotted = (number: number): string =>
  [24, 16, 8, 0].map((shift) => Math.floor(number / 2 ** shift) % 256).join('.');

/** As it is in a packet. */
export const bytesOf = (address: string): Uint8Array => Uint8Array.from(address.split('.').map(Number));

export const macBytes = (mac: string): Uint8Array =>
  Uint8Array.from(mac.split(':').map((part) => Number.parseInt(part, 16)));

export const maskOf = (prefix: number): string => dotted(2 ** 32 - 2 ** (32 - prefix));

/** `ADDRESS` or `ADDRESS/PREFIX`; undefined when it is neither. What is set beyond the prefix is cleared. */
export const parseNetwork = (text: string): Network | undefined => {
  const [address = '', prefix, ...rest] = text.split('/');
  if (!isIPv4(address) || rest.length > 0 || (prefix !== undefined && !/^\d{1,2}$/.test(prefix))) return undefined;
  const bits = Number(prefix ?? 32);
  if (bits > 32) return undefined;
  const size = 2 ** (32 - bits);
  return { address: dotted(Math.floor(numberOf(address) / size) * size), prefix: bits };
};

export const contains = ({ address, prefix }: Network, one: string): boolean => {
  const size = 2 ** (32 - prefix);
  return Math.floor(numberOf(address) / size) === Math.floor(numberOf(one) / size);
};

/**
 * The addresses that children have on the host's side: a network of two for each, the host's end first. By its number from 1 on; what is
 * before that is nobody's.
 */
export class LinkAddresses {
  constructor(readonly network: Network) {}

  /** How many children fit. */
  get count(): number {
    return 2 ** (31 - this.network.prefix) - 1;
  }

  hostEnd(number: number): string {
    return dotted(numberOf(this.network.address) + 2 * number);
  }

  childEnd(number: number): string {
    return dotted(numberOf(this.network.address) + 2 * number + 1);
  }
}
