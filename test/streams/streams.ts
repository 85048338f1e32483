/** Programs whose output is heard while they run, in one forked child: over the engine, and over the command line. Of either agent. */
import { execFileSync } from 'node:child_process';
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { nextCallId } from '../../src/contract/call-ids.js';
import { encodeRequest, parsePayload } from '../../src/contract/frames.js';
import { jsonLines } from '../../src/contract/lines.js';
import {
  type ExecReply,
  type FileEvent,
  FrameType,
  type PlainReply,
  type RunOptions,
} from '../../src/contract/guest.js';
import type { AgentStream } from '../../src/main/agent/stream.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { CLI, forkd, start, startCli } from '../support/cli.js';
import { BASE_TAG, makeWorld, sharedData } from '../support/world.js';

/** The agent in C is not the one of the shared parent: it is booted with the same image. */
export const streamSuite = (agent: 'python' | 'c') => {
  const world = agent === 'c' ? makeWorld() : undefined;
  const dataHome = world?.env.XDG_DATA_HOME ?? sharedData();
  process.env['XDG_DATA_HOME'] = dataHome;
  const engine = new Engine();
  let child: Sandbox;

  const exec = suite(`exec streams, agent in ${agent}`);

  exec.before(async () => {
    if (world) await engine.snapshot({ tag: BASE_TAG, agent: 'c' });
    const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
    [child] = sandboxes as [Sandbox];
    await engine.publish([child]);
  });
  exec.after(async () => {
    await engine.close();
    world?.close();
  });

  /** Whether it answers what is no stream. */
  const answers = async (id: string): Promise<boolean> =>
    agent === 'c'
      ? (await engine.exec(id, ['echo', '42'])).stdout === '42\n'
      : (await engine.eval(id, '6 * 7')).result === '42';

  const open = (options: RunOptions): AgentStream => engine.execStream(child.id, options);

  /** Text of stdout and stderr until the end, and how it ended. */
  const all = async (stream: AgentStream) => {
    const texts = ['', '', ''];
    for await (const { channel, data } of stream) texts[channel] += Buffer.from(data).toString('utf8');
    return { stdout: texts[1], stderr: texts[2], ...(await stream.ended) };
  };

  /** Reads on until the text is there. */
  const until = async (pieces: AsyncIterator<{ data: Uint8Array }>, text: string): Promise<string> => {
    let heard = '';
    while (!heard.includes(text)) {
      const { done, value } = await pieces.next();
      if (done) throw new Error(`it ended with: ${heard}`);
      heard += Buffer.from(value.data).toString('utf8');
    }
    return heard;
  };

  exec('output comes while the program waits for input', async () => {
    const stream = open({ args: ['sh', '-c', 'echo first; read line; echo "got $line" >&2; exit 7'], stdin: true });
    const pieces = stream[Symbol.asyncIterator]();
    await until(pieces, 'first\n');
    await stream.write(Buffer.from('something\n'));
    const { value } = await pieces.next();
    assert.equal([value?.channel, Buffer.from(value?.data ?? []).toString()], [2, 'got something\n']);
    assert.is((await pieces.next()).done, true);
    assert.equal(await stream.ended, { exit_code: 7 });
  });

  exec('bytes come as they were sent, in both directions', async () => {
    const bytes = Buffer.alloc(1_500_000, Buffer.from('\x00\xff\x80FK\x02\x00{', 'latin1'));
    const stream = open({ args: ['cat'], stdin: true });
    // Before it is open: what is written waits, and is not forgotten.
    const written = stream.write(bytes).then(() => stream.end());
    const parts: Uint8Array[] = [];
    for await (const { data } of stream) parts.push(data);
    await written;
    assert.ok(Buffer.concat(parts).equals(bytes));
  });

  exec('input may end at once', async () => {
    const stream = open({ args: ['cat'], stdin: true });
    stream.end();
    assert.equal(await all(stream), { stdout: '', stderr: '', exit_code: 0 });
    const behind = open({ args: ['cat'], stdin: true });
    void behind.write(Buffer.from('all of it'));
    behind.end();
    assert.is((await all(behind)).stdout, 'all of it');
  });

  exec('environment, directory and user', async () => {
    const script = 'echo $WHAT $PWD $HOME; id -un; id -gn';
    const ran = await all(open({ args: ['sh', '-c', script], env: { WHAT: 'this' }, cwd: '/tmp', user: 'nobody' }));
    assert.is(ran.stdout, 'this /tmp /nonexistent\nnobody\nnogroup\n');
    const numbers = await all(open({ args: ['id', '-u'], user: '1234:77' }));
    assert.is(numbers.stdout, '1234\n');
    const refusal = async (options: RunOptions): Promise<string> =>
      open(options).ended.then(
        () => '',
        (error: Error) => error.message,
      );
    assert.match(await refusal({ args: ['true'], user: 'nosuch' }), "no user 'nosuch'");
    assert.match(await refusal({ args: ['no-such-program'] }), 'FileNotFoundError');
  });

  exec('signals reach the program; a closed stream ends it', async () => {
    const trapped = open({
      args: ['sh', '-c', 'trap "echo caught; exit 3" USR1; echo ready; while :; do sleep 0.05; done'],
    });
    const pieces = trapped[Symbol.asyncIterator]();
    await until(pieces, 'ready');
    await trapped.control({ signal: 'USR1' });
    await until(pieces, 'caught');
    assert.is((await trapped.ended).exit_code, 3);
    const closed = open({ args: ['sleep', '100'] });
    await closed.opened;
    closed.close();
    assert.is((await closed.ended).exit_code, -9);
  });

  exec('a timeout ends all that the program started', async () => {
    const script = 'setsid sleep 54321 & echo begun; sleep 54321';
    const late = await all(open({ args: ['sh', '-c', script], timeout: 0.5 }));
    assert.equal([late.stdout, late.exit_code, late.timed_out], ['begun\n', -9, true]);
    const { stdout } = await all(open({ args: ['sh', '-c', 'pgrep -f "sleep 54321" | wc -l'] }));
    // The shell that asks has it in its own command line.
    assert.is(stdout, '1\n');
  });

  exec('a timeout of years holds up nobody', async () => {
    const { id } = child;
    const args = ['sh', '-c', 'sleep 0.3; echo done'];
    const stream = open({ args, timeout: 1e8 });
    await stream.opened;
    const reply = (await engine.sandbox(id).call({ action: 'exec', args, timeout: 1e8 }, 30_000)) as ExecReply;
    assert.is(reply.stdout, 'done\n');
    const waited = new Promise((_, reject) => setTimeout(reject, 30_000, new Error('nothing came')).unref());
    assert.is(((await Promise.race([all(stream), waited])) as { stdout: string }).stdout, 'done\n');
  });

  exec('a program in the background that holds the output does not hold up the end', async () => {
    const began = performance.now();
    const { stdout, exit_code } = await all(open({ args: ['sh', '-c', 'sleep 30 & echo done'] }));
    assert.equal([stdout, exit_code], ['done\n', 0]);
    assert.ok(performance.now() - began < 20_000);
  });

  exec('a terminal, of the size that is asked for, then another', async () => {
    const stream = open({
      args: ['sh', '-c', 'stty -echo; tty; stty size; read x; stty size; read y'],
      tty: true,
      stdin: true,
      rows: 33,
      cols: 99,
    });
    const pieces = stream[Symbol.asyncIterator]();
    const first = await until(pieces, '33 99\r\n');
    assert.match(first, '/dev/pts/');
    await stream.control({ rows: 50, cols: 120 });
    await stream.write(Buffer.from('\n'));
    await until(pieces, '50 120\r\n');
    // What a user types to interrupt.
    await stream.write(Buffer.from('\x03'));
    assert.is((await all(stream)).exit_code, -2);
  });

  exec('who floods waits, and nobody else does', async () => {
    const window = 65_536;
    const id = nextCallId();
    let bytes = 0;
    let full = () => undefined;
    const filled = new Promise<void>((resolve) => {
      full = () => void resolve();
    });
    const ended = new Promise<Record<string, unknown>>((resolve, reject) => {
      child.agent.attach(id, {
        maxBytes: () => window + 1,
        take: (frame) => {
          if (frame.type === FrameType.data) bytes += frame.payload.length - 1;
          if (bytes >= window) full();
          if (frame.type === FrameType.reply) resolve(parsePayload(frame));
          return frame.type === FrameType.reply;
        },
        fail: reject,
      });
    });
    child.agent.send(encodeRequest(id, { action: 'run', args: ['yes'], window }));
    await filled;
    // Nothing more comes, however long it goes on: these answers come after whatever it would have sent.
    for (let i = 0; i < 3; i++) assert.ok(await answers(child.id));
    assert.is((await engine.exec(child.id, ['echo', 'beside'])).stdout, 'beside\n');
    assert.is(bytes, window);
    child.agent.closeStream(id);
    assert.is((await ended)['exit_code'], -9);
  });

  exec('in the background, heard later', async () => {
    const script = 'echo early; read line; echo "late $line"; exit 4';
    const request = { action: 'run' as const, detach: true as const, args: ['sh', '-c', script], stdin: true };
    const { run = 0 } = await engine.ask<PlainReply>(child.id, request);
    const listed = async () =>
      (await engine.ask<PlainReply>(child.id, { action: 'runs' })).runs?.find((one) => one.run === run);
    assert.equal([(await listed())?.exit_code, (await listed())?.attached], [null, false]);
    const first = engine.stream(child.id, { action: 'attach', run });
    const heard = first[Symbol.asyncIterator]();
    await until(heard, 'early\n');
    first.close();
    // It lives on, and the next to attach hears the rest.
    const second = engine.stream(child.id, { action: 'attach', run });
    await second.opened;
    await second.write(Buffer.from('word\n'));
    const { stdout, exit_code } = await all(second);
    assert.equal([stdout, exit_code], ['late word\n', 4]);
    assert.is(await listed(), undefined);
  });

  exec('what a program says first is heard, whatever else is begun just then', async () => {
    const lane = async (said: string[] = []): Promise<string[]> => {
      const { stdout } = await all(open({ args: ['sh', '-c', 'echo first; echo second'] }));
      return said.length < 24 ? lane([...said, stdout ?? '']) : said;
    };
    const heardAtItsEnd = async (said: string[] = []): Promise<string[]> => {
      const { stdout } = await engine.exec(child.id, ['sh', '-c', 'echo first; echo second'], 60);
      return said.length < 24 ? heardAtItsEnd([...said, stdout ?? '']) : said;
    };
    const said = (await Promise.all([lane(), lane(), lane(), lane(), heardAtItsEnd(), heardAtItsEnd()])).flat();
    assert.equal(new Set(said), new Set(['first\nsecond\n']));
  });

  // One agent has one thread.
  if (agent === 'python')
    exec('a stream is closed though the agent hears of that before it has begun', async () => {
      // While the first thread evaluates, others take what comes; one of them begins a program slowly.
      const busy = engine.eval(
        child.id,
        `import forkd_agent.programs as programs, time
real = programs.spawn
def slow(*given):
    time.sleep(0.6)
    return real(*given)
programs.spawn = slow
time.sleep(1.2)
programs.spawn = real`,
      );
      await new Promise((resolve) => setTimeout(resolve, 200));
      const stream = open({ args: ['sleep', '100'] });
      await new Promise((resolve) => setTimeout(resolve, 200));
      stream.close();
      assert.is((await stream.ended).exit_code, -9);
      await busy;
    });

  exec('a child that is copied while it streams: the copy is clean, the streams go on', async () => {
    const stream = open({ args: ['cat'], stdin: true });
    await stream.opened;
    const bytes = Buffer.alloc(2_000_000, 'x');
    let got = 0;
    const reading = (async () => {
      for await (const { data } of stream) got += data.length;
    })();
    const writing = stream.write(bytes).then(() => stream.end());
    // What ends the VM ends both: why is told below.
    for (const one of [reading, writing]) one.catch(() => undefined);
    // More than one asks for a copy at once.
    const branches = await Promise.all(Array.from({ length: 4 }, () => engine.branch(child.id)));
    const copies: Sandbox[] = [];
    for (const { template } of branches) {
      const { sandboxes, failures } = await engine.forkFrom(template, { n: 1 });
      assert.equal(failures, []);
      const [copy] = sandboxes as [Sandbox];
      copies.push(copy);
      assert.ok(await answers(copy.id));
      const echoed = await engine.execStream(copy.id, { args: ['echo', 'copy'] });
      assert.is((await all(echoed)).stdout, 'copy\n');
    }
    await Promise.all([reading, writing]).catch(async (error) => {
      throw await child.explain(error);
    });
    assert.is(got, bytes.length);
    await engine.kill(copies);
    for (const { template } of branches) await engine.retire(template);
  });

  exec('the command line: output, input, exit code', async () => {
    const env = { XDG_DATA_HOME: dataHome };
    const ran = await forkd(
      [
        ...['exec', '-e', 'A=b', '-w', '/tmp', '-u', 'nobody', child.id],
        ...['--', 'sh', '-c', 'echo $A $PWD; id -un; echo bad >&2; exit 5'],
      ],
      { env },
    );
    assert.equal([ran.stdout, ran.stderr, ran.code], ['b /tmp\nnobody\n', 'bad\n', 5]);
    const fed = await start('sh', ['-c', `echo fed | "${process.execPath}" "${CLI}" exec -i ${child.id} -- cat`], {
      env,
    }).ended;
    assert.equal([fed.stdout, fed.code], ['fed\n', 0]);
    const tree = 'setsid sleep 65432 & sleep 65432';
    const late = await forkd(['exec', '--timeout-secs', '1', child.id, '--', 'sh', '-c', tree], { env });
    assert.is(late.code, 1);
    assert.match(late.stderr, 'did not end within 1 s');
    assert.is(
      (await engine.exec(child.id, ['pgrep', '-f', '^sleep 65432'])).stdout,
      '',
      'all that it started has ended',
    );
    const trap = 'trap "echo caught; exit 3" INT; echo ready; while :; do sleep 0.05; done';
    const trapped = startCli(['exec', child.id, '--', 'sh', '-c', trap], { env });
    await trapped.says('ready');
    trapped.kill('SIGINT');
    const { stdout: caught, code: ended } = await trapped.ended;
    assert.equal([caught, ended], ['ready\ncaught\n', 3]);
    // At once: the first ends only because the second runs.
    const waits = 'until [ -e /tmp/go ]; do sleep 0.05; done; echo one';
    const [one, two] = await Promise.all(
      [waits, 'touch /tmp/go; echo two'].map((line) => forkd(['exec', child.id, '--', 'sh', '-c', line], { env })),
    );
    assert.equal([one?.stdout, two?.stdout], ['one\n', 'two\n']);
    const { stdout: number } = await forkd(['exec', '-d', child.id, '--', 'sh', '-c', 'echo there; exit 6'], { env });
    assert.match((await forkd(['ps', child.id], { env })).stdout, new RegExp(`^RUN .*\n${number.trim()} `));
    const attached = await forkd(['attach', child.id, number.trim()], { env });
    assert.equal([attached.stdout, attached.code], ['there\n', 6]);
    // Joined, left by its keys, joined again.
    const asks = 'read a; echo "1 $a"; read b; echo "2 $b"; exit 4';
    const { stdout: other } = await forkd(['exec', '-d', '-i', child.id, '--', 'sh', '-c', asks], { env });
    const joined = (input: string) =>
      start('sh', ['-c', `(${input}) | "${process.execPath}" "${CLI}" attach -i ${child.id} ${other.trim()}`], { env })
        .ended;
    const left = await joined("printf 'one\\n'; sleep 0.5; printf '\\020\\021'; sleep 0.5");
    assert.is(left.code, 0, left.stderr);
    assert.match((await forkd(['ps', child.id], { env })).stdout, new RegExp(`^${other.trim()} `, 'm'));
    const last = await joined('echo two');
    assert.equal([left.stdout + last.stdout, last.code], ['1 one\n2 two\n', 4]);
  });

  exec('the command line on a terminal', async () => {
    // A terminal of our own, made by Python; its size and its keys are those of the program in the guest.
    const script = `
import fcntl, os, pty, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 41, 123, 0, 0))
out = b''
while b'# ' not in out: out += os.read(fd, 4096)
os.write(fd, b'stty size\\n')
while b'41 123' not in out: out += os.read(fd, 4096)
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 17, 87, 0, 0))
# The new size is on its way.
while b'17 87' not in out:
    os.write(fd, b'stty size\\n')
    out += os.read(fd, 4096)
os.write(fd, b'exit 9\\n')
try:
    while True:
        data = os.read(fd, 4096)
        if not data: break
        out += data
except OSError: pass
print(out.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`;
    const args = ['-c', script, process.execPath, CLI, 'exec', '-it', child.id, '--', 'bash', '--norc'];
    const { stdout, code } = await start('python3', args, { env: { XDG_DATA_HOME: dataHome } }).ended;
    assert.match(stdout, '41 123');
    assert.is(code, 9);
  });

  exec('the command line: files and directories, both ways', async () => {
    const env = { XDG_DATA_HOME: dataHome };
    const dir = mkdtempSync(join(tmpdir(), 'cp-'));
    const bytes = Buffer.alloc(300_000, 'forkd');
    mkdirSync(join(dir, 'tree/inner'), { recursive: true });
    writeFileSync(join(dir, 'tree/inner/file'), bytes, { mode: 0o755 });
    symlinkSync('inner/file', join(dir, 'tree/link'));
    const copy = async (from: string, to: string) => {
      const { code, stderr } = await forkd(['cp', from, to], { env });
      assert.is(code, 0, stderr);
    };
    await copy(join(dir, 'tree'), `${child.id}:/root`);
    await copy(join(dir, 'tree/inner/file'), `${child.id}:/root/tree/other`);
    const listed = await engine.exec(child.id, [
      'sh',
      '-c',
      'cd /root/tree; ls -l inner/file | cut -c1-10; readlink link; md5sum <inner/file; md5sum <other',
    ]);
    const [mode, link, one, other] = listed.stdout.split('\n');
    assert.equal([mode, link, one], ['-rwxr-xr-x', 'inner/file', other]);
    // What would write elsewhere on this host must not.
    await engine.exec(child.id, ['sh', '-c', `cd /root/tree && ln -s ${dir} out && mknod device c 1 3`]);
    await copy(`${child.id}:/root/tree`, join(dir, 'back'));
    assert.ok(readFileSync(join(dir, 'back/inner/file')).equals(bytes));
    assert.equal(readdirSync(join(dir, 'back')).sort(), ['inner', 'link', 'other', 'out']);
    await copy(`${child.id}:/root/tree/other`, dir);
    assert.ok(readFileSync(join(dir, 'other')).equals(bytes));
    const missing = await forkd(['cp', `${child.id}:/nowhere`, dir], { env });
    assert.is(missing.code, 1);
    assert.match(missing.stderr, 'FileNotFoundError');
    const listing = await start('sh', ['-c', `"${process.execPath}" "${CLI}" cp ${child.id}:/root/tree - | tar -t`], {
      env,
    }).ended;
    assert.match(listing.stdout, './inner/file');
    const fed = `tar -C '${join(dir, 'tree')}' -c . | "${process.execPath}" "${CLI}" cp - ${child.id}:/root/fed`;
    assert.is((await start('sh', ['-c', fed], { env }).ended).code, 0);
    const same = 'test "$(md5sum </root/fed/inner/file)" = "$(md5sum </root/tree/other)"';
    assert.is((await engine.exec(child.id, ['sh', '-c', same])).exit_code, 0);
    rmSync(dir, { recursive: true });
  });

  exec('archives: long names, links, of several kinds; what is outside, or broken off, is refused', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'archive-'));
    try {
      const long = `${'n'.repeat(120)}/${'m'.repeat(160)}`;
      mkdirSync(join(dir, 'tree', 'n'.repeat(120)), { recursive: true });
      writeFileSync(join(dir, 'tree', long), 'long', { mode: 0o640 });
      writeFileSync(join(dir, 'tree/plain'), 'x'.repeat(1300));
      symlinkSync('t'.repeat(140), join(dir, 'tree/link'));
      linkSync(join(dir, 'tree/plain'), join(dir, 'tree/zlinked'));
      const unpacked = async (archive: Uint8Array, path: string): Promise<number | string> => {
        const stream = engine.stream(child.id, { action: 'unpack', path });
        await stream.opened;
        // One that was refused hears no more.
        await stream.write(archive).catch(() => undefined);
        stream.end();
        return stream.ended.then(
          ({ entries = 0 }) => entries,
          (error: Error) => error.message,
        );
      };
      const made = (...args: string[]): Buffer => execFileSync('tar', ['-C', join(dir, 'tree'), ...args, '-c', '.']);
      for (const format of ['gnu', 'pax', 'ustar']) {
        const skipped = format === 'ustar' ? ['--exclude', '*nn', '--exclude', './link'] : [];
        const path = `/root/unpacked-${format}`;
        const entries = await unpacked(made(`--format=${format}`, ...skipped), path);
        assert.is(entries, format === 'ustar' ? 3 : 6, format);
        const look = format === 'ustar' ? 'cat zlinked' : `cat ${long}; stat -c %a ${long}; readlink link; cat zlinked`;
        const { stdout, stderr } = await engine.exec(child.id, ['sh', '-ec', `cd ${path}; ${look}`]);
        const told = format === 'ustar' ? '' : `long640\n${'t'.repeat(140)}\n`;
        assert.is(stdout, `${told}${'x'.repeat(1300)}`, stderr);
      }
      // And back, as the guest packs it.
      const back: Uint8Array[] = [];
      for await (const { data } of engine.stream(child.id, { action: 'pack', path: '/root/unpacked-pax' }))
        back.push(data);
      const names = execFileSync('tar', ['-t'], { input: Buffer.concat(back) })
        .toString()
        .trim()
        .split('\n');
      assert.equal(
        names.map((name) => name.replace(/\/$/, '')).sort(),
        ['.', './link', `./${long}`, `./${'n'.repeat(120)}`, './plain', './zlinked'].sort(),
      );
      const evil = execFileSync('tar', [
        '-C',
        join(dir, 'tree'),
        '-P',
        '--transform',
        's,^plain,../evil,',
        '-c',
        'plain',
      ]);
      assert.match(String(await unpacked(evil, '/root/in')), 'is outside');
      assert.match(String(await unpacked(made().subarray(0, 2000), '/root/cut')), 'ReadError');
      const { exit_code } = await engine.exec(child.id, ['test', '-e', '/root/evil']);
      assert.is(exit_code, 1);
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });

  exec('a port of the guest on this host, both ways and half-closed', async () => {
    const server =
      'import socket\ns = socket.create_server(("127.0.0.1", 7000))\nprint("up", flush=True)\nwhile True:\n    c, _ = s.accept()\n    data = b""\n    while part := c.recv(65536): data += part\n    c.sendall(data[::-1]); c.close()';
    const serving = open({ args: ['python3', '-c', server] });
    await until(serving[Symbol.asyncIterator](), 'up');
    const forwarding = startCli(['port', child.id, '7000:0', '7001:0'], { env: { XDG_DATA_HOME: dataHome } });
    const said = await forwarding.says(/-> 7001/);
    const ports = [...said.matchAll(/127.0.0.1:(\d+)/g)].map(([, one]) => Number(one));
    const sent = Buffer.alloc(500_000, 'abc');
    const socket = connect({ port: ports[0] ?? 0, host: '127.0.0.1', allowHalfOpen: true });
    socket.end(sent);
    const parts: Buffer[] = [];
    for await (const part of socket) parts.push(part as Buffer);
    assert.ok(Buffer.concat(parts).equals(Buffer.from(sent).reverse()));
    // Nobody listens there: the connection ends, and the reason is told.
    const refused = connect({ port: ports[1] ?? 0, host: '127.0.0.1' });
    await new Promise((resolve) => refused.on('error', () => undefined).on('close', resolve));
    await forwarding.says('ConnectionRefusedError');
    forwarding.kill('SIGINT');
    assert.is((await forwarding.ended).code, 0);
    serving.close();
  });

  // The agent in C says that it must be tried again.
  if (agent === 'python')
    exec('a Unix socket of the guest whose queue is full is waited for', async () => {
      const server =
        'import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind("/tmp/slow")\ns.listen(0)\nprint("up", flush=True)\nwhile True:\n    time.sleep(0.05)\n    c, _ = s.accept()\n    c.sendall(b"hello"); c.close()';
      const serving = open({ args: ['python3', '-c', server] });
      await until(serving[Symbol.asyncIterator](), 'up');
      const heard = Array.from({ length: 8 }, async () => {
        const stream = engine.stream(child.id, { action: 'connect', path: '/tmp/slow' });
        return until(stream[Symbol.asyncIterator](), 'hello');
      });
      assert.is((await Promise.all(heard)).join(''), 'hello'.repeat(8));
      serving.close();
    });

  exec('what changes in a directory, told as it happens', async () => {
    await engine.exec(child.id, ['mkdir', '-p', '/root/watched/deep']);
    const stream = engine.stream(child.id, { action: 'watch', path: '/root/watched', recursive: true });
    assert.is((await stream.opened)['type'], 'dir');
    const events = jsonLines<FileEvent>(stream);
    /** Until this one, which is the last of what was done. */
    const told = async (script: string, last: string): Promise<string[]> => {
      await engine.exec(child.id, ['sh', '-ec', `cd /root/watched; ${script}`]);
      const heard: string[] = [];
      while (heard.at(-1) !== last) {
        const { value } = await events.next();
        if (!value) throw new Error(`it ended after ${heard.join()}`);
        const { event, path, from, is_dir } = value;
        heard.push([event, ...(from === undefined ? [] : [from]), is_dir ? `${path}/` : path].join(' '));
      }
      return heard.map((one) => one.replaceAll('/root/watched/', ''));
    };
    const here = '/root/watched/';
    assert.equal(await told('echo x > deep/file', `written ${here}deep/file`), [
      'created deep/file',
      'modified deep/file',
      'written deep/file',
    ]);
    assert.equal(await told('mv deep/file moved', `moved ${here}deep/file ${here}moved`), ['moved deep/file moved']);
    // A directory that is moved is watched on, under its new name.
    assert.equal(await told('mv deep other; touch other/new', `written ${here}other/new`), [
      'moved deep other/',
      'created other/new',
      'attributes other/new',
      'written other/new',
    ]);
    assert.equal(await told('chmod 700 moved; mv moved /root/away', `deleted ${here}moved`), [
      'attributes moved',
      'deleted moved',
    ]);
    // What is made faster than it can be watched is told all the same; perhaps twice.
    const made = await told('mkdir -p a/b/c; touch a/b/c/d; rm a/b/c/d', `deleted ${here}a/b/c/d`);
    for (const one of ['created a/', 'created a/b/', 'created a/b/c/']) assert.ok(made.includes(one), made.join());
    await told('rm -r /root/watched', 'deleted /root/watched/');
    assert.equal(await events.next(), { done: true, value: undefined });
    assert.is((await stream.ended).exit_code, 0);
  });

  exec('a watch that is left before it is ready leaves nothing behind', async () => {
    const watched = async () =>
      Number((await engine.exec(child.id, ['sh', '-c', 'ls -l /proc/1/fd | grep -c inotify'])).stdout);
    const before = await watched();
    const left = Array.from({ length: 8 }, async () => {
      const stream = engine.stream(child.id, { action: 'watch', path: '/usr', recursive: true });
      stream.close();
      await stream.ended;
    });
    await Promise.all(left);
    const end = performance.now() + 20_000;
    while ((await watched()) > before) assert.ok(performance.now() < end, 'descriptors are left');
  });

  exec('a watch from the command line; of what is not there; and who does not listen', async () => {
    const { id } = child;
    const env = { XDG_DATA_HOME: dataHome };
    const running = startCli(['watch', id, '/tmp', '--json'], { env });
    await running.says('watching /tmp');
    await engine.exec(id, ['sh', '-c', 'echo > /tmp/seen']);
    await running.says('"written"');
    running.kill('SIGINT');
    const { code, stdout } = await running.ended;
    assert.is(code, 0);
    assert.equal(JSON.parse(stdout.split('\n')[0] ?? ''), { event: 'created', path: '/tmp/seen', is_dir: false });
    const missing = await forkd(['watch', id, '/nowhere'], { env });
    assert.match(missing.stderr, /FileNotFoundError/);
    // Its window is full, then the kernel's queue; nobody else waits for it.
    const stream = engine.stream(id, { action: 'watch', path: '/tmp', window: 100 });
    await stream.opened;
    const flood =
      'import os\nfor i in range(7000): os.close(os.open(f"/tmp/f{i % 9}", os.O_CREAT | os.O_WRONLY)); os.unlink(f"/tmp/f{i % 9}")';
    assert.is((await engine.exec(id, ['python3', '-c', flood])).exit_code, 0);
    const seen = new Set<string>();
    for await (const { event } of jsonLines<FileEvent>(stream)) {
      seen.add(event);
      if (event === 'overflow') break;
    }
    assert.equal([...seen], ['created', 'written', 'deleted', 'overflow']);
  });

  return exec;
};
