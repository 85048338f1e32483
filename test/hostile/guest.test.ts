/** A guest whose root is hostile: its own agent, its console, its clock, its memory, its disk. Each is held and named, and a sibling answers all the while. */
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller } from '../../src/client/index.js';
import { ForkdError } from '../../src/contract/errors.js';
import type { EvalReply, PlainReply } from '../../src/contract/guest.js';
import type { HeldKind } from '../../src/contract/held.js';
import { limits } from '../../src/contract/limits.js';
import { jsonLines } from '../../src/contract/lines.js';
import { callLine } from '../../src/main/agent/line.js';
import type { AgentStream } from '../../src/main/agent/stream.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox, SandboxInfo } from '../../src/main/sandbox/sandbox.js';
import { forkd, jsonLines as jsonLinesOf, startCli } from '../support/cli.js';
import { startDaemon } from '../support/daemon.js';
import { BASE_TAG, eventually, makeWorld, sharedData, type World } from '../support/world.js';
import { becomeHostile, HOSTILE } from './agent.js';

process.env['XDG_DATA_HOME'] = sharedData();

const hostile = suite<{ engine: Engine; sibling: Sandbox }>('hostile guest');

hostile.before(async (context) => {
  context.engine = new Engine({ resident: true });
  const { sandboxes } = await context.engine.fork({ tag: BASE_TAG, n: 1 });
  context.sibling = sandboxes[0] as Sandbox;
});
hostile.after(({ engine }) => engine.close());

/** What this process may grow by while a guest tries to fill it: a flood is read in pieces of 64 KiB. */
const GROWTH_MIB = 300;
const SOON_MS = 300;
const MIB = 2 ** 20;

const told = (outcome: Promise<unknown>): Promise<string> =>
  outcome.then(
    (value) => `answered ${JSON.stringify(value)}`,
    (error: unknown) => ForkdError.from(error).code,
  );

/** A child that has become hostile. */
const enemy = async (engine: Engine, how: string, more: number | string): Promise<Sandbox> => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const [child] = sandboxes as [Sandbox];
  void told(engine.eval(child.id, becomeHostile(how, more), 0));
  const console = () => readFileSync(child.birth.consolePath, 'utf8');
  assert.ok(await eventually(() => console().includes(HOSTILE), 30_000), console());
  return child;
};

/** Runs `use` while the sibling is asked over and over; then the child is ended. */
const against = async (
  { engine, sibling }: { engine: Engine; sibling: Sandbox },
  how: string,
  use: (child: Sandbox) => Promise<void>,
  more: number | string = 0,
): Promise<void> => {
  const before = process.memoryUsage.rss();
  const child = await enemy(engine, how, more);
  let isOver = false;
  let answers = 0;
  const asking = (async () => {
    for (; !isOver || answers < 3; answers++)
      assert.is((await engine.eval(sibling.id, `${answers} + 1`)).result, `${answers + 1}`);
  })();
  try {
    await use(child);
  } finally {
    isOver = true;
    await asking;
  }
  const grown = (process.memoryUsage.rss() - before) / MIB;
  assert.ok(grown < GROWTH_MIB, `${how}: this process has grown by ${grown} MiB`);
  await engine.kill([child]);
};

const holds = (child: Sandbox, kind: HeldKind): boolean => child.held().some((one) => one.kind === kind);

for (const how of ['unsolicited', 'hellos', 'streams', 'nothing']) {
  hostile(`a flood of frames that nobody asked for (${how}): read more slowly, and named`, async (context) => {
    await against(context, how, async (child) => {
      assert.ok(await eventually(() => holds(child, 'flood'), 20_000));
      assert.is(await told(context.engine.eval(child.id, '1', SOON_MS)), 'AGENT_TIMEOUT');
    });
  });
}

hostile('half a frame and then nothing: the call has its time, and no more is held than came', async (context) => {
  await against(context, 'cut', async (child) => {
    assert.is(await told(context.engine.ping(child.id, SOON_MS)), 'AGENT_TIMEOUT');
  });
});

for (const seed of [1, 2, 3]) {
  hostile(
    `frames with bits turned over (seed ${seed}): the connection is closed, and that is named`,
    async (context) => {
      await against(
        context,
        'fuzz',
        async (child) => {
          assert.ok(await eventually(() => holds(child, 'not-the-protocol') || holds(child, 'flood'), 20_000));
          assert.ok(
            ['AGENT_PROTOCOL', 'AGENT_TIMEOUT'].includes(await told(context.engine.eval(child.id, '1', SOON_MS))),
          );
        },
        seed,
      );
    },
  );
}

/** How it answers one call, and what it is named for. */
const ANSWERS: [how: string, title: string, kind: HeldKind][] = [
  ['huge', 'an answer of 4 GiB: skipped, whatever it sends', 'frame-too-large'],
  ['values', 'an answer that would fill memory with brackets', 'no-answer'],
  ['deep', 'an answer of ten million levels', 'no-answer'],
  ['lies', 'an answer whose keys have other types', 'no-answer'],
];
for (const [how, title, kind] of ANSWERS) {
  hostile(`${title}: the call alone fails`, async (context) => {
    await against(context, how, async (child) => {
      assert.is(await told(context.engine.eval(child.id, '1', 60_000)), 'AGENT_PROTOCOL');
      assert.ok(holds(child, kind));
    });
  });
}

/** Asked as another process does: one line, one answer, at the socket of all agents. */
const askLine = async ({ engine }: { engine: Engine }, child: Sandbox, replyMs = 60_000): Promise<PlainReply> => {
  await engine.publish([child]);
  const request = { action: 'eval', code: '1' };
  const address = { path: child.socket, sandbox: child.id };
  return (await callLine(address, child.id, request, { connectMs: 5000, replyMs })) as PlainReply;
};

/** Of 3 MB, which is more than is read in this thread. */
const LARGE: [how: string, title: string, reason: RegExp][] = [
  ['stops', 'that breaks off', /SyntaxError/],
  ['garbled', 'that is no text', /TypeError/],
  ['liesAtLength', 'whose keys have other types', /its result is of another type/],
];
for (const [how, title, reason] of LARGE) {
  hostile(
    `a large answer ${title}, to who asked by a line: it is not passed on, and that is named`,
    async (context) => {
      await against(context, how, async (child) => {
        const reply = await askLine(context, child);
        assert.is(reply.exit_code, 1);
        assert.match(reply.error ?? '', /^AgentError: /);
        assert.match(reply.error ?? '', reason);
        assert.ok(holds(child, 'no-answer'));
      });
    },
  );
}

hostile(
  'half of a large frame, to who asked by a line: they have their time, and others are answered',
  async (context) => {
    await against(context, 'half', async (child) => {
      assert.is(await told(askLine(context, child, SOON_MS)), 'AGENT_TIMEOUT');
      await context.engine.publish([context.sibling]);
      assert.is(((await askLine(context, context.sibling)) as EvalReply).result, '1');
    });
  },
);

hostile(
  'a burst of calls by line: the names of many are on their way at once, and all are answered',
  async (context) => {
    const { engine, sibling } = context;
    const most = limits.agentNamelessMax;
    Object.assign(limits, { agentNamelessMax: 50 });
    try {
      await engine.publish([sibling]);
      const { path, server } = await engine.publisher.open();
      const sockets = Array.from({ length: 300 }, () => connect(path).on('error', () => undefined));
      let connections = 0;
      const count = () => server.getConnections((_, now) => (connections = now));
      assert.ok(await eventually(() => count() && connections === sockets.length));
      const calls = sockets.map((socket) => {
        socket.write(`${sibling.id}\n`);
        return callLine({ socket }, sibling.id, { action: 'eval', code: '1' }, { connectMs: 0, replyMs: 60_000 });
      });
      for (const reply of await Promise.all(calls)) assert.is((reply as EvalReply).result, '1');
    } finally {
      Object.assign(limits, { agentNamelessMax: most });
    }
  },
);

const opened = (child: Sandbox): AgentStream => child.stream({ action: 'run', args: ['x'], stdin: true });

hostile('more output than was granted: the connection is closed', async (context) => {
  await against(context, 'spills', async (child) => {
    assert.is(await told(opened(child).ended), 'AGENT_PROTOCOL');
    assert.ok(holds(child, 'not-the-protocol'));
  });
});

hostile('output byte by byte, in reads full of something else: what nobody takes is small', async (context) => {
  await against(context, 'crumbs', async (child) => {
    const stream = opened(child);
    await stream.ended;
    let [pieces, bytes] = [0, 0];
    for await (const { data } of stream) {
      pieces++;
      bytes += data.length;
    }
    assert.is(bytes, 100_200);
    assert.ok(pieces < 100, `${pieces} pieces`);
  });
});

hostile('credits for what it has not read: no more is sent than the port takes', async (context) => {
  await against(context, 'credits', async (child) => {
    const stream = opened(child);
    await stream.opened;
    let sent = 0;
    let isStuck = false;
    while (!isStuck && sent < 100 * MIB) {
      const write = stream.write(new Uint8Array(64 * 1024));
      write.catch(() => undefined);
      isStuck = await Promise.race([
        write.then(() => false),
        new Promise<true>((resolve) => setTimeout(() => resolve(true), SOON_MS)),
      ]);
      sent += 64 * 1024;
    }
    assert.ok(isStuck, 'it takes for ever');
  });
});

hostile(
  'one that never reads: calls have their time, what waits has a limit, and then the connection is closed',
  async (context) => {
    await against(context, 'mute', async (child) => {
      assert.is(await told(context.engine.ping(child.id, SOON_MS)), 'AGENT_TIMEOUT');
      const code = '#'.repeat(4 * MIB);
      let sent = 0;
      let outcome = '';
      while (sent < 2 * limits.agentBacklogBytes && outcome !== 'AGENT_UNREACHABLE') {
        outcome = await told(context.engine.eval(child.id, code, 1));
        sent += code.length;
      }
      assert.is(outcome, 'AGENT_UNREACHABLE');
      assert.ok(sent > limits.agentBacklogBytes / 2, `after ${sent} bytes`);
      assert.ok(holds(child, 'reads-nothing'));
    });
  },
);

/** What each copy claims, and what it is named for. The one after them claims what it should. */
const RECEIPTS: [claim: string, reason: RegExp][] = [
  ['none', /no receipt/],
  ['null', /no receipt/],
  ['a text', /no receipt/],
  ['steps that are no list', /no receipt/],
  ['failures that are no table', /no receipt/],
  ['a step that is left out', /kernel_rng \(it is not in the receipt\)/],
  ['a step that failed', /uuid \(no entropy\)/],
  ['an error beside it', /IdentityFailed/],
  ['one of 100 kB', /frame of 1\d{5} bytes/],
  ['a generation that is no number', /no receipt/],
];

hostile('an identity that is none, in copies of a hostile guest: each is ended, and why is told', async (context) => {
  await against(context, 'receipts', async (source) => {
    const { engine, sibling } = context;
    const { template } = await engine.branch(source.id);
    const { sandboxes, failures } = await engine.forkFrom(template, { n: RECEIPTS.length + 1 });
    assert.equal(
      sandboxes.map(({ birth }) => birth.index),
      [RECEIPTS.length + 1],
    );
    for (const { index, error } of failures) {
      const [claim, reason] = RECEIPTS[index - 1] as [string, RegExp];
      const { code, message } = ForkdError.fromData(error);
      assert.ok(['IDENTITY_FAILED', 'AGENT_PROTOCOL'].includes(code), `${claim}: ${code}`);
      assert.match(message, reason, claim);
    }
    assert.is(failures.length, RECEIPTS.length);
    await engine.kill(sandboxes);
    await engine.retire(template);
    const left = engine.sandboxes.map(({ id }) => id);
    assert.equal(left.sort(), [sibling.id, source.id].sort());
  });
});

hostile('a line without an end, where lines are expected: it is held no further', async (context) => {
  await against(context, 'endless', async (child) => {
    const lines = jsonLines(child.stream({ action: 'watch', path: '/' }));
    assert.instance(await lines.next().catch((error: Error) => error), RangeError);
  });
});

/** What is unpacked from each archive: the others are refused, as the name says, before anything of them is outside. */
const UNPACKED: Record<string, string[]> = {
  '/up': ['up'],
  '/through': ['out'],
  '/below': ['out'],
  '/over': ['over'],
  '/hard': [],
  '/hardup': [],
  '/hardlink': ['out'],
  '/kinds': ['set'],
};

hostile(
  'archives that `forkd cp` unpacks here: nothing is written outside, no device, no set-user-id',
  async (context) => {
    const root = mkdtempSync(join(tmpdir(), 'archives-'));
    const place = join(root, 'place');
    UNPACKED['/absolute'] = [place.split('/')[1] as string];
    mkdirSync(place);
    writeFileSync(join(place, 'victim'), 'whole');
    try {
      await against(
        context,
        'archives',
        async (child) => {
          await context.engine.publish([child]);
          for (const [path, left] of Object.entries(UNPACKED)) {
            const to = join(root, 'to', path);
            mkdirSync(join(root, 'to'), { recursive: true });
            await forkd(['cp', `${child.id}:${path}`, to]);
            assert.equal(readdirSync(to), left, path);
            assert.equal(
              [readdirSync(place), readFileSync(join(place, 'victim'), 'utf8')],
              [['victim'], 'whole'],
              path,
            );
            assert.equal(readdirSync(root).sort(), ['place', 'to'], path);
            for (const name of left) assert.is(lstatSync(join(to, name)).mode & 0o6000, 0, `${path} ${name}`);
          }
        },
        place,
      );
    } finally {
      rmSync(root, { recursive: true });
    }
  },
);

hostile('sequences for a terminal, in an error: they are not passed on', async (context) => {
  await against(context, 'escapes', async (child) => {
    const refused = await child.ask({ action: 'runs' }).then(
      () => new Error('answered'),
      (error: Error) => error,
    );
    assert.is(refused.message, 'agent error: \ufffd]0;owned\ufffd\ufffd[2J gone');
  });
});

hostile('a console flood: the file has its limit, and that is named', async ({ engine, sibling }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const [child] = sandboxes as [Sandbox];
  const { consolePath } = child.birth;
  // As if it had printed for a minute.
  truncateSync(consolePath, limits.jailFileBytes - 20_000);
  await engine.exec(child.id, ['sh', '-c', 'head -c 60000 /dev/zero | tr "\\0" x > /dev/ttyS0'], 30);
  assert.is(statSync(consolePath).size, limits.jailFileBytes);
  assert.ok(holds(child, 'console-full'));
  assert.is((await engine.eval(child.id, '6 * 7')).result, '42', 'it lives on');
  assert.is((await engine.eval(sibling.id, '6 * 7')).result, '42');
  await engine.kill([child]);
});

hostile(
  'clock games: time limits hold, the host has its own clock, and so has every copy',
  async ({ engine, sibling }) => {
    const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
    const [child] = sandboxes as [Sandbox];
    const began = Date.now();
    const set = (to: number) => engine.eval(child.id, `import time\ntime.clock_settime(time.CLOCK_REALTIME, ${to})`);
    const seconds = async (of: Sandbox) => Number((await engine.exec(of.id, ['date', '+%s'])).stdout);
    // Below its uptime no clock can be set.
    for (const to of [100_000, 4_102_444_800]) {
      assert.is((await set(to)).error, undefined);
      assert.ok(Math.abs((await seconds(child)) - to) < 60);
      const late = await engine.exec(child.id, ['sleep', '100'], 0.3);
      assert.is(late.timed_out, true);
      const { created_at_unix: born } = child.info();
      assert.ok(Math.abs(born - began / 1000) < 60);
    }
    // While its clock goes to and fro: the guest's own limit, or the host's.
    const spin = 'import time\nwhile True:\n for t in (1e5, 4e9): time.clock_settime(time.CLOCK_REALTIME, t)';
    const outcome = await told(engine.exec(child.id, ['python3', '-c', spin], 0.5));
    assert.match(outcome, /"timed_out":true|^AGENT_TIMEOUT$/);
    const { template } = await engine.branch(child.id);
    const copies = (await engine.forkFrom(template, { n: 1 })).sandboxes as [Sandbox];
    assert.ok(copies[0].receipt?.done.includes('clock'));
    for (const one of [copies[0], sibling]) assert.ok(Math.abs((await seconds(one)) - Date.now() / 1000) < 60);
    await engine.retire(template);
    await engine.kill([child, ...copies]);
  },
);

hostile('disk, memory and processes: it is its own that it fills', async ({ engine, sibling }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const [child] = sandboxes as [Sandbox];
  const disk = await engine.exec(child.id, ['sh', '-c', 'cat /dev/zero > /root/fill; rm /root/fill'], 60);
  assert.match(disk.stderr, 'No space left on device');
  const shared = child.birth.snapshot?.rootfs ?? '';
  const before = statSync(shared).mtimeMs;
  const raw = await engine.exec(child.id, [
    'sh',
    '-c',
    'echo 0 > /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda bs=4096 count=1',
  ]);
  assert.is.not(raw.exit_code, 0, 'the disk that all share can be written');
  assert.is(statSync(shared).mtimeMs, before);
  // Its kernel ends what has taken all there is.
  const memory = await engine.exec(child.id, ['python3', '-c', 'x = b"x" * (2 << 30)'], 60);
  assert.is.not(memory.exit_code, 0);
  const bomb = engine.exec(child.id, ['sh', '-c', 'b() { b | b & }; b; sleep 5'], 1).catch(() => undefined);
  const began = performance.now();
  for (let i = 0; i < 20; i++) assert.is((await engine.eval(sibling.id, `${i}`)).result, `${i}`);
  assert.ok(performance.now() - began < 20_000);
  const { pids = 0 } = await child.usage();
  assert.ok((pids ?? 0) < limits.vmTasks, 'its processes are none of this host');
  await engine.kill([child]);
  await bomb;
});

/** Whether one of a world's guests has become this. */
const hasBecome = (world: World, how: string): Promise<boolean> => {
  const consoles = () =>
    readdirSync(world.env.TMPDIR, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.console'));
  return eventually(
    () => consoles().some((name) => readFileSync(join(world.env.TMPDIR, name), 'utf8').includes(HOSTILE + how)),
    30_000,
  );
};

hostile('`forkd fork` names it, on stderr and in its record', async () => {
  const world = makeWorld(true);
  const { env } = world;
  try {
    const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '2', '--settle-secs', '100', '--json'], { env });
    const id = /--target (sb-\S+)/.exec(await fork.says(/--target sb-\S+ --/))?.[1] as string;
    const never = forkd(['eval', '--target', id, '--', becomeHostile('lies')], { env });
    assert.ok(await hasBecome(world, 'lies'));
    assert.is((await forkd(['eval', '--target', id, '--', '1'], { env })).code, 1);
    fork.kill('SIGINT');
    const ended = await fork.ended;
    assert.match(ended.stderr, /^⚠ child 1 was held: it answered with what is no answer$/m);
    assert.not.match(ended.stderr, /child 2 was held/);
    const records = jsonLinesOf<SandboxInfo>(ended);
    assert.equal(
      records.map(({ held }) => held.map(({ kind }) => kind)),
      [['no-answer'], []],
    );
    await never;
  } finally {
    world.close();
  }
});

hostile('the daemon names it: in the record of the sandbox and in the audit log', async () => {
  const world = makeWorld(true);
  const daemon = await startDaemon(world);
  const controller = new Controller({ baseUrl: `unix:${daemon.socketPath}`, timeoutMs: 60_000 });
  try {
    const made = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, n: 3 });
    const [id, other, mute] = made.map((one) => one.id) as [string, string, string];
    const never = controller.evalCode(id, becomeHostile('unsolicited')).catch(() => undefined);
    const audit = () => readFileSync(join(world.root, 'audit.log'), 'utf8');
    assert.ok(await eventually(() => audit().includes('"event":"sandbox.held"'), 20_000));
    assert.match(audit(), new RegExp(`"object":"${id}","kind":"flood"`));
    assert.is((await controller.getSandbox(id)).held[0]?.kind, 'flood');
    assert.equal((await controller.getSandbox(other)).held, []);
    assert.is((await controller.evalCode(other, '6 * 7')).result, '42');
    await controller.killSandbox(id);
    await never;
    // What it is sent it never reads: in requests as large as may be.
    const silent = controller.evalCode(mute, becomeHostile('mute')).catch(() => undefined);
    assert.ok(await hasBecome(world, 'mute'));
    const code = '#'.repeat(limits.bodyMaxBytes - 100);
    const asked = Array.from({ length: limits.agentBacklogBytes / code.length + 5 }, () =>
      controller.evalCode(mute, code),
    );
    for (const one of await Promise.allSettled(asked)) assert.is(one.status, 'rejected');
    assert.match(audit(), new RegExp(`"object":"${mute}","kind":"reads-nothing"`));
    assert.is((await controller.evalCode(other, '6 * 7')).result, '42');
    await silent;
  } finally {
    await controller.close();
    assert.is(await daemon.stop(), 0);
    world.close();
  }
});

hostile.run();
