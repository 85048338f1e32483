/**
 * nftables by netlink: tables, chains, rules and sets, in batches that hold whole or not at all. What a rule is made of is what
 * `nft --debug=netlink list ruleset` shows: load something into a register, compare it, decide.
 *
 * Constants are those of linux/netfilter/nf_tables.h. docs/decisions/0050 says why this is not the `nft` program.
 */
import { type Attribute, be32, be64, call, decodeAttributes, encodeMessage, Flag, text, u8 } from './netlink.js';

/** NETLINK_NETFILTER. */
export const NETFILTER = 12;

const SUBSYSTEM = 10 << 8;
const BATCH_BEGIN = 16;
const BATCH_END = 17;
const What = {
  table: 0,
  deleteTable: 2,
  getTable: 1,
  chain: 3,
  rule: 6,
  set: 9,
  elements: 12,
  getElements: 13,
  deleteElements: 14,
};

export const Family = { inet: 1, ip: 2, ip6: 10 } as const;

/** struct nfgenmsg; the resource is big endian. */
const header = (family: number, resource = 0): Uint8Array => Uint8Array.of(family, 0, resource >> 8, resource & 0xff);

const message = (what: number, flags: number, family: number, attributes: readonly Attribute[]): Uint8Array =>
  encodeMessage(SUBSYSTEM | what, flags, header(family), attributes);

/** All of it holds, or nothing. Throws what the kernel refuses first. */
export const commit = (socket: number, messages: readonly Uint8Array[]): void => {
  const begin = encodeMessage(BATCH_BEGIN, 0, header(0, 10), []);
  const end = encodeMessage(BATCH_END, 0, header(0, 10), []);
  call(socket, [begin, ...messages, end]);
};

const made = Flag.create | Flag.ack;

/** A table and what is made in it. Making what is there already changes nothing. */
export class Table {
  constructor(
    readonly name: string,
    readonly family: number,
  ) {}

  /** One that `ends` goes with the socket that made it (NFT_TABLE_F_OWNER). */
  add({ ends = false } = {}): Uint8Array {
    return message(What.table, made, this.family, [
      [1, text(this.name)],
      ...(ends ? ([[2, be32(2)]] as Attribute[]) : []),
    ]);
  }

  delete(): Uint8Array {
    return message(What.deleteTable, Flag.ack, this.family, [[1, text(this.name)]]);
  }

  /** Throws ENOENT when it is not there. */
  find(socket: number): void {
    call(socket, [message(What.getTable, Flag.ack, this.family, [[1, text(this.name)]])]);
  }

  /** One that the kernel calls: where (`hook`), after whom (`priority`), and what becomes of what no rule decides. */
  baseChain(
    name: string,
    {
      type = 'filter',
      hook,
      priority,
      drops = false,
    }: { type?: string; hook: number; priority: number; drops?: boolean },
  ): Uint8Array {
    return message(What.chain, made, this.family, [
      [1, text(this.name)],
      [3, text(name)],
      [
        4,
        [
          [1, be32(hook)],
          [2, be32(priority)],
        ],
      ],
      [5, be32(drops ? 0 : 1)],
      [7, text(type)],
    ]);
  }

  /** One that rules go to. */
  chain(name: string): Uint8Array {
    return message(What.chain, made, this.family, [
      [1, text(this.name)],
      [3, text(name)],
    ]);
  }

  rule(chain: string, ...expressions: Attribute[][]): Uint8Array {
    return message(What.rule, made | Flag.append, this.family, [
      [1, text(this.name)],
      [2, text(chain)],
      [4, expressions.flat()],
    ]);
  }

  /** `keyBytes`: each part of a key takes a multiple of four. */
  set(
    name: string,
    id: number,
    options: { flags: number; keyBytes: number; size?: number; timeoutMs?: number; counts?: boolean },
  ): Uint8Array {
    const { flags, keyBytes, size, timeoutMs, counts = false } = options;
    return message(What.set, made, this.family, [
      [1, text(this.name)],
      [2, text(name)],
      [3, be32(flags)],
      // What a key is, is only told for the benefit of `nft list`.
      [4, be32(0)],
      [5, be32(keyBytes)],
      [10, be32(id)],
      ...(size === undefined ? [] : ([[9, [[1, be32(size)]]]] as Attribute[])),
      ...(timeoutMs === undefined ? [] : ([[11, be64(timeoutMs)]] as Attribute[])),
      ...(counts ? ([[17, [[1, text('counter')]]]] as Attribute[]) : []),
    ]);
  }

  elements(set: string, elements: readonly Element[]): Uint8Array {
    return message(What.elements, made, this.family, this.#listed(set, elements));
  }

  deleteElements(set: string, elements: readonly Element[]): Uint8Array {
    return message(What.deleteElements, Flag.ack, this.family, this.#listed(set, elements));
  }

  #listed(set: string, elements: readonly Element[]): Attribute[] {
    return [
      [1, text(this.name)],
      [2, text(set)],
      [
        3,
        elements.map(
          ({ key, timeoutMs, isEnd }): Attribute => [
            1,
            [
              [1, [[1, key]]],
              ...(isEnd ? ([[3, be32(1)]] as Attribute[]) : []),
              ...(timeoutMs === undefined ? [] : ([[4, be64(timeoutMs)]] as Attribute[])),
            ],
          ],
        ),
      ],
    ];
  }

  /** What is in a set, with the packets that a counting one has seen. */
  list(socket: number, set: string): { key: Uint8Array; packets: number }[] {
    const replies = call(socket, [
      message(What.getElements, Flag.dump, this.family, [
        [1, text(this.name)],
        [2, text(set)],
      ]),
    ]);
    return replies.flatMap(({ body }) =>
      decodeAttributes(body.subarray(4))
        .filter(([type]) => type === 3)
        .flatMap(([, list]) => decodeAttributes(list).map(([, element]) => elementOf(element))),
    );
  }
}

export interface Element {
  key: Uint8Array;
  timeoutMs?: number;
  /** In a set of intervals: the first key that is outside again. */
  isEnd?: boolean;
}

/** NFT_SET_*. */
export const SetFlag = { interval: 4, timeout: 0x10, dynamic: 0x20 } as const;

const elementOf = (bytes: Uint8Array): { key: Uint8Array; packets: number } => {
  const parts = new Map(decodeAttributes(bytes));
  const key = decodeAttributes(parts.get(1) ?? new Uint8Array())[0]?.[1] ?? new Uint8Array();
  // One expression, or a list of them, as later kernels have it.
  const listed = parts.get(11);
  const expression = parts.get(7) ?? (listed ? decodeAttributes(listed)[0]?.[1] : undefined);
  const data = expression ? new Map(decodeAttributes(expression)).get(2) : undefined;
  const packets = data ? new Map(decodeAttributes(data)).get(2) : undefined;
  return { key, packets: packets ? Number(Buffer.from(packets).readBigUInt64BE()) : 0 };
};

/** Where packets are looked at: NF_INET_*. */
export const Hook = { prerouting: 0, input: 1, forward: 2, output: 3, postrouting: 4 } as const;

const expression = (name: string, data: readonly Attribute[]): Attribute => [
  1,
  [
    [1, text(name)],
    [2, data],
  ],
];

/** The first register of 16 bytes. The same room in words of four is 8, 9, 10...: there keys of several parts are put together. */
const REGISTER = 1;
const WORDS = 8;
const wordOr = (word: number): number => (word === 0 ? REGISTER : WORDS + word);

const loadPayload = (base: number, offset: number, bytes: number, word = 0): Attribute =>
  expression('payload', [
    [1, be32(wordOr(word))],
    [2, be32(base)],
    [3, be32(offset)],
    [4, be32(bytes)],
  ]);
const loadMeta = (key: number, word = 0): Attribute =>
  expression('meta', [
    [2, be32(key)],
    [1, be32(wordOr(word))],
  ]);
const loadCt = (key: number): Attribute =>
  expression('ct', [
    [2, be32(key)],
    [1, be32(REGISTER)],
  ]);
const compare = (op: number, value: Uint8Array): Attribute =>
  expression('cmp', [
    [1, be32(REGISTER)],
    [2, be32(op)],
    [3, [[1, value]]],
  ]);
const mask = (value: Uint8Array): Attribute =>
  expression('bitwise', [
    [1, be32(REGISTER)],
    [2, be32(REGISTER)],
    [3, be32(value.length)],
    [4, [[1, value]]],
    [5, [[1, new Uint8Array(value.length)]]],
  ]);
const lookup = (set: string, id: number): Attribute =>
  expression('lookup', [
    [1, text(set)],
    [4, be32(id)],
    [2, be32(REGISTER)],
  ]);

const EQUAL = 0;
const DIFFERENT = 1;
const NETWORK = 1;
const TRANSPORT = 2;
const IIFNAME = 6;
const OIFNAME = 7;
const L4PROTO = 16;
const CT_STATE = 0;
const CT_STATUS = 2;

/** A name, or (without its end) what names begin with. */
const ifname = (name: string): Uint8Array => {
  if (name.endsWith('*')) return new TextEncoder().encode(name.slice(0, -1));
  const bytes = new Uint8Array(16);
  bytes.set(new TextEncoder().encode(name));
  return bytes;
};

// Conditions. A rule's decision is reached only when all before it hold.

export const comesBy = (name: string): Attribute[] => [loadMeta(IIFNAME), compare(EQUAL, ifname(name))];
export const comesNotBy = (name: string): Attribute[] => [loadMeta(IIFNAME), compare(DIFFERENT, ifname(name))];
export const leavesBy = (name: string): Attribute[] => [loadMeta(OIFNAME), compare(EQUAL, ifname(name))];
export const leavesNotBy = (name: string): Attribute[] => [loadMeta(OIFNAME), compare(DIFFERENT, ifname(name))];

const SOURCE = 12;
const DESTINATION = 16;
const DESTINATION6 = 24;

const within = (offset: number, address: Uint8Array, netmask: Uint8Array): Attribute[] => [
  loadPayload(NETWORK, offset, 4),
  mask(netmask),
  compare(EQUAL, address),
];
export const isFrom = (address: Uint8Array, netmask: Uint8Array): Attribute[] => within(SOURCE, address, netmask);
export const isNotFrom = (address: Uint8Array): Attribute[] => [
  loadPayload(NETWORK, SOURCE, 4),
  compare(DIFFERENT, address),
];
export const isTo = (address: Uint8Array, netmask: Uint8Array): Attribute[] => within(DESTINATION, address, netmask);
export const isToOneOf = (set: string, id: number): Attribute[] => [
  loadPayload(NETWORK, DESTINATION, 4),
  lookup(set, id),
];

/** By the first two bytes of an IPv6 address: the first, and what of the second is looked at. */
export const isTo6 = (first: number, second: readonly [value: number, mask: number] = [0, 0]): Attribute[] => [
  loadPayload(NETWORK, DESTINATION6, 2),
  mask(Uint8Array.of(0xff, second[1])),
  compare(EQUAL, Uint8Array.of(first, second[0])),
];

/** TCP or UDP, or another protocol by its number. */
export const isProtocol = (protocol: number): Attribute[] => [loadMeta(L4PROTO), compare(EQUAL, u8(protocol))];
export const isNotTcpOrUdp = (): Attribute[] => [
  loadMeta(L4PROTO),
  compare(DIFFERENT, u8(6)),
  compare(DIFFERENT, u8(17)),
];
/** Of TCP and UDP: the two have their ports in the same place. */
export const isToPorts = (from: number, to: number): Attribute[] => [
  loadPayload(TRANSPORT, 2, 2),
  expression('range', [
    [1, be32(REGISTER)],
    [2, be32(EQUAL)],
    [3, [[1, Uint8Array.of(from >> 8, from & 0xff)]]],
    [4, [[1, Uint8Array.of(to >> 8, to & 0xff)]]],
  ]),
];
/** A set of addresses and ports. */
export const isToOneOfPorts = (set: string, id: number): Attribute[] => [
  loadPayload(NETWORK, DESTINATION, 4),
  loadPayload(TRANSPORT, 2, 2, 1),
  lookup(set, id),
];
export const icmpType = (type: number): Attribute[] => [loadPayload(TRANSPORT, 0, 1), compare(EQUAL, u8(type))];

const anyOf = (key: number, bits: number): Attribute[] => [
  loadCt(key),
  // Conntrack's bits are in the processor's order.
  mask(Uint8Array.of(bits, 0, 0, 0)),
  compare(DIFFERENT, new Uint8Array(4)),
];
/** Belongs to a connection that was let through, or is about one. */
export const isKnown = (): Attribute[] => anyOf(CT_STATE, 0x2 | 0x4);
/** Its destination was changed by a rule of ours. */
export const isRedirected = (): Attribute[] => anyOf(CT_STATUS, 0x20);

// Decisions.

const verdict = (code: number, chain?: string): Attribute[] => [
  expression('immediate', [
    [1, be32(0)],
    [2, [[2, [[1, be32(code)], ...(chain === undefined ? [] : ([[2, text(chain)]] as Attribute[]))]]]],
  ]),
];
export const drop = (): Attribute[] => verdict(0);
export const accept = (): Attribute[] => verdict(1);
export const jump = (chain: string): Attribute[] => verdict(-3, chain);
export const goto = (chain: string): Attribute[] => verdict(-4, chain);

const refuse = (type: number, code: number): Attribute[] => [
  expression('reject', [
    [1, be32(type)],
    [2, u8(code)],
  ]),
];
/** Tells the sender at once, so that it does not wait for a timeout: ICMP, administratively prohibited. The kernel sends few of them a second. */
export const prohibit = (): Attribute[] => refuse(0, 13);
/** The same, of TCP, and as often as it is tried: as if nobody listened there. */
export const reset = (): Attribute[] => refuse(1, 0);
export const masquerade = (): Attribute[] => [expression('masq', [])];
export const redirectTo = (address: Uint8Array): Attribute[] => [
  expression('immediate', [
    [1, be32(REGISTER)],
    [2, [[1, address]]],
  ]),
  expression('nat', [
    [1, be32(1)],
    [2, be32(Family.ip)],
    [3, be32(REGISTER)],
    [4, be32(REGISTER)],
  ]),
];

const note = (set: string, id: number): Attribute =>
  expression('dynset', [
    [1, text(set)],
    [2, be32(id)],
    [3, be32(1)],
    [4, be32(REGISTER)],
  ]);

/** Writes down where it was to go, in a set of addresses, protocols and ports (which only TCP and UDP have). */
const noted = (set: string, id: number, offset: number, words: 1 | 4): Attribute[] => [
  expression('payload', [
    [1, be32(REGISTER)],
    [2, be32(NETWORK)],
    [3, be32(offset)],
    [4, be32(words * 4)],
  ]),
  expression('meta', [
    [2, be32(L4PROTO)],
    [1, be32(WORDS + words)],
  ]),
  expression('payload', [
    [1, be32(WORDS + words + 1)],
    [2, be32(TRANSPORT)],
    [3, be32(2)],
    [4, be32(2)],
  ]),
  note(set, id),
];
export const noteTarget = (set: string, id: number): Attribute[] => noted(set, id, DESTINATION, 1);
export const noteTarget6 = (set: string, id: number): Attribute[] => noted(set, id, DESTINATION6, 4);
/** The same, of a protocol without ports. */
export const noteAddress = (set: string, id: number): Attribute[] => [
  loadPayload(NETWORK, DESTINATION, 4),
  loadMeta(L4PROTO, 1),
  expression('immediate', [
    [1, be32(WORDS + 2)],
    [2, [[1, new Uint8Array(4)]]],
  ]),
  note(set, id),
];
