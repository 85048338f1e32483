/** Server-sent events to listeners that are slow or gone, over real connections. */
import { type AddressInfo, connect } from 'node:net';
import { fastify } from 'fastify';
import * as assert from 'uvu/assert';
import { closeEventStreams, type EventStream, openEventStream } from '../../src/main/daemon/event-stream.js';
import { suite } from '../support/suite.js';

const test = suite('event streams');

/** What `use` makes of the stream that a listener has, who reads when it is told to. */
const listened = async (
  use: (events: EventStream, listener: ReturnType<typeof connect>) => Promise<void>,
  wait = async (_: ReturnType<typeof connect>): Promise<void> => undefined,
): Promise<void> => {
  const app = fastify();
  let listener: ReturnType<typeof connect>;
  const done = new Promise<void>((resolve, reject) => {
    app.get('/', async (request, reply) => {
      await wait(listener);
      void use(openEventStream(app, request, reply), listener).then(resolve, reject);
      return reply;
    });
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  listener = connect(port, '127.0.0.1').on('error', () => undefined);
  listener.pause().write('GET / HTTP/1.1\r\nhost: x\r\n\r\n');
  try {
    await done;
  } finally {
    listener.destroy();
    closeEventStreams(app);
    await app.close();
  }
};

test('who waits for room again and again leaves nothing behind', async () => {
  const warned: string[] = [];
  const warn = ({ name }: Error) => void warned.push(name);
  process.on('warning', warn);
  const data = { text: 'x'.repeat(1024 * 1024) };
  await listened(async (events, listener) => {
    for (let i = 0; i < 15; i++) {
      while (events.tell({ name: 'much', data }));
      listener.resume();
      await events.room();
      listener.pause();
    }
    events.cut();
  });
  process.off('warning', warn);
  assert.equal(warned, []);
});

test('a listener that went before it was answered is let go', async () => {
  await listened(
    (events) => new Promise((resolve) => events.onClose(resolve)),
    async (listener) => {
      listener.destroy();
      await new Promise((resolve) => setTimeout(resolve, 100));
    },
  );
});

test.run();
