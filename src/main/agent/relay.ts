/**
 * Lends an agent to another process over a socket that speaks the framed protocol: the ids of its requests are changed for ones
 * of our own, and everything else goes through as it is. Credits come from the two ends, so what is on its way here is never more
 * than a stream's window.
 */
import type { Socket } from 'node:net';
import { nextCallId } from '../../contract/call-ids.js';
import { encodePayload, encodeRequest, type Frame, FrameDecoder, parsePayload } from '../../contract/frames.js';
import { FrameType } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import type { AgentClient } from './client.js';

/** `first`: what has been read of the socket already. */
export const relayFrames = (socket: Socket, agent: AgentClient, first: Uint8Array): void => {
  const decoder = new FrameDecoder();
  /** From the other side's ids to ours. */
  const ids = new Map<number, number>();

  const request = (frame: Frame): void => {
    const theirs = frame.id;
    const body = parsePayload(frame);
    // A stream is named by the id of the request that opened it.
    if (typeof body['stream'] === 'number') body['stream'] = ids.get(body['stream']) ?? 0;
    const ours = nextCallId();
    ids.set(theirs, ours);
    agent.attach(ours, {
      isStream: true,
      isAttach: body['action'] === 'attach',
      maxBytes: (type) => (type === FrameType.reply ? limits.agentFrameMaxBytes : limits.streamFrameMaxBytes),
      take: ({ type, payload }) => {
        const isLast = type === FrameType.reply;
        if (isLast) ids.delete(theirs);
        socket.write(encodePayload(type, theirs, payload));
        if (socket.writableLength > limits.relayBacklogBytes) socket.destroy();
        return isLast;
      },
      fail: () => socket.destroy(),
    });
    agent.send(encodeRequest(ours, body));
  };

  const read = (data: Uint8Array): void => {
    try {
      for (const frame of decoder.push(data)) {
        const ours = ids.get(frame.id);
        if (frame.type === FrameType.request) request(frame);
        else if (ours !== undefined) agent.send(encodePayload(frame.type, ours, frame.payload));
      }
    } catch {
      socket.destroy();
    }
  };

  socket.on('data', read);
  socket.on('end', () => socket.destroy());
  socket.on('close', () => {
    for (const ours of ids.values()) agent.closeStream(ours);
    ids.clear();
  });
  read(first);
};
