/** The agent in a real guest: one boot for the whole suite. */
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { buildDefaultImage, type GuestImage } from '../../src/main/image/index.js';
import { bootGuest, forkRequest, type GuestVm, type Reply, request } from './vm.js';

const test = suite('guest agent');
let image: GuestImage;
let vm: GuestVm;
let dir: string;

const sha256 = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');
const sh = (script: string, extra: object = {}): Promise<Reply> =>
  vm.call({ action: 'exec', args: ['sh', '-c', script], ...extra });
const py = (code: string): Promise<Reply> => vm.call({ action: 'eval', code });
const out = async (script: string): Promise<string> => (await sh(script)).stdout.trim();

const makeVolume = (path: string, text: string): string => {
  const tree = mkdtempSync(join(tmpdir(), 'volume-'));
  writeFileSync(join(tree, 'file'), text);
  execFileSync('mkfs.ext4', ['-q', '-F', '-d', tree, path, '4M'], {
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
  });
  rmSync(tree, { recursive: true });
  return path;
};

test.before(async () => {
  image = await buildDefaultImage({ cacheDir: join(process.env.FORKD_RUN_CACHE ?? '/var/cache/forkd', 'images') });
  dir = mkdtempSync(join(tmpdir(), 'forkd-volumes-'));
  vm = await bootGuest(image, [makeVolume(join(dir, 'b.ext4'), 'from b'), makeVolume(join(dir, 'c.ext4'), 'from c')]);
});

test.after(async () => {
  await vm?.stop();
  rmSync(dir, { recursive: true, force: true });
});

test('hello says what the agent is', () => {
  assert.is(vm.hello.generation, 2);
  assert.match(vm.hello.python, /^3\./);
  assert.ok(vm.hello.uptime_ms > 0);
});

test('ping', async () => {
  const reply = await vm.call({ action: 'ping' });
  assert.equal(
    { ...reply, numpy_version: typeof reply.numpy_version },
    {
      pong: true,
      numpy_version: 'string',
      pid: 1,
      agent_lang: 'python',
      warmup_ready: false,
      generation: 2,
      released: true,
    },
  );
});

test('an eval leaves the kernel of the guest nothing to wait for: no grace period, for which its clock would go on', async () => {
  const periods = async () =>
    Number((await py("next(int(l.split()[1]) for l in open('/proc/softirqs') if 'RCU:' in l)")).result);
  const evals = 40;
  // What the look itself leaves behind is over by then.
  const settle = () => new Promise((resolve) => setTimeout(resolve, 100));
  const before = await periods();
  await settle();
  for (let i = 0; i < evals; i++) {
    await py('1');
    // Longer than a tick: what is left to do then, is done then.
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const after = await periods();
  assert.ok(after - before < evals, `${after - before} for ${evals} evals`);
});

test('eval of an expression', async () => {
  const reply = await py('numpy.zeros(5).tolist()');
  assert.equal(reply, { result: '[0.0, 0.0, 0.0, 0.0, 0.0]', exit_code: 0, stdout: '', stderr: '' });
});

test('eval of statements gives the last expression and what was printed', async () => {
  const reply = await py(
    'import sys\nfor i in range(2):\n    print("line", i)\nprint("bad", file=sys.stderr)\nx = 20\nx * 2 + 2',
  );
  assert.equal(reply, { result: '42', exit_code: 0, stdout: 'line 0\nline 1\n', stderr: 'bad\n' });
  assert.is((await py('y = 3')).result, 'None');
  assert.is((await py('  1 + 1\n')).result, '2');
});

test('eval starts with fresh globals', async () => {
  await py('leak = 1');
  assert.match((await py('leak')).error, /^NameError: name 'leak' is not defined/);
});

test('eval defines classes, functions and threads that print', async () => {
  const reply = await py(
    'from dataclasses import dataclass\nimport threading\n@dataclass\nclass P:\n    x: int\nt = threading.Thread(target=lambda: print("in thread"))\nt.start(); t.join()\nP(3)',
  );
  assert.is(reply.result, 'P(x=3)');
  assert.is(reply.stdout, 'in thread\n');
});

test('an exception has its traceback, with the source and without the agent', async () => {
  const reply = await py('def f():\n    return 1 / 0\nf()');
  assert.is(reply.error, 'ZeroDivisionError: division by zero');
  assert.is(reply.exit_code, 1);
  assert.match(reply.traceback, 'return 1 / 0');
  assert.not.match(reply.traceback, 'evaluate.py');
  assert.match((await py('1 +')).error, /^SyntaxError/);
});

test('evals that fail at once are told of with their own source', async () => {
  // Between its own lines and those of its cause it waits for the other.
  const code = (name: string) =>
    `import time\nclass Slow(Exception):\n    def __str__(self): time.sleep(0.3); return 'slow'\ntry:\n    ${name} = 1 / 0\nexcept Exception as cause:\n    raise Slow from cause`;
  const replies = await Promise.all(['first', 'second'].map((name) => py(code(name))));
  assert.match(replies[0]?.traceback, 'first = 1 / 0');
  assert.match(replies[1]?.traceback, 'second = 1 / 0');
});

test('an eval whose failure cannot say what it is holds up no other that fails', async () => {
  const waits = `import os, time
class Slow(Exception):
    def __str__(self):
        open('/tmp/slow-begun', 'w').close()
        while not os.path.exists('/tmp/slow-ends'): time.sleep(0.05)
        return 'slow'
raise Slow`;
  const slow = py(waits);
  await sh('until [ -e /tmp/slow-begun ]; do sleep 0.05; done');
  assert.is((await py('1 / 0')).error, 'ZeroDivisionError: division by zero');
  await sh('touch /tmp/slow-ends');
  assert.is((await slow).error, 'Slow: slow');
});

test('threads of one eval may all be the first that prints', async () => {
  const threads = `import io, threading, time
real = io.StringIO
def slow():
    time.sleep(0.05)
    return real()
io.StringIO = slow
threads = [threading.Thread(target=print, args=(number,)) for number in range(6)]
for one in threads: one.start()
for one in threads: one.join()
io.StringIO = real`;
  assert.is((await py(threads)).stdout.replace(/\s/g, '').split('').sort().join(''), '012345');
});

test('exit() ends the code, not the agent', async () => {
  assert.is((await py('exit()')).exit_code, 0);
  const reply = await py('print("before")\nimport sys\nsys.exit(3)');
  assert.is(reply.exit_code, 3);
  assert.is(reply.stdout, 'before\n');
  assert.is((await py('raise KeyboardInterrupt')).error, 'KeyboardInterrupt: ');
});

test('a copy made by os.fork in evaluated code does not answer', async () => {
  const reply = await py('import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\npid > 0');
  assert.is(reply.result, 'True');
});

test('user code may use alarms and subprocesses', async () => {
  const alarm = await py(
    'import signal, time\nhits = []\nsignal.signal(signal.SIGALRM, lambda *a: hits.append(1))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(0.2)\nhits',
  );
  assert.is(alarm.result, '[1]', JSON.stringify(alarm));
  const sub = await py(
    'import subprocess, time\np = subprocess.Popen(["sh", "-c", "exit 7"])\ntime.sleep(2.5)\np.wait()',
  );
  assert.is(sub.result, '7', 'the status was stolen by the reaper');
});

test('exec', async () => {
  assert.equal(await sh('echo out; echo err >&2; exit 3'), { stdout: 'out\n', stderr: 'err\n', exit_code: 3 });
  assert.is((await sh('kill -TERM $$')).exit_code, -15);
  const reply = await vm.call({
    action: 'exec',
    args: ['sh', '-c', 'echo $A; pwd; cat'],
    env: { A: 'b' },
    cwd: '/tmp',
    stdin: 'input',
  });
  assert.is(reply.stdout, 'b\n/tmp\ninput');
  assert.is((await sh("printf '\\377x'")).stdout, '\ufffdx');
});

test('exec errors', async () => {
  const missing = await vm.call({ action: 'exec', args: ['nope'] });
  assert.match(missing.error, /^FileNotFoundError: .*'nope'/);
  assert.is(missing.exit_code, 1);
  assert.ok(missing.traceback && !('stdout' in missing));
  assert.is((await vm.call({ action: 'exec' })).error, "KeyError: 'args'");
  assert.match((await vm.call({ action: 'exec', args: [] })).error, /^IndexError/);
  assert.match((await vm.call({ action: 'exec', args: ['true'], timeout: 'x' })).error, /^TypeError/);
  assert.is((await vm.call({ action: 'dance' })).error, 'unknown action: dance');
});

test('ordinary commands are there', async () => {
  const commands =
    'sh bash ls cat echo sleep ps kill head tail date hostname uname id env grep sed awk find tar gzip python3 wc sort';
  for (const name of commands.split(' ')) assert.is((await sh(`command -v ${name} >/dev/null`)).exit_code, 0, name);
  assert.is((await sh('ls / >/dev/null && ps >/dev/null && date >/dev/null && id && uname -a && env')).exit_code, 0);
});

test('a timeout ends the whole tree, also what left the session, and returns the output so far', async () => {
  const script = 'echo early; sleep 987 & setsid sleep 987 & (setsid sleep 987 >/dev/null 2>&1 &); sleep 987';
  const reply = await sh(script, { timeout: 1 });
  assert.is(reply.stdout, 'early\n');
  assert.is(reply.timed_out, true);
  assert.is(reply.exit_code, -9);
  assert.match(reply.error, /^TimeoutExpired: .*timed out after 1 seconds/);
  assert.is(await out("ps -eo stat,args | grep -v ^Z | grep -c '[s]leep 987'"), '0');
  assert.match((await sh('sleep 5', { timeout: 0 })).error, /^TimeoutExpired/);
});

test('a grandchild that holds the output does not delay the answer, and lives on', async () => {
  // It goes on when it is told to, which is after the answer.
  const reply = await sh('(while [ ! -e /tmp/go ]; do sleep 0.1; done; echo late; echo done >/tmp/late) & echo now');
  assert.is(reply.stdout, 'now\n');
  await sh('touch /tmp/go; while [ ! -e /tmp/late ]; do sleep 0.1; done', { timeout: 30 });
  assert.is(await out('cat /tmp/late'), 'done');
});

test('orphans are reaped', async () => {
  await sh('for i in 1 2 3 4 5; do (setsid sleep 0.2 >/dev/null 2>&1 &) ; done');
  const gone = "! ps -eo stat,args | grep -q -e '^Z' -e '[s]leep 0.2'";
  assert.is((await sh(`until ${gone}; do sleep 0.1; done`, { timeout: 30 })).exit_code, 0);
});

test('a long eval, long execs and pings do not wait for one another', async () => {
  const order: string[] = [];
  const note = (name: string) => (reply: Reply) => {
    order.push(name);
    return reply.result ?? reply.stdout;
  };
  const until = (wait: string) => `import os, time\nwhile not os.path.exists("/tmp/enough"): ${wait}\n`;
  const slow = py(`${until('time.sleep(0.1)')}"slept"`).then(note('slow'));
  const busy = py(`${until('pass')}"spun"`).then(note('busy'));
  const execs = Array.from({ length: 3 }, (_, index) => sh(`sleep 0.3; echo ${index}`).then(note('exec')));
  for (let index = 0; index < 5; index++) {
    note('ping')(await vm.call({ action: 'ping' }));
    assert.is(await py(`${index}`).then(note('eval')), `${index}`);
  }
  assert.equal(await Promise.all(execs), ['0\n', '1\n', '2\n']);
  assert.not.ok(order.includes('slow') || order.includes('busy'), `answered in the order ${order}`);
  await sh('touch /tmp/enough');
  assert.equal(await Promise.all([slow, busy]), ["'slept'", "'spun'"]);
});

test("an image's environment, directory and user", async () => {
  const conf = 'env A=1\nenv L=a\\\\b\\nc\ncwd /srv\nuid 33\ngid 34\ngroups 4 5\n';
  await sh(`cat > /tmp/image.conf`, { stdin: conf });
  const reply = await py(`
import subprocess
from forkd_agent.image import read_image
image = read_image('/tmp/image.conf')
(image.env, image.cwd, subprocess.check_output(['id'], text=True, **image.user))`);
  assert.is(reply.result, String.raw`({'A': '1', 'L': 'a\\b\nc'}, '/srv', 'uid=33 gid=34 groups=34,4,5(tty)\n')`);
});

test('large output and large requests', async () => {
  const reply = await sh('head -c 8000000 /dev/zero | tr "\\0" x');
  assert.is(reply.stdout.length, 8_000_000);
  const cut = await sh('head -c 40000000 /dev/zero | tr "\\0" x');
  assert.match(cut.stdout.slice(-60), /\[forkd: stdout truncated at \d+ bytes\]\n$/);
  assert.is((await py(`len("${'y'.repeat(1_000_000)}")`)).result, '1000000');
});

test('bytes that are no frame are skipped', async () => {
  const [ping] = await vm.raw(
    Buffer.concat([Buffer.from('garbage FK\x46'), randomBytes(5000), request(1, { action: 'ping' })]),
    [1],
  );
  assert.is(ping?.pong, true);
});

test('frames in pieces, many at once, and with foreign types', async () => {
  const whole = request(2, { action: 'eval', code: '6*7' });
  await vm.raw(whole.subarray(0, 5), []);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.is((await vm.raw(whole.subarray(5), [2]))[0]?.result, '42');
  const many = Array.from({ length: 50 }, (_, index) => request(100 + index, { action: 'eval', code: `${index}` }));
  const replies = await vm.raw(
    Buffer.concat(many),
    Array.from(many.keys(), (index) => 100 + index),
  );
  assert.equal(
    replies.map((reply) => reply.result),
    Array.from(many.keys(), String),
  );
  const foreign = Buffer.from(request(3, {}));
  foreign[2] = 9;
  assert.is((await vm.raw(foreign, [3]))[0]?.error, 'unknown frame type: 9');
});

test('a frame that is too large or is no JSON is refused', async () => {
  const huge = Buffer.from(request(4, {}));
  huge.writeUInt32LE(65 * 1024 * 1024, 8);
  assert.match((await vm.raw(huge, [4]))[0]?.error, /^FrameTooLarge/);
  const text = Buffer.from(request(5, { a: 1 }));
  text[12] = 'x'.charCodeAt(0);
  assert.match((await vm.raw(text, [5]))[0]?.error, /^JSONDecodeError/);
  const list = await vm.raw(request(6, []), [6]);
  assert.match(list[0]?.error, /^AttributeError/);
});

test('a host that hangs up in the middle of a frame finds a clean port', async () => {
  await vm.raw(request(7, { action: 'eval', code: 'x'.repeat(1000) }).subarray(0, 600), []);
  await new Promise((resolve) => setTimeout(resolve, 200));
  await vm.hangUp();
  assert.is((await vm.call({ action: 'ping' })).pong, true);
  assert.is((await py('1+1')).result, '2');
});

test('writes stay in the overlay, and the image does not change', async () => {
  assert.is(
    await out(
      'echo one >/usr/one; echo two >>/etc/hosts; rm /bin/true; cat /usr/one; tail -1 /etc/hosts; ls /bin/true 2>&1',
    ),
    "one\ntwo\nls: cannot access '/bin/true': No such file or directory",
  );
  assert.is(await out('cat /volume/file /fixed/file'), 'from bfrom c');
  assert.is(await out('echo new >/volume/file && cat /volume/file'), 'new');
  assert.is.not((await sh('echo new >/fixed/file')).exit_code, 0);
  assert.match(vm.console(), "warning: skipped malformed volume 'bad'");
  assert.match(vm.console(), 'warning: cannot mount volume vdz');
  assert.is(await out("df -k /tmp | tail -1 | awk '{print $2}'"), '262144');
  await sh('sync');
  assert.is(sha256(image.rootfs), image.record.files.rootfs.sha256);
});

test('the reference protocol on TCP 8888', async () => {
  const client = `
import socket, json
def ask(data, half_close=True):
    s = socket.create_connection(("127.0.0.1", 8888)); s.settimeout(10)
    s.sendall(data)
    if half_close: s.shutdown(socket.SHUT_WR)
    out = b""
    while True:
        part = s.recv(65536)
        if not part: return out.decode()
        out += part
ping = b'{"action":"ping"}'
replies = [ask(ping), ask(ping + b"\\n", False), ask(ping + b"\\n" + ping + b"\\nrest"), ask(b""), ask(b"{"), ask(b"[]"),
  ask(b'{"action":"exec","args":["echo","h\\u00e9"]}'), ask(b'{"action":"exec"}'), ask(b'{"action":"eval","code":"np.arange(3).sum()"}')]
print(json.dumps(replies))
`;
  const reply = await vm.call({ action: 'exec', args: ['python3', '-c', client] });
  assert.is(reply.exit_code, 0, reply.stderr);
  const [plain, open, extra, empty, broken, list, exec, args, value] = JSON.parse(reply.stdout) as string[];
  for (const text of [plain, open, extra]) {
    assert.ok(text?.endsWith('}\n') && text.split('\n').length === 2, text);
    assert.is(JSON.parse(text ?? '').pong, true);
  }
  assert.is(empty, '');
  assert.match(JSON.parse(broken ?? '').error, /^JSONDecodeError: /);
  assert.match(JSON.parse(list ?? '').error, /^AttributeError: 'list' object has no attribute 'get'/);
  assert.equal(JSON.parse(exec ?? ''), { stdout: 'hé\n', stderr: '', exit_code: 0 });
  assert.is(JSON.parse(args ?? '').error, "KeyError: 'args'");
  assert.is(JSON.parse(value ?? '').result, '3');
});

test('fork gives the guest a new identity', async () => {
  const message = forkRequest({ env: { FORKD_INDEX: '7', GREETING: 'hi' } });
  const reply = await vm.call(message);
  assert.is(reply.exit_code, 0, JSON.stringify(reply));
  const done =
    'kernel_rng clock hostname machine_id boot_id python_random numpy_random uuid openssl tempfile env'.split(' ');
  assert.equal(reply.receipt.done, done);
  assert.equal(Object.keys(reply.receipt.skipped), ['mac', 'node', 'hooks']);
  assert.is(
    await out('hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; echo $GREETING'),
    ['child-7', 'child-7', message.machine_id, reply.receipt.boot_id, 'hi'].join('\n'),
  );
  const skew = Math.abs(Number(await out('date +%s%3N')) - Date.now());
  assert.ok(skew < 5000, `clock is off by ${skew} ms`);
  assert.is(
    (await py('import os, socket; (os.environ["GREETING"], socket.gethostbyname(socket.gethostname()))')).result,
    "('hi', '127.0.0.1')",
  );
});

test('the same entropy gives the same Python generators, other entropy others; numpy draws from the kernel each time', async () => {
  const sample = async (entropy: string): Promise<number[]> => {
    await vm.call(forkRequest({ entropy }));
    const { result } = await py(
      'import random, uuid\n[random.random(), uuid.getnode(), np.random.rand(), np.random.randn()]',
    );
    return JSON.parse(result);
  };
  const [a, b] = [randomBytes(64).toString('base64'), randomBytes(64).toString('base64')];
  const [first, again, other] = [await sample(a), await sample(a), await sample(b)];
  assert.equal(again.slice(0, 2), first.slice(0, 2));
  assert.is.not(other[0], first[0]);
  assert.is.not(other[1], first[1]);
  // The second normal deviate of a pair is kept by numpy: it must not survive either.
  assert.is(new Set([first[2], again[2], other[2]]).size, 3);
  assert.is(new Set([first[3], again[3], other[3]]).size, 3);
});

test('a sealed guest takes its identity by the short way: the same receipt, everything new', async () => {
  const seen: unknown[][] = [];
  const entropy = randomBytes(64).toString('base64');
  const slow = await vm.call(forkRequest({ entropy }));
  for (const hostname of ['one', 'a-longer-name', 'two']) {
    await py('np.random.randn()');
    await vm.call({ action: 'seal' });
    const message = forkRequest({ entropy, hostname });
    const reply = await vm.call(message);
    assert.equal({ ...reply.receipt, boot_id: '' }, { ...slow.receipt, boot_id: '' });
    assert.is(
      await out(
        'hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; grep -c localhost /etc/hosts',
      ),
      [hostname, hostname, message.machine_id, reply.receipt.boot_id, '2'].join('\n'),
    );
    const { result } = await py(
      'import random, uuid\n[random.random(), uuid.getnode(), np.random.rand(), np.random.randn()]',
    );
    seen.push([...(JSON.parse(result) as number[]), reply.receipt.boot_id]);
  }
  for (const at of [0, 1, 2, 3, 4]) assert.is(new Set(seen.map((all) => all[at])).size, seen.length, `${at}`);
  // What the short way does not read, the long one does.
  await vm.call({ action: 'seal' });
  assert.equal((await vm.call(forkRequest({ env: { A: 'b' } }))).receipt.done.at(-1), 'env');
});

test('a sealed guest answers only ping and fork, and fails closed', async () => {
  assert.is((await vm.call({ action: 'seal' })).sealed, true);
  assert.match((await py('1')).error, /^NotReleased/);
  assert.match((await sh('true')).error, /^NotReleased/);
  assert.is((await vm.call({ action: 'ping' })).released, false);
  const short = await vm.call(forkRequest({ entropy: 'AAAA' }));
  assert.match(short.error, /^ValueError: entropy/);
  const bad = await vm.call(forkRequest({ machine_id: 'XYZ' }));
  assert.is(bad.exit_code, 1);
  assert.match(bad.error, /^IdentityFailed: machine_id/);
  assert.match((await py('1')).error, /^NotReleased/);
  assert.is((await vm.call(forkRequest())).exit_code, 0);
  assert.is((await py('1')).result, '1');
});

test('a failing hook keeps the guest sealed', async () => {
  await sh(
    'mkdir -p /etc/forkd/fork.d; printf "#!/bin/sh\\necho $FORKD_INDEX >/run/hook; exit \\$(cat /run/status)\\n" >/etc/forkd/fork.d/10-test; sed -i s/echo.*\\>/"echo \\$FORKD_INDEX >"/ /etc/forkd/fork.d/10-test; chmod +x /etc/forkd/fork.d/10-test; echo 4 >/run/status',
  );
  const reply = await vm.call(forkRequest());
  assert.match(reply.error, /^IdentityFailed: hooks: RuntimeError: .*10-test ended with status 4/);
  assert.match((await sh('true')).error, /^NotReleased/);
});

test.run();
