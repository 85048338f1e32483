/** The client as another package imports it, against a real daemon with real VMs. */
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller, ControllerError, Engine, type EventInfo, type GuestStream, Sandbox } from 'forkd';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { startCli } from '../support/cli.js';
import { BASE_TAG, makeWorld } from '../support/world.js';

const TOKEN = 'a-token-of-enough-bytes';
const world = makeWorld(true);
let daemon: TestDaemon;
let controller: Controller;

const client = suite('client');

client.before(async () => {
  const tokenFile = join(world.root, 'token');
  writeFileSync(tokenFile, TOKEN);
  daemon = await startDaemon(world, ['--token-file', tokenFile]);
  controller = new Controller({ baseUrl: `unix:${daemon.socketPath}`, token: TOKEN });
});
client.after(async () => {
  await controller.close();
  assert.is(await daemon.stop(), 0);
  world.close();
});

const refusal = async (promise: Promise<unknown>): Promise<ControllerError> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert.instance(error, ControllerError);
  return error as ControllerError;
};

client('the package exports client and engine, and the client alone', async () => {
  assert.type(Engine, 'function');
  const alone = await import('forkd/client');
  assert.equal(Object.keys(alone).sort(), ['Controller', 'ControllerError', 'GuestStream', 'Sandbox']);
  assert.is(alone.Controller, Controller);
});

client('a port, a socket, and a fetch of the caller; address and token also from the environment', async () => {
  const overPort = new Controller({ baseUrl: `${daemon.url}//`, token: TOKEN });
  assert.is(overPort.baseUrl, daemon.url);
  const byFetch = new Controller({ baseUrl: daemon.url, token: TOKEN, fetch });
  for (const one of [controller, overPort, byFetch]) {
    assert.equal(await one.health(), { ok: true });
    assert.is((await one.version()).api, 'v1');
    assert.equal(await one.listSandboxes(), []);
  }
  process.env['FORKD_URL'] = `unix:${daemon.socketPath}`;
  process.env['FORKD_TOKEN'] = TOKEN;
  try {
    assert.is((await new Controller().version()).api, 'v1');
  } finally {
    delete process.env['FORKD_URL'];
    delete process.env['FORKD_TOKEN'];
  }
  assert.throws(() => new Controller({ baseUrl: 'unix:/x', fetch }), /Unix socket/);
  assert.throws(() => new Controller({ baseUrl: 'nonsense' }), /URL/);
});

client('a sandbox from birth to end, beside it a second', async () => {
  const options = { baseUrl: `unix:${daemon.socketPath}`, token: TOKEN, snapshotTag: BASE_TAG };
  const [other] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG });
  assert.ok(other);
  const id = await Sandbox.with(options, async (sandbox) => {
    assert.equal((await controller.getSandbox(sandbox.id)).snapshot_tag, BASE_TAG);
    assert.equal(
      (await controller.listSandboxes()).map((one) => one.id),
      [other.id, sandbox.id].sort(),
    );
    assert.equal(await sandbox.exec(['echo', 'hi']), { stdout: 'hi\n', stderr: '', exit_code: 0 });
    const late = await sandbox.exec(['sleep', '60'], { timeoutSecs: 1 });
    assert.equal([late.exit_code !== 0, late.timed_out], [true, true]);
    assert.is(await sandbox.eval('6 * 7'), '42');
    await sandbox.eval('1/0').then(
      () => assert.unreachable(),
      (error: Error) => assert.match(error.message, /ZeroDivisionError/),
    );
    assert.is((await sandbox.ping()).pong, true);
    return sandbox.id;
  });
  const gone = await refusal(controller.getSandbox(id));
  assert.equal(
    [gone.status, gone.code, gone.url],
    [404, 'SANDBOX_NOT_FOUND', `${controller.baseUrl}/v1/sandboxes/${id}`],
  );
  assert.match(gone.message, id);
  const twice = new Sandbox(controller, other);
  assert.is(await twice.kill(), undefined);
  await twice.kill();
  assert.is((await refusal(controller.killSandbox(other.id))).status, 404);
});

const outputOf = async (stream: GuestStream): Promise<string> => {
  const all: Uint8Array[] = [];
  for await (const { data } of stream) all.push(data);
  return Buffer.concat(all).toString('utf8');
};

const eventually = async (done: () => Promise<boolean>, ms = 10_000): Promise<boolean> => {
  const end = performance.now() + ms;
  while (performance.now() < end) {
    if (await done()) return true;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return done();
};

client('programs while they run, files and ports, over the socket and over the port', async () => {
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG });
  assert.ok(one);
  const sandbox = new Sandbox(controller, one);
  const overPort = new Controller({ baseUrl: daemon.url, token: TOKEN });

  // A program.
  const asked = { env: { WHAT: 'this' }, cwd: '/tmp', user: 'nobody', stdin: 'fed\n' };
  const ran = await sandbox.exec(['sh', '-c', 'read x; echo $x $WHAT $PWD; id -un'], asked);
  assert.is(ran.stdout, 'fed this /tmp\nnobody\n');
  for (const over of [controller, overPort]) {
    const script = 'echo first; read line; echo "got $line" >&2; exit 7';
    const stream = over.runCommand(one.id, ['sh', '-c', script], { stdin: true });
    const pieces = stream[Symbol.asyncIterator]();
    assert.is(Buffer.from((await pieces.next()).value?.data ?? []).toString(), 'first\n');
    await stream.write(Buffer.from('something\n'));
    const { value } = await pieces.next();
    assert.equal([value?.channel, Buffer.from(value?.data ?? []).toString()], [2, 'got something\n']);
    assert.equal(await stream.ended, { exit_code: 7 });
    // Said in one breath with what is asked for.
    const echoes = Array.from({ length: 8 }, (_, number) => {
      const echo = over.runCommand(one.id, ['cat'], { stdin: true });
      void echo.write(Buffer.from(`${number}`));
      echo.end();
      return outputOf(echo);
    });
    assert.is((await Promise.all(echoes)).join(''), '01234567');
    // Heard when the connection is over already.
    const past = over.runCommand(one.id, ['echo', 'past']);
    await past.ended;
    await new Promise((resolve) => setTimeout(resolve, 200));
    assert.is(await outputOf(past), 'past\n');
  }
  const apart = { env: { WHAT: 'that' }, cwd: '/srv', user: 'nobody', timeoutSecs: 60 };
  assert.is(await outputOf(sandbox.run(['sh', '-c', 'echo $WHAT $PWD; id -un'], apart)), 'that /srv\nnobody\n');
  // Too late, with all that it has started.
  const tree = ['sh', '-c', 'setsid sleep 65432 & sleep 65432'];
  const late = await sandbox.exec(tree, { timeoutSecs: 1 });
  assert.equal([late.timed_out, late.exit_code], [true, -9]);
  const lateStream = await sandbox.run(tree, { timeoutSecs: 1 }).ended;
  assert.equal([lateStream.timed_out, lateStream.exit_code], [true, -9]);
  assert.is((await sandbox.exec(['pgrep', '-f', '^sleep 65432'])).stdout, '');
  // At once: the first ends only because the second runs.
  const waits = ['sh', '-c', 'until [ -e /tmp/go ]; do sleep 0.05; done; echo one'];
  const both = await Promise.all([sandbox.exec(waits), sandbox.exec(['touch', '/tmp/go']), sandbox.eval('1 + 1')]);
  assert.equal([both[0].stdout, both[2]], ['one\n', '2']);
  const terminal = sandbox.run(['sh', '-c', 'read x; stty size; read x; stty size'], {
    tty: true,
    stdin: true,
    rows: 9,
    cols: 33,
  });
  await terminal.opened;
  const sizes = outputOf(terminal);
  await terminal.write(Buffer.from('wait\n'));
  await terminal.control({ rows: 12, cols: 44 });
  await terminal.write(Buffer.from('more\n'));
  assert.match(await sizes, /(9 33|12 44)\r\n(.|\r\n)*12 44\r\n/);
  const flood = sandbox.run(['yes']);
  await flood.opened;
  assert.is(await sandbox.eval('6 * 7'), '42');
  let heard = '';
  for await (const { data } of flood) {
    // Told once: the rest is what was on its way.
    if (heard === '') await flood.control({ signal: 'TERM' });
    heard = Buffer.from(data.subarray(0, 4)).toString() || heard;
  }
  assert.is(heard.length > 0, true);
  assert.is((await flood.ended).exit_code, -15);
  assert.equal((await refusal(sandbox.run(['nosuch']).ended)).code, 'AGENT_ERROR');
  assert.is((await refusal(controller.runCommand('sb-1-0000', ['true']).opened)).status, 404);
  const nobody = new Controller({ baseUrl: daemon.url, token: 'wrong-token-of-some-length' });
  assert.is((await refusal(nobody.runCommand(one.id, ['true']).opened)).code, 'TOKEN_WRONG');

  // In the background.
  const streams = () => readFileSync(join(world.root, 'audit.log'), 'utf8').match(/\/stream"/g)?.length ?? 0;
  const lines = 'echo early; read line; echo "late $line"; exit 6';
  const { run } = await controller.startRun(one.id, ['sh', '-c', lines], { stdin: true });
  const listed = async () => (await controller.listRuns(one.id)).map((each) => [each.run, each.exit_code]);
  const before = streams();
  const attached = controller.attachRun(one.id, run);
  assert.is((await attached.opened)['run'], run);
  for await (const { data } of attached) {
    assert.is(Buffer.from(data).toString(), 'early\n');
    break;
  }
  // Who has heard enough leaves it running; the next to attach hears the rest.
  assert.equal(await listed(), [[run, null]]);
  // The daemon is done with it too.
  assert.ok(await eventually(async () => streams() === before + 1));
  const again = overPort.attachRun(one.id, run);
  await again.opened;
  await again.write(Buffer.from('word\n'));
  assert.is(await outputOf(again), 'late word\n');
  assert.is((await again.ended).exit_code, 6);
  assert.equal(await listed(), []);

  // Files.
  const bytes = Buffer.alloc(1_000_000, Buffer.from('\x00\xffFK{', 'latin1'));
  assert.equal(await sandbox.writeFile('/data/a/file', bytes, { parents: true, mode: 0o600 }), { size: bytes.length });
  const parts: Uint8Array[] = [];
  for await (const part of sandbox.readFile('/data/a/file')) parts.push(part);
  assert.ok(Buffer.concat(parts).equals(bytes));
  const entry = await controller.statFile(one.id, '/data/a/file');
  assert.equal([entry.name, entry.type, entry.size, entry.mode], ['file', 'file', bytes.length, 0o600]);
  await controller.makeDir(one.id, '/data/b/c');
  assert.equal(
    (await sandbox.listFiles('/data')).map(({ name, type }) => [name, type]),
    [
      ['a', 'dir'],
      ['b', 'dir'],
    ],
  );
  const archive = controller.readDir(one.id, '/data');
  assert.ok((await controller.writeDir(one.id, '/again', archive)).entries >= 4);
  assert.is((await controller.statFile(one.id, '/again/a/file')).size, bytes.length);
  assert.equal((await refusal(controller.removeFile(one.id, '/data'))).code, 'GUEST_FILE_REFUSED');
  const abort = new AbortController();
  const changes = await controller.watchFiles(one.id, '/data', { recursive: true, signal: abort.signal });
  await sandbox.removeFile('/data', { recursive: true });
  const gone: string[] = [];
  for await (const { event, path } of changes) gone.push(`${event} ${path}`);
  assert.is(gone.at(-1), 'deleted /data');
  assert.ok(gone.includes('deleted /data/a/file'), gone.join());
  const endless = await controller.watchFiles(one.id, '/', { signal: abort.signal });
  const next = endless.next();
  abort.abort();
  assert.is((await next).done, true);
  assert.is((await refusal(controller.watchFiles(one.id, '/data'))).code, 'GUEST_FILE_MISSING');
  // As a browser has it, over plain HTTP; and one whose sandbox ends is told so.
  const ending = (await Sandbox.create({ baseUrl: daemon.url, token: TOKEN, snapshotTag: BASE_TAG })).id;
  const address = `${daemon.url}/v1/sandboxes/${ending}/files/watch?path=/srv`;
  const headers = { authorization: `Bearer ${TOKEN}` };
  const watching = await fetch(address, { headers });
  assert.equal([watching.status, watching.headers.get('content-type')], [200, 'text/event-stream; charset=utf-8']);
  const told = await controller.watchFiles(ending, '/srv');
  await controller.execCommand(ending, ['touch', '/srv/new']);
  const { value: first } = await told.next();
  assert.equal(first, { event: 'created', path: '/srv/new', is_dir: false });
  // Both have heard of it before it ends.
  const pieces = watching.body?.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  const listen = async (isEnough: () => boolean) => {
    for (let isOver = false; !isOver && !isEnough(); ) {
      const { done = true, value = '' } = (await pieces?.read()) ?? {};
      text += value;
      isOver = done;
    }
  };
  await listen(() => text.includes('/srv/new'));
  await controller.killSandbox(ending);
  await listen(() => false);
  assert.match(text, /^: forkd\n\nevent: created\ndata: \{.*"path":"\/srv\/new".*\}\n\n/);
  assert.match(text, /event: failed\ndata: \{"error":".*","code":"[A-Z_]+","hint":".*"\}\n\n$/);
  const broken = await refusal(
    (async () => {
      for await (const _ of told);
    })(),
  );
  assert.type(broken.code, 'string');
  const wrong = await fetch(`${address}&recursive=yes`, { headers });
  assert.equal([wrong.status, (await fetch(address, { headers })).status], [400, 404]);
  const missing = await refusal(controller.statFile(one.id, '/data'));
  assert.equal([missing.status, missing.code], [404, 'GUEST_FILE_MISSING']);
  assert.is((await refusal(sandbox.readFile('/data').next())).status, 404);
  const brokenOff = (async function* () {
    yield bytes;
    throw new Error('broken off');
  })();
  await sandbox.writeFile('/half', brokenOff).then(
    () => assert.unreachable(),
    () => undefined,
  );
  assert.ok(await eventually(async () => (await sandbox.listFiles('/')).every(({ name }) => !name.startsWith('half'))));

  // More than one message has; and what the guest refuses in the middle leaves nothing unread on a connection that is used again.
  const large = Buffer.alloc(5_000_000, 'forkd');
  const counted = sandbox.run(['wc', '-c'], { stdin: true });
  await counted.write(large);
  counted.end();
  assert.is(await outputOf(counted), `${large.length}\n`);
  const small = 'mkdir /small && mount -t tmpfs -o size=1m none /small';
  assert.is((await sandbox.exec(['sh', '-c', small])).exit_code, 0);
  for (let i = 0; i < 3; i++) {
    const full = await refusal(overPort.writeFile(one.id, '/small/file', large.subarray(0, 3_000_000)));
    assert.match(full.message, 'No space left');
    assert.is((await overPort.execCommand(one.id, ['wc', '-c'], { stdin: 'x'.repeat(1_500_000) })).stdout, '1500000\n');
  }

  // A web service inside, at an address of the daemon.
  await controller.startRun(one.id, [
    'python3',
    '-m',
    'http.server',
    '8080',
    '--directory',
    '/again/a',
    '--bind',
    '127.0.0.1',
  ]);
  const preview = () =>
    fetch(`${daemon.url}/v1/sandboxes/${one.id}/ports/8080/file?x=1`, {
      headers: { authorization: `Bearer ${TOKEN}` },
    });
  assert.ok(await eventually(async () => (await preview()).status === 200, 30_000));
  const page = await preview();
  assert.match(page.headers.get('content-security-policy') ?? '', /^sandbox allow-scripts/);
  assert.ok(Buffer.from(await page.arrayBuffer()).equals(bytes));
  const closed = await fetch(`${daemon.url}/v1/sandboxes/${one.id}/ports/8081/`, {
    headers: { authorization: `Bearer ${TOKEN}` },
  });
  assert.equal([closed.status, ((await closed.json()) as { code: string }).code], [502, 'GUEST_PORT_CLOSED']);

  // What passes in either direction: any method and body, but not what is of this daemon and its user.
  const echo = `
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        told = [self.command, self.path, *(self.headers.get(name, '-') for name in ('x-mine', 'authorization', 'cookie'))]
        self.send_response(207)
        for name, value in (('x-theirs', 'there'), ('set-cookie', 'a=b'), ('content-security-policy', 'none'), ('service-worker-allowed', '/')):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(' '.join(told).encode() + b' ' + body)
    do_DELETE = do_POST
http.server.HTTPServer(('127.0.0.1', 8082), Echo).serve_forever()
`;
  await controller.startRun(one.id, ['python3', '-c', echo]);
  const asEcho = (method: string) =>
    fetch(`${daemon.url}/v1/sandboxes/${one.id}/ports/8082/a%20b?c=d`, {
      method,
      headers: { authorization: `Bearer ${TOKEN}`, 'x-mine': 'here', cookie: 'of=daemon' },
      body: 'text',
    });
  assert.ok(await eventually(async () => (await asEcho('POST')).status === 207, 30_000));
  for (const method of ['POST', 'DELETE']) {
    const reply = await asEcho(method);
    assert.is(await reply.text(), `${method} /a%20b?c=d here - - text`);
    const names = ['x-theirs', 'set-cookie', 'service-worker-allowed', 'content-security-policy'];
    assert.equal(
      names.map((name) => reply.headers.get(name)?.split(' ')[0]),
      ['there', undefined, undefined, 'sandbox'],
    );
  }

  // And as a port of this host.
  const env = { FORKD_TOKEN: TOKEN };
  const forwarding = startCli(['port', one.id, '8080:0', '--daemon-url', daemon.url], { env });
  const said = await forwarding.says(/127.0.0.1:\d+ -> 8080/);
  const reply = await fetch(`http://${/127.0.0.1:\d+/.exec(said)?.[0]}/file`);
  assert.ok(Buffer.from(await reply.arrayBuffer()).equals(bytes));
  forwarding.kill('SIGTERM');
  assert.is((await forwarding.ended).code, 0);
  await overPort.close();
  await sandbox.kill();
});

/** For each connection: sends back all that it was sent, the last byte first, when its other side has sent its last. */
const MIRROR = `
import socket, threading
def serve(one):
    data = b""
    while part := one.recv(65536): data += part
    one.sendall(b"you said: " + data[::-1])
    one.close()
server = socket.create_server(("127.0.0.1", 7000))
print("up", flush=True)
while True: threading.Thread(target=serve, args=(server.accept()[0],)).start()
`;

client('connectPort: bytes both ways, half-closed, several at once; where nobody listens', async () => {
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG });
  assert.ok(one);
  const { id } = one;
  const overPort = new Controller({ baseUrl: daemon.url, token: TOKEN });
  const serving = controller.runCommand(id, ['python3', '-c', MIRROR]);
  const up = await serving[Symbol.asyncIterator]().next();
  assert.is(Buffer.from(up.value?.data ?? []).toString(), 'up\n');
  // More than what any of the windows on the way holds.
  const sent = Buffer.alloc(3_000_000, Buffer.from('\x00\xffFK{abc', 'latin1'));
  const asked = [controller, overPort, controller].map(async (over, i) => {
    const stream = over.connectPort(id, 7000);
    const mine = sent.subarray(i);
    for (let at = 0; at < mine.length; at += 1_000_000) await stream.write(mine.subarray(at, at + 1_000_000));
    stream.end();
    const parts: Uint8Array[] = [];
    for await (const { channel, data } of stream) {
      assert.is(channel, 1);
      parts.push(data);
    }
    const expected = Buffer.concat([Buffer.from('you said: '), Buffer.from(mine).reverse()]);
    assert.ok(Buffer.concat(parts).equals(expected));
    assert.is((await stream.ended).exit_code, 0);
  });
  await Promise.all(asked);
  // By the sandbox; and one that is left: the service hears of it.
  const left = new Sandbox(controller, one).connect(7000);
  await left.opened;
  const connected = async () => (await controller.evalCode(id, COUNT_CONNECTIONS)).result;
  assert.is(await connected(), '1');
  left.close();
  assert.ok(await eventually(async () => (await connected()) === '0'));
  const refused = await refusal(controller.connectPort(id, 7001).opened);
  assert.is(refused.code, 'AGENT_ERROR');
  assert.match(refused.message, /ConnectionRefusedError/);
  await overPort.close();
  await controller.killSandbox(id);
});

/** Connections to port 7000 that are there: 0x1B58, proc(5). */
const COUNT_CONNECTIONS = `sum(line.split()[1].endswith(':1B58') and line.split()[3] == '01' for line in open('/proc/net/tcp'))`;

client('who goes away ends the program that runs for them, and none in the background', async () => {
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG });
  assert.ok(one);
  const { id } = one;
  const overPort = new Controller({ baseUrl: daemon.url, token: TOKEN });
  const running = async () => {
    const { stdout } = await controller.execCommand(id, ['pgrep', '-f', '^sleep 7654']);
    return stdout.split('\n').filter(Boolean).length;
  };
  /** In a session of its own too. */
  const script = ['sh', '-c', 'setsid sleep 76541 & sleep 76542 & echo up; wait'];
  const bothRun = () => eventually(async () => (await running()) === 2);
  const begun = async (stream: GuestStream): Promise<GuestStream> => {
    await stream.opened;
    assert.ok(await bothRun());
    return stream;
  };
  for (const over of [controller, overPort]) {
    (await begun(over.runCommand(id, script))).close();
    assert.ok(await eventually(async () => (await running()) === 0), 'closed');
    for await (const { data } of over.runCommand(id, script)) {
      assert.is(Buffer.from(data).toString(), 'up\n');
      break;
    }
    assert.ok(await eventually(async () => (await running()) === 0), 'not heard any more');
    // It has not heard yet that it runs.
    const early = over.runCommand(id, script);
    await eventually(async () => (await running()) > 0);
    early.close();
    assert.ok(await eventually(async () => (await running()) === 0), 'before it was told');
  }
  // Killed: nothing is said, the connection ends.
  for (const baseUrl of [`unix:${daemon.socketPath}`, daemon.url]) {
    const env = { ...world.env, FORKD_TOKEN: TOKEN };
    const cli = startCli(['exec', '-i', id, '--daemon-url', baseUrl, '--', ...script], { env });
    await cli.says('up');
    assert.ok(await bothRun());
    cli.kill('SIGKILL');
    assert.ok(await eventually(async () => (await running()) === 0), 'killed');
  }
  // With more input on its way than it takes: nothing that is said behind it is read.
  for (const over of [controller, overPort]) {
    const stream = await begun(over.runCommand(id, script, { stdin: true }));
    const refused = Array.from({ length: 4 }, () => stream.write(Buffer.alloc(1 << 20)).catch(() => 'gone'));
    stream.close();
    assert.ok(await eventually(async () => (await running()) === 0), 'closed, with input on its way');
    assert.is(await refused.at(-1), 'gone');
  }
  // In the background: neither who started it nor who heard it is what it runs for.
  const { run } = await overPort.startRun(id, script);
  const heard = overPort.attachRun(id, run);
  const first = await heard[Symbol.asyncIterator]().next();
  assert.is(Buffer.from(first.value?.data ?? []).toString(), 'up\n');
  heard.close();
  await heard.ended.catch(() => undefined);
  await overPort.close();
  const again = controller.attachRun(id, run);
  await again.opened;
  assert.ok(await bothRun());
  again.close();
  await controller.killSandbox(id);
});

client('events tell of sandboxes and snapshots as they happen, and again to who comes back', async () => {
  const abort = new AbortController();
  const seen: EventInfo[] = [];
  let id = '';
  const listening = (async () => {
    for await (const event of controller.events({ kinds: ['sandbox'], after: 0, signal: abort.signal }))
      if (seen.push(event) && event.action === 'deleted' && event.object === id) abort.abort();
  })();
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, labels: { a: 'b' } });
  assert.ok(one);
  id = one.id;
  assert.equal(
    (await controller.listSandboxes({ labels: { a: 'b' } })).map(({ id }) => id),
    [one.id],
  );
  await controller.killSandbox(one.id);
  await listening;
  const mine = seen.filter(({ object }) => object === one.id);
  assert.equal(
    mine.map(({ action }) => action),
    ['created', 'deleted'],
  );
  assert.equal(mine[0]?.sandbox, one);
  const again = controller.events({ after: (mine[1]?.id ?? 0) - 1 });
  assert.equal((await again.next()).value, mine[1]);
  await again.return();
  const refused = controller.events({ kinds: ['nothing' as 'sandbox'] }).next();
  assert.is((await refusal(refused)).status, 400);
});

client('branches, and snapshots made of snapshots', async () => {
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, n: 1, prewarm: false });
  assert.ok(one);
  const sandbox = new Sandbox(controller, one);
  const branch = await sandbox.branch({ tag: 'cut', mode: 'diff', diff: true, parentTag: BASE_TAG });
  assert.equal([branch.tag, branch.status, branch.branched_from], ['cut', 'ready', one.id]);
  assert.ok((branch.diff_physical_bytes ?? 0) > 0);
  assert.is((await controller.getSnapshot('cut')).status, 'ready');
  assert.equal((await controller.snapshotInfo('cut')).ancestors, [BASE_TAG]);
  assert.is((await controller.compactSnapshot('cut', 'flat')).branched_from, 'compact:cut');
  assert.is((await refusal(sandbox.branch({ tag: 'cut' }))).code, 'SNAPSHOT_EXISTS');
  assert.is((await refusal(sandbox.branch({ tag: 'x', wait: false }))).status, 400);
  const writing = await sandbox.branch({ mode: 'live', wait: false });
  assert.equal([writing.status, writing.bootable], ['writing', false]);
  assert.match(writing.tag, `branch-${one.id}`);
  const blocked = await refusal(controller.deleteSnapshot(BASE_TAG));
  assert.equal([blocked.status, blocked.code], [409, 'SNAPSHOT_HAS_DEPENDENTS']);
  assert.match(blocked.hint ?? '', 'snapshot-compact');
  assert.is(await controller.deleteSnapshot('cut', { force: true }), undefined);
  await controller.deleteSnapshot('flat');
  await sandbox.kill();
});

client('what is refused, unreachable or late', async () => {
  const stranger = new Controller({ baseUrl: daemon.url, token: 'wrong-token-of-some-length' });
  assert.equal((await refusal(stranger.version())).code, 'TOKEN_WRONG');
  const escaped = await refusal(controller.getSandbox('../snapshots'));
  assert.is(escaped.status, 404);
  await new Controller({ baseUrl: 'unix:/nowhere.sock' }).health().then(
    () => assert.unreachable(),
    (error: NodeJS.ErrnoException) => assert.is(error.code, 'ENOENT'),
  );
  const silent = createServer(() => undefined).listen(0, '127.0.0.1');
  await new Promise((resolve) => silent.once('listening', resolve));
  const { port } = silent.address() as AddressInfo;
  await new Controller({ baseUrl: `http://127.0.0.1:${port}`, timeoutMs: 50 }).health().then(
    () => assert.unreachable(),
    (error: Error) => assert.is(error.name, 'AbortError'),
  );
  silent.closeAllConnections();
  silent.close();
});

client('a large answer is whole, and others are answered while it is on its way', async () => {
  const [one] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG });
  const id = one?.id as string;
  const bytes = 12 << 20;
  // Quotes and lines have to be written anew for JSON.
  const print = (count: number) => ['sh', '-c', `yes 'some "text"' | head -c ${count}; echo "é" >&2; exit 3`];
  const expected = (count: number) => 'some "text"\n'.repeat(count / 12 + 1).slice(0, count);
  let isOver = false;
  const heard = (async () => {
    const other = new Controller({ baseUrl: daemon.url, token: TOKEN });
    let count = 0;
    for (; !isOver; count++) {
      assert.equal(await other.health(), { ok: true });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await other.close();
    return count;
  })();
  const reply = await controller.execCommand(id, print(bytes), { timeoutSecs: 60 });
  isOver = true;
  assert.equal([reply.exit_code, reply.stderr, reply.stdout === expected(bytes)], [3, 'é\n', true]);
  assert.ok((await heard) > 5);
  const value = await controller.evalCode(id, `print('"x' * ${2 << 20}, end='')\n'é' * 3`);
  assert.equal([value.result, value.error, value.stdout === '"x'.repeat(2 << 20)], ["'ééé'", null, true]);
  // By its own socket.
  const env = { ...world.env, FORKD_TOKEN: TOKEN };
  const ended = await startCli(['exec', '--target', id, '--', ...print(3 << 20)], { env }).ended;
  assert.equal([ended.code, ended.stderr, ended.stdout === expected(3 << 20)], [3, 'é\n', true]);
  await controller.killSandbox(id);
});

client.run();
