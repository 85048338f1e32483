/** What a guest that uses QEMU's network reaches of this host's loopback: nothing but what is named. Python takes QEMU's part: the calls are the same. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server } from 'node:net';
import * as assert from 'uvu/assert';
import { allowedLoopback } from '../../src/main/oci/extras.js';
import { fencePath } from '../../src/native/binding.js';
import { suite } from '../support/suite.js';

const TRY = `
import socket, sys
def attempt(family, kind, address):
    s = socket.socket(family, kind)
    s.settimeout(5)
    try:
        if kind == socket.SOCK_DGRAM: s.sendto(b'x', address)
        else: s.connect(address)
        return 'reached'
    except OSError as e: return e.strerror
a, b = int(sys.argv[1]), int(sys.argv[2])
T, U = socket.SOCK_STREAM, socket.SOCK_DGRAM
print([attempt(socket.AF_INET, T, ('127.0.0.1', a)), attempt(socket.AF_INET, T, ('127.9.9.9', a)), attempt(socket.AF_INET, T, ('0.0.0.0', a)),
  attempt(socket.AF_INET6, T, ('::ffff:127.0.0.1', a)), attempt(socket.AF_INET, U, ('127.0.0.1', a)), attempt(socket.AF_INET, U, ('127.0.0.1', b)),
  attempt(socket.AF_INET, T, ('127.0.0.1', b))])
`;

const listening = async (): Promise<{ server: Server; port: number }> => {
  const server = createServer((socket) => socket.destroy()).listen(0, '0.0.0.0');
  await once(server, 'listening');
  return { server, port: (server.address() as AddressInfo).port };
};

const test = suite('fence');

test('loopback is out of reach, but for what is named', async () => {
  const [closed, open] = [await listening(), await listening()];
  const run = async (env: Record<string, string>): Promise<string> => {
    const child = spawn('python3', ['-c', TRY, String(closed.port), String(open.port)], {
      env: { PATH: '/usr/bin:/bin', ...env },
    });
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
    });
    await once(child, 'close');
    return text.trim();
  };
  try {
    const refused = "'Connection refused'";
    assert.is(
      await run({ LD_PRELOAD: fencePath, FORKD_FENCE: `127.0.0.1:${open.port}` }),
      `[${[refused, refused, refused, refused, refused, "'reached'", "'reached'"].join(', ')}]`,
    );
    assert.match(await run({}), /^\['reached', 'reached', 'reached'/, 'without it');
  } finally {
    closed.server.close();
    open.server.close();
  }
});

test('what is named: proxies on this host, and its resolver', () => {
  const list = (env: NodeJS.ProcessEnv, resolvers = ''): string[] => allowedLoopback(env, resolvers);
  assert.equal(list({}), []);
  assert.equal(list({ http_proxy: 'http://proxy.example.com:3128' }), []);
  assert.equal(list({ http_proxy: 'http://me:secret@localhost:3128', HTTPS_PROXY: 'http://127.0.0.1:3128' }), [
    '127.0.0.1:3128',
  ]);
  assert.equal(list({ https_proxy: 'http://[::1]' }, 'nameserver 127.0.0.53\nsearch x\nnameserver 10.0.0.1\n'), [
    '127.0.0.1:80',
    '::1:80',
    '127.0.0.53:53',
    '10.0.0.1:53',
  ]);
});

test.run();
