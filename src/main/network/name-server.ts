/**
 * Answers a child's questions for names, at its gateway's address. Only names that are allowed are asked for, by this host's resolver
 * and in words of our own: nothing else that a guest puts into a question, or into a name, leaves this process. What a name stands
 * for is let through before the guest hears of it, for as long as the answer holds.
 */
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import { createServer, type Server, type Socket } from 'node:net';
import dnsPacket, { type Answer, type DecodedPacket, type OptAnswer, type Question } from 'dns-packet';
import { errnoOf } from '../../contract/errors.js';
import type { Denied } from '../../contract/network.js';
import { contains } from '../../net/address.js';
import { isNever, isPrivate } from '../../net/ruleset.js';
import { type Policy, rulesFor } from './policy.js';

/** Result codes of RFC 1035. */
const Code = { ok: 0, failed: 2, unknown: 3, unsupported: 4 } as const;

/** In a message's flags; 0 is a question. */
const OPCODE = 0x7800;

/** Questions of one child under way; one that asks more at once is answered that it failed. */
const ASKED_MAX = 64;
const CONNECTIONS_MAX = 8;
const IDLE_MS = 5000;
/** Bytes of a question: a name has 255. Of an answer by UDP: what passes everywhere, and what a client that says nothing takes. */
const QUESTION_MAX = 1024;
const DATAGRAM_MAX = 1232;
const DATAGRAM_DEFAULT = 512;
/** Different names that are remembered as denied. */
const DENIED_MAX = 256;
/** Seconds: who has just been told an address must have the time to connect; and no answer holds for ever. */
const TTL_MIN = 10;
const TTL_MAX = 86_400;

/** `FORKD_DNS`: servers to ask, with commas between them, instead of those of /etc/resolv.conf. */
export const newResolver = (): Resolver => {
  const resolver = new Resolver({ timeout: 3000, tries: 2 });
  const named = process.env['FORKD_DNS'];
  if (named) resolver.setServers(named.split(','));
  return resolver;
};

export interface NameServerOptions {
  policy: Policy;
  resolver: Resolver;
  /** Lets addresses through, all ports or one, for a while. */
  admit: (addresses: string[], port: number | undefined, ms: number) => void;
}

interface Reply {
  code: number;
  answers: Answer[];
}

export class NameServer {
  readonly #denied = new Map<string, number>();
  readonly #udp: UdpSocket;
  readonly #tcp: Server | undefined;
  #asked = 0;

  /** Owns the sockets, which are bound, and the second one listening. */
  constructor(
    sockets: { udp: number; tcp: number | undefined },
    readonly options: NameServerOptions,
  ) {
    this.#udp = createSocket('udp4', (question, from) => {
      void this.#answer(question, 'udp').then((answer) => {
        if (answer) this.#udp.send(answer, from.port, from.address, () => undefined);
      });
    });
    this.#udp.on('error', () => undefined);
    this.#udp.bind({ fd: sockets.udp }, () => this.#udp.unref());
    if (sockets.tcp === undefined) return;
    this.#tcp = createServer((client) => this.#converse(client));
    this.#tcp.maxConnections = CONNECTIONS_MAX;
    this.#tcp.on('error', () => undefined);
    this.#tcp.listen({ fd: sockets.tcp }).unref();
  }

  get denied(): Denied[] {
    return [...this.#denied].map(([to, count]) => ({ to, count }));
  }

  close(): void {
    this.#udp.close();
    this.#tcp?.close();
  }

  /** By TCP each message has its length before it. */
  #converse(client: Socket): void {
    let heard = Buffer.alloc(0);
    client.unref();
    client.setTimeout(IDLE_MS, () => client.destroy());
    client.on('error', () => client.destroy());
    client.on('data', (data) => {
      heard = Buffer.concat([heard, data]);
      while (heard.length >= 2) {
        const bytes = heard.readUInt16BE(0);
        if (bytes > QUESTION_MAX) client.destroy();
        if (bytes > QUESTION_MAX || heard.length < 2 + bytes) return;
        void this.#answer(heard.subarray(2, 2 + bytes), 'tcp').then((answer) => {
          if (!answer || client.destroyed) return;
          const length = Buffer.alloc(2);
          length.writeUInt16BE(answer.length);
          client.write(Buffer.concat([length, answer]));
        });
        heard = heard.subarray(2 + bytes);
      }
    });
  }

  /** Undefined for what is no question. Never rejects. */
  async #answer(bytes: Buffer, by: 'udp' | 'tcp'): Promise<Buffer | undefined> {
    const query = bytes.length > QUESTION_MAX ? undefined : decode(bytes);
    const [question] = query?.questions ?? [];
    if (!query || !question || query.type !== 'query') return undefined;
    let reply: Reply = { code: Code.failed, answers: [] };
    if (
      query.questions?.length === 1 &&
      ((query.flags ?? 0) & OPCODE) === 0 &&
      question.class === 'IN' &&
      this.#asked < ASKED_MAX
    ) {
      this.#asked++;
      reply = await this.#ask(question.name.toLowerCase(), question.type).finally(() => this.#asked--);
    }
    return encode(query, question, reply, by);
  }

  async #ask(name: string, type: string): Promise<Reply> {
    const rules = rulesFor(this.options.policy.domains, name);
    if (rules.length === 0) {
      this.#deny(name);
      return { code: Code.unknown, answers: [] };
    }
    try {
      return { code: Code.ok, answers: await this.#resolve(name, type, rules) };
    } catch (error) {
      return { code: CODES[errnoOf(error) ?? ''] ?? Code.failed, answers: [] };
    }
  }

  async #resolve(name: string, type: string, rules: { port?: number }[]): Promise<Answer[]> {
    const { resolver, admit } = this.options;
    const ttl = TTL_MIN;
    if (type === 'A') {
      const found = await resolver.resolve4(name, { ttl: true });
      const open = found.filter(({ address }) => this.#mayBe(name, address));
      const longest = Math.min(Math.max(TTL_MIN, ...open.map((one) => one.ttl)), TTL_MAX);
      if (open.length > 0)
        for (const { port } of rules)
          admit(
            open.map(({ address }) => address),
            port,
            longest * 1000,
          );
      return open.map(({ address, ttl: holds }) => ({ type, name, ttl: holds, data: address }));
    }
    if (type === 'TXT') return (await resolver.resolveTxt(name)).map((data) => ({ type, name, ttl, data }));
    if (type === 'CNAME') return (await resolver.resolveCname(name)).map((data) => ({ type, name, ttl, data }));
    if (type === 'MX')
      return (await resolver.resolveMx(name)).map(({ exchange, priority }) => {
        return { type, name, ttl, data: { exchange, preference: priority } };
      });
    if (type === 'SRV')
      return (await resolver.resolveSrv(name)).map(({ name: target, port, priority, weight }) => {
        return { type, name, ttl, data: { target, port, priority, weight } };
      });
    // There is no IPv6, and whoever asks for more should fall back to addresses.
    if (NOTHING.has(type)) return [];
    throw Object.assign(new Error(`no ${type}`), { code: 'ENOTIMP' });
  }

  /** A name must not lead to what no rule of addresses opens: this host's side, metadata, somebody's own network. */
  #mayBe(name: string, address: string): boolean {
    const isOpen = this.options.policy.allowed.some(({ to }) => contains(to, address));
    if (!isNever(address) && (isOpen || !isPrivate(address))) return true;
    this.#deny(`${name} (${address})`);
    return false;
  }

  #deny(what: string): void {
    const count = this.#denied.get(what);
    if (count === undefined && this.#denied.size >= DENIED_MAX) return;
    this.#denied.set(what, (count ?? 0) + 1);
  }
}

const NOTHING = new Set(['AAAA', 'HTTPS', 'SVCB', 'UNKNOWN_64', 'UNKNOWN_65']);

const CODES: Record<string, number> = {
  ENOTFOUND: Code.unknown,
  ENODATA: Code.ok,
  ENOTIMP: Code.unsupported,
};

const decode = (bytes: Buffer): DecodedPacket | undefined => {
  try {
    return dnsPacket.decode(bytes);
  } catch {
    return undefined;
  }
};

const OPTIONS: OptAnswer = {
  type: 'OPT',
  name: '.',
  udpPayloadSize: DATAGRAM_MAX,
  extendedRcode: 0,
  ednsVersion: 0,
  flags: 0,
  flag_do: false,
  options: [],
};

const encode = (query: DecodedPacket, question: Question, { code, answers }: Reply, by: 'udp' | 'tcp'): Buffer => {
  const extended = query.additionals?.find((one) => one.type === 'OPT');
  const offered = extended && 'udpPayloadSize' in extended ? extended.udpPayloadSize : DATAGRAM_DEFAULT;
  const most = by === 'tcp' ? 65_535 : Math.min(Math.max(offered, DATAGRAM_DEFAULT), DATAGRAM_MAX);
  const packet = {
    type: 'response' as const,
    id: query.id ?? 0,
    flags: dnsPacket.RECURSION_DESIRED | dnsPacket.RECURSION_AVAILABLE | code,
    questions: [question],
    answers,
    additionals: extended ? [OPTIONS] : [],
  };
  const whole = dnsPacket.encode(packet);
  if (whole.length <= most) return whole;
  return dnsPacket.encode({ ...packet, answers: [], flags: packet.flags | dnsPacket.TRUNCATED_RESPONSE });
};
