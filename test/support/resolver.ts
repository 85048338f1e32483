/** A name server for tests: it knows what it is told, and notes what it was asked. */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import dnsPacket from 'dns-packet';

export interface FakeResolver {
  /** `ADDRESS:PORT`, for FORKD_DNS. */
  address: string;
  asked: string[];
  close: () => void;
}

/** At a free port, or where programs that read /etc/resolv.conf look: at 53. */
export const openResolver = async (
  names: Record<string, string[]>,
  { host = '127.0.0.1', port = 0 } = {},
): Promise<FakeResolver> => {
  const asked: string[] = [];
  const socket = createSocket('udp4', (bytes, from) => {
    const { id = 0, questions = [] } = dnsPacket.decode(bytes);
    const [question] = questions;
    if (!question) return;
    asked.push(question.name);
    const known = names[question.name];
    const answers = (question.type === 'A' ? (known ?? []) : []).map((data) => {
      return { type: 'A' as const, name: question.name, ttl: 2, data };
    });
    const flags = dnsPacket.RECURSION_AVAILABLE | (known ? 0 : 3);
    socket.send(dnsPacket.encode({ type: 'response', id, flags, questions, answers }), from.port, from.address);
  });
  socket.bind(port, host);
  await once(socket, 'listening');
  return { address: `${host}:${socket.address().port}`, asked, close: () => socket.close() };
};
