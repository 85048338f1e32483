/** Networks of children, as every side knows them. */

/** Of every guest's card: each is alone on its segment. */
export const GUEST_MAC = 'AA:FC:00:00:00:01';

/** Addresses that begin alike. */
export interface Network {
  address: string;
  prefix: number;
}

/** What a child may reach, as users write it: nothing but what is named. */
export interface NetworkWish {
  /** `CIDR[:PORT[-PORT]][/tcp|/udp]`. */
  allow: string[];
  /** `NAME[:PORT]`; `*.NAME` is every name below it, `*` every name. */
  allowDomains: string[];
}

/** Something that was not let through. */
export interface Denied {
  /** `ADDRESS:PORT/PROTOCOL`, or a name that was asked for. */
  to: string;
  /** Packets, or questions. */
  count: number;
}

export interface NetworkInfo {
  /** Where the host reaches the guest, whatever port. */
  address: string;
  allow: string[];
  allow_domains: string[];
  denied: Denied[];
}
