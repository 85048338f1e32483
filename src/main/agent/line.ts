/**
 * The reference's agent protocol: one JSON line a connection, one back. As a client (TCP or Unix), and as a server that
 * offers a sandbox to other processes on a Unix socket. That socket also takes whole connections of the framed protocol.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { parsePayload } from '../../contract/frames.js';
import { FRAME_MAGIC, type GuestReply, type GuestRequest } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import { requireReply } from '../../contract/replies.js';
import type { AgentClient, Read } from './client.js';
import type { Judge } from './judge.js';
import { relayFrames } from './relay.js';

/** `sandbox`: the one that is meant, where a socket offers many (agent/switchboard.ts). */
export type UnixAddress = { path: string; sandbox?: string };
export type Address = UnixAddress | { host: string; port: number } | { socket: Socket };

export interface LineTimeouts {
  connectMs: number;
  replyMs: number;
}

/** What a socket of many agents says when it offers none of that name. No agent's answer begins like this: not a line, not a frame. */
export const NOBODY = 'no such sandbox\n';

/** Throws AGENT_UNREACHABLE, AGENT_TIMEOUT, AGENT_PROTOCOL, which name `target`, and SANDBOX_NOT_FOUND. */
export const callLine = async (
  address: Address,
  target: string,
  request: object,
  timeouts: LineTimeouts,
): Promise<GuestReply> => {
  const socket = 'socket' in address ? address.socket : connect(address);
  try {
    if (!('socket' in address)) await connected(socket, target, timeouts.connectMs);
    socket.end(`${prefaceOf(address)}${JSON.stringify(request)}\n`);
    const data = await readAll(socket, target, timeouts.replyMs);
    requireSomebody(data, address);
    return parseReply(data, target);
  } finally {
    socket.destroy();
  }
};

/** What a connection begins with, before anything else. */
export const prefaceOf = (address: Address): string =>
  'sandbox' in address && address.sandbox !== undefined ? `${address.sandbox}\n` : '';

/** `data`: the first of what was heard there. Throws SANDBOX_NOT_FOUND. */
export const requireSomebody = (data: Buffer, address: Address): void => {
  if ('sandbox' in address && address.sandbox !== undefined && data.toString('latin1') === NOBODY)
    throw new ForkdError('SANDBOX_NOT_FOUND', { id: address.sandbox });
};

const connected = (socket: Socket, target: string, ms: number): Promise<void> =>
  new Promise((resolve, reject) => {
    const refuse = (reason: string, cause?: unknown) =>
      reject(new ForkdError('AGENT_UNREACHABLE', { target, reason }, cause));
    const timer = setTimeout(() => refuse(`no connection within ${ms / 1000} s`), ms);
    socket.once('connect', () => {
      clearTimeout(timer);
      resolve();
    });
    socket.once('error', (error) => {
      clearTimeout(timer);
      refuse(errnoOf(error) === 'ECONNREFUSED' ? 'connection refused' : error.message, error);
    });
  });

const readAll = (socket: Socket, target: string, ms: number): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    let bytes = 0;
    const timer = setTimeout(() => reject(new ForkdError('AGENT_TIMEOUT', { target, seconds: ms / 1000 })), ms);
    const end = (settle: () => void) => {
      clearTimeout(timer);
      settle();
    };
    socket.on('data', (part) => {
      bytes += part.length;
      parts.push(part);
      if (bytes > limits.agentFrameMaxBytes) {
        end(() =>
          reject(new ForkdError('AGENT_PROTOCOL', { target, reason: `more than ${limits.agentFrameMaxBytes} bytes` })),
        );
      }
    });
    socket.once('end', () => end(() => resolve(Buffer.concat(parts))));
    socket.once('error', (error) =>
      end(() => reject(new ForkdError('AGENT_UNREACHABLE', { target, reason: error.message }, error))),
    );
  });

const parseReply = (data: Buffer, target: string): GuestReply => {
  if (data.length === 0)
    throw new ForkdError('AGENT_UNREACHABLE', { target, reason: 'it closed the connection without an answer' });
  try {
    return requireReply(parsePayload({ payload: data }));
  } catch (error) {
    const reason = error instanceof SyntaxError ? 'not JSON' : reasonOf(error);
    throw new ForkdError('AGENT_PROTOCOL', { target, reason }, error);
  }
};

/** A request line longer than this is not one: code and arguments are far smaller. */
const REQUEST_MAX_BYTES = 16 * 1024 * 1024;

/** Offers `agent` at an address that is its alone. The caller closes the server. */
export const serveLine = (address: { host: string; port: number }, agent: AgentClient, judge: Judge): Promise<Server> =>
  new Promise((resolve, reject) => {
    const server = createServer({ allowHalfOpen: true }, (socket) => answer(socket, agent, judge));
    server.unref();
    server.on('error', reject);
    server.listen(address, () => resolve(server));
  });

/** A server of lines whose answers are not a guest's. The caller closes it. */
export const serveLines = (path: string, replyTo: (line: string) => Promise<object>): Promise<Server> =>
  new Promise((resolve, reject) => {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => socket.destroy());
      answerLine(socket, replyTo);
    });
    server.unref();
    server.on('error', reject);
    server.listen(path, () => resolve(server));
  });

/** Serves a connection, of which `read` has been read; one that begins with the magic of a frame is one of the framed protocol. */
export const answer = (socket: Socket, agent: AgentClient, judge: Judge, read = Buffer.alloc(0)): void => {
  const drop = () => socket.destroy();
  let first = read;
  const begin = (part: Buffer) => {
    first = Buffer.concat([first, part]);
    if (first.length < 2) return;
    socket.off('data', begin).off('end', drop);
    if (first.readUInt16LE() === FRAME_MAGIC) return relayFrames(socket, agent, first);
    socket.unshift(first);
    answerLine(socket, (line) => forward(line, agent, judge));
  };
  socket.on('data', begin).on('error', drop).on('end', drop);
  begin(Buffer.alloc(0));
};

/** Characters of requests that are not whole yet, over all connections. */
let unanswered = 0;

const answerLine = (socket: Socket, replyTo: (line: string) => Promise<object>): void => {
  let text = '';
  let taken = false;
  const hold = (more: string) => {
    unanswered += more.length - text.length;
    text = more;
  };
  const take = () => {
    if (taken) return;
    taken = true;
    const line = text.split('\n', 1)[0]?.trim();
    hold('');
    if (!line) return void socket.end();
    // A guest may take as long as it likes, and who asked may wait for it.
    socket.setTimeout(0);
    void replyTo(line).then((reply) => {
      socket.setTimeout(limits.agentLineStallMs);
      socket.write(reply instanceof Uint8Array ? reply : JSON.stringify(reply));
      socket.end('\n');
    });
  };
  socket.setEncoding('utf8');
  socket.setTimeout(limits.agentLineStallMs, () => socket.destroy());
  socket.on('end', take);
  socket.on('close', () => {
    taken = true;
    hold('');
  });
  socket.on('data', (part: string) => {
    // One line a connection: what comes behind it is nobody's.
    if (taken) return;
    hold(text + part);
    if (text.length > REQUEST_MAX_BYTES || unanswered > limits.agentLinesMaxBytes) socket.destroy();
    else if (part.includes('\n')) take();
  });
};

/** What is large is passed on as it is, once it has been judged. */
const readWith =
  (judge: Judge): Read<object> =>
  async (payload) => {
    if (payload.length < limits.answerHereMaxBytes) return requireReply(parsePayload({ payload }));
    await judge(payload);
    return payload;
  };

/** Failures in the reference's shape: an `error` key and exit code 1. */
const forward = async (line: string, agent: AgentClient, judge: Judge): Promise<object> => {
  try {
    return await agent.call(JSON.parse(line) as GuestRequest, 0, readWith(judge));
  } catch (error) {
    if (error instanceof SyntaxError) return { error: `JSONDecodeError: ${error.message}`, exit_code: 1 };
    return { error: `AgentError: ${(await agent.explain(ForkdError.from(error))).message}`, exit_code: 1 };
  }
};
