/** What a client does that never gets as far as a request. No daemon and no VM is needed for that. */
import { once } from 'node:events';
import { type AddressInfo, connect } from 'node:net';
import fastify from 'fastify';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { endStalled, makeServer } from '../../src/main/daemon/listener.js';

const server = makeServer((_, response) => void response.end('served'), {
  headersMs: 100,
  requestMs: 200,
  checkMs: 20,
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const { port } = server.address() as AddressInfo;

/** All that comes back for these bytes, until the server hangs up. */
const send = async (text: string): Promise<string> => {
  const socket = connect(port, '127.0.0.1').setEncoding('utf8');
  socket.write(text);
  let answer = '';
  for await (const part of socket) answer += part;
  return answer;
};

test('headers or a body that do not come are answered, and the connection ends', async () => {
  for (const begun of ['GET / HTTP/1.1\r\nHost: x\r\n', 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx'])
    assert.match(await send(begun), /408 Request Timeout[\s\S]*"code":"REQUEST_TIMEOUT"/);
});

test('what is not HTTP, and headers without end', async () => {
  assert.match(await send('nonsense\r\n\r\n'), /^HTTP\/1.1 400 [\s\S]*"code":"BODY_NOT_JSON"/);
  assert.match(
    await send(`GET / HTTP/1.1\r\nx: ${'y'.repeat(20_000)}\r\n\r\n`),
    /^HTTP\/1.1 431 [\s\S]*HEADERS_TOO_LARGE/,
  );
});

test('an answer that nobody reads ends, one that somebody reads slowly does not', async () => {
  const app = fastify();
  endStalled(app, 200);
  // More than the kernel keeps for a connection.
  app.get('/', (_, reply) => reply.send(Buffer.alloc(64 << 20)));
  await app.listen({ port: 0, host: '127.0.0.1' });
  const begin = () => {
    const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1');
    socket.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    return socket;
  };
  let received = 0;
  const slow = begin();
  const read = (async () => {
    for await (const part of slow) {
      received += part.length;
      // Now and then it is away, but never for as long as it may.
      if (Math.floor(received / (16 << 20)) > Math.floor((received - part.length) / (16 << 20)))
        await new Promise((resolve) => setTimeout(resolve, 80));
    }
  })();
  const deaf = begin();
  await read;
  assert.ok(received > 64 << 20);
  const open = () => new Promise<number>((resolve) => app.server.getConnections((_, count) => resolve(count)));
  const end = performance.now() + 20_000;
  while ((await open()) > 0 && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.is(await open(), 0);
  deaf.destroy();
  await app.close();
});

test.after(() => {
  server.closeAllConnections();
  server.close();
});

test.run();
