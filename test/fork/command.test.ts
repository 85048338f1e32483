/** `forkd fork` as a user runs it. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { forkd, jsonLines, startCli } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, sharedData, type World } from '../support/world.js';

interface Line {
  index: number;
  ok: boolean;
  stdout: string;
  exit_code: number;
}

const command = suite<{ world: World; env: Record<string, string> }>('fork');

command.before.each((context) => {
  context.world = makeWorld();
  // The shared snapshot is only read; work directories go to a temp directory of this test.
  context.env = { ...context.world.env, XDG_DATA_HOME: sharedData() };
});
command.after.each(({ world }) => world.close());

const nothingLeft = (temp: string): void => {
  assert.equal(readdirSync(temp), []);
  assert.equal(qemusOf(temp), []);
};

command('ten right answers from ten VMs', async ({ env }) => {
  const ended = await forkd(
    ['fork', '--tag', BASE_TAG, '-n', '10', '--json', '--', 'python3', '-c', 'print({index})'],
    { env },
  );
  assert.is(ended.code, 0, ended.stderr);
  const lines = jsonLines<Line>(ended).sort((a, b) => a.index - b.index);
  assert.equal(
    lines.map((l) => l.stdout),
    Array.from({ length: 10 }, (_, i) => `${i + 1}\n`),
  );
  nothingLeft(env['TMPDIR'] as string);
});

command('one line of the input a child, and the exit status counts failures', async ({ env, world }) => {
  const input = join(world.root, 'input');
  writeFileSync(input, 'alpha\nbeta gamma\n$(reboot)\n');
  const ended = await forkd(
    [
      'fork',
      '--tag',
      BASE_TAG,
      '--input',
      input,
      '--json',
      '--',
      'sh',
      '-c',
      'printf %s "$0"; [ {index} = 1 ]',
      '{line}',
    ],
    { env },
  );
  const lines = jsonLines<Line>(ended).sort((a, b) => a.index - b.index);
  assert.equal(
    lines.map((l) => l.stdout),
    ['alpha', 'beta gamma', '$(reboot)'],
  );
  assert.equal(
    lines.map((l) => l.ok),
    [true, false, false],
  );
  assert.is(ended.code, 2);
});

command('without a command: the lines that scripts parse', async ({ env }) => {
  const ended = await forkd(['fork', '--tag', BASE_TAG, '-n', '2', '--settle-secs', '0'], { env });
  assert.is(ended.code, 0, ended.stderr);
  const total = ended.stdout.split('\n').find((l) => l.includes('total wall-clock'));
  assert.ok(Number(total?.split(/\s+/)[3]) > 0, total);
  assert.match(ended.stdout, /^✓ 2 \/ 2 children alive$/m);
});

command('another process reaches a sandbox by its id while the fork settles', async ({ env }) => {
  const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '2', '--settle-secs', '60'], { env });
  await fork.says('forkd exec --target');
  const [file] = readdirSync(join(sharedData(), 'forkd/sandboxes'));
  const records = readFileSync(join(sharedData(), 'forkd/sandboxes', file as string), 'utf8');
  const [{ id, socket }, other] = records.split('\n', 2).map((record) => JSON.parse(record));
  const [byId, byPath, ofOther, evaluated, failing] = await Promise.all([
    forkd(['ping', '--target', id], { env }),
    forkd(['exec', '--target', `unix:${socket}#${id}`, '--', 'hostname'], { env }),
    forkd(['exec', '--target', `unix:${other.socket}#${other.id}`, '--', 'hostname'], { env }),
    forkd(['eval', '--target', id, '--', 'x = 20', '\nprint("hi")\nx + 22'], { env }),
    forkd(['exec', '--target', id, '--', 'sh', '-c', 'echo out; echo err >&2; exit 3'], { env }),
  ]);
  assert.is(JSON.parse(byId.stdout).pong, true);
  assert.equal([byPath.stdout.trim(), ofOther.stdout.trim()], [id, other.id]);
  assert.is(other.socket, socket);
  assert.is(evaluated.stdout, 'hi\n42\n');
  assert.equal([failing.code, failing.stdout, failing.stderr], [3, 'out\n', 'err\n']);
  // Of a connection that names nobody nothing is kept; one that names somebody in parts is that one's.
  const ping = '{"action": "ping"}\n';
  for (const preface of ['', 'x'.repeat(100_000), `${ping}${ping}`])
    assert.is(await saidTo(socket, [preface]), '', preface.slice(0, 100));
  assert.is(await saidTo(socket, [`sb-1-00000000\n${ping}`]), 'no such sandbox\n');
  assert.match(await saidTo(socket, [...id, '\n', ...ping]), /"pong": ?true/);
  // One has ended, and its engine has not: that is told apart from an engine that is not there.
  process.kill(other.pid, 'SIGKILL');
  while ((await saidTo(socket, [`${other.id}\n${ping}`])) !== 'no such sandbox\n');
  const refusals = (target: string) =>
    Promise.all(
      [
        ['ping', '--target', target],
        ['exec', '-e', 'A=1', target, '--', 'true'],
        ['cp', `${target}:/etc/passwd`, '-'],
      ].map(async (args) => (await forkd(args, { env })).stderr),
    );
  for (const stderr of await refusals(`unix:${socket}#${other.id}`))
    assert.match(stderr, `Error: sandbox '${other.id}' not found`);
  fork.kill('SIGINT');
  assert.is((await fork.ended).code, 130);
  for (const stderr of await refusals(`unix:${socket}#${id}`)) assert.match(stderr, /^Error: cannot reach the agent/m);
  assert.not.ok(existsSync(join(sharedData(), 'forkd/sandboxes', file as string)));
  const gone = await forkd(['ping', '--target', id], { env });
  assert.is(gone.code, 1);
  assert.match(gone.stderr, /not found/);
  nothingLeft(env['TMPDIR'] as string);
});

/** What a connection is answered to what is written part by part, until it is closed from there. */
const saidTo = async (path: string, parts: string[]): Promise<string> => {
  const socket = connect(path).on('error', () => undefined);
  const heard = text(socket).catch(() => '');
  for (const part of parts) {
    socket.write(part);
    await new Promise((resolve) => setImmediate(resolve));
  }
  socket.end();
  return heard;
};

command('interrupted at any moment it leaves nothing', async ({ env }) => {
  const temp = env['TMPDIR'] as string;
  for (const delay of [150, 400, 700, 1100]) {
    const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '6', '--', 'sleep', '60'], { env });
    await new Promise((resolve) => setTimeout(resolve, delay));
    fork.kill('SIGINT');
    const ended = await fork.ended;
    assert.ok(ended.code === 130 || ended.signal === 'SIGINT', `${delay} ms: code ${ended.code} ${ended.stderr}`);
    assert.equal(readdirSync(temp), [], `after ${delay} ms`);
    assert.equal(qemusOf(temp), [], `after ${delay} ms`);
  }
});

command('kill -9: the VMs end with it, and cleanup takes the directory', async ({ env }) => {
  const temp = env['TMPDIR'] as string;
  const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '3', '--settle-secs', '60'], { env });
  await fork.says('forkd exec --target');
  const pids = qemusOf(temp);
  assert.ok(pids.length >= 3);
  fork.kill('SIGKILL');
  await fork.ended;
  // Gone altogether: a process whose memory is being freed still has its start time, and counts as alive.
  assert.ok(await eventually(() => pids.every((pid) => !existsSync(`/proc/${pid}`))), 'orphans');
  assert.ok(readdirSync(temp).length > 0);
  const cleanup = await forkd(['cleanup', '--yes'], { env });
  assert.is(cleanup.code, 0, cleanup.stderr);
  assert.equal(readdirSync(temp), []);
  assert.equal(readdirSync(join(sharedData(), 'forkd/sandboxes')), []);
});

command('two fan-outs of one tag at once', async ({ env }) => {
  const args = ['fork', '--tag', BASE_TAG, '-n', '3', '--json', '--', 'echo', '{index}'];
  const both = await Promise.all([forkd(args, { env }), forkd(args, { env })]);
  for (const ended of both) {
    assert.is(ended.code, 0, ended.stderr);
    assert.is(jsonLines<Line>(ended).filter((l) => l.ok).length, 3);
  }
  nothingLeft(env['TMPDIR'] as string);
});

command('a command that takes too long is ended with what it had said', async ({ env }) => {
  const ended = await forkd(
    ['fork', '--tag', BASE_TAG, '-n', '1', '--timeout-secs', '2', '--json', '--', 'sh', '-c', 'echo begun; sleep 600'],
    { env, timeoutMs: 60_000 },
  );
  const [line] = jsonLines<Line & { timed_out?: boolean }>(ended);
  assert.equal([line?.ok, line?.stdout, line?.timed_out], [false, 'begun\n', true]);
  assert.is(ended.code, 1);
});

command('a memory limit is the child’s own', async ({ env }) => {
  const ended = await forkd(
    ['fork', '--tag', BASE_TAG, '-n', '1', '--memory-limit-mib', '300', '--json', '--', 'echo', 'ok'],
    { env },
  );
  assert.is(ended.code, 0, ended.stderr);
  const tiny = await forkd(
    ['fork', '--tag', BASE_TAG, '-n', '1', '--memory-limit-mib', '4', '--json', '--', 'echo', 'ok'],
    { env },
  );
  assert.is.not(tiny.code, 0);
  assert.match(tiny.stderr, /child 1|Error/);
  nothingLeft(env['TMPDIR'] as string);
});

command.run();
