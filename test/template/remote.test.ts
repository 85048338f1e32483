/** `pull --lazy`: a snapshot that is started while its pack is on a web server. Real VMs, a real pack. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { ForkdError } from '../../src/contract/errors.js';
import { Http } from '../../src/http/client.js';
import { Engine } from '../../src/main/engine.js';
import { pack } from '../../src/main/hub/pack.js';
import { pullLazy } from '../../src/main/hub/pull-lazy.js';
import { type Heard, sendFile, serve, type WebServer } from '../support/http.js';
import { forkd } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, type World } from '../support/world.js';

const NUMPY = 'numpy.zeros(5).tolist()';
const ZEROS = '[0.0, 0.0, 0.0, 0.0, 0.0]';
/** Reads the guest's disk, far beyond what is in its memory. */
const WANDER = ['sh', '-c', 'find / -xdev -type f -size +8k | head -400 | xargs cat 2>/dev/null | wc -c'];
const PATIENCE = { tries: 2, backoffMs: 5, backoffMaxMs: 20, headersMs: 2000, idleMs: 2000 };

const root = mkdtempSync(join(tmpdir(), 'remote-'));
let world: World;
let file: Buffer;
let server: WebServer;
/** What the server does instead of sending what is asked for. */
let instead: ((request: Heard, response: ServerResponse) => boolean) | undefined;
let sent = 0;

const remote = suite('lazy pull');

remote.before(async () => {
  world = makeWorld(true);
  process.env['XDG_DATA_HOME'] = world.env.XDG_DATA_HOME;
  const engine = new Engine();
  try {
    // So that the pack knows what is needed first.
    await engine.fork({ tag: BASE_TAG, n: 2, firstEval: NUMPY });
    const out = join(root, 'base.tar.zst');
    await pack(engine.store, { tag: BASE_TAG, out }, engine.pool);
    file = readFileSync(out);
  } finally {
    await engine.close();
  }
  server = await serve((request, response) => {
    if (instead?.(request, response)) return;
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
    sent += from === undefined ? file.length : Number(to) - Number(from) + 1;
    sendFile(request, response, file);
  });
});
remote.after(async () => {
  await server?.close();
  world?.close();
  rmSync(root, { recursive: true, force: true });
});
remote.before.each(() => {
  instead = undefined;
  sent = 0;
});

const pulled = async (tag: string, engine: Engine): Promise<void> => {
  const http = new Http();
  try {
    await pullLazy(http, engine.store, { url: new URL(server.url), tag });
  } finally {
    await http.close();
  }
};

remote('children answer before most of the pack is here, wander over the rest, and the tag becomes whole', async () => {
  const engine = new Engine();
  try {
    await pulled('far', engine);
    assert.ok(sent < file.length / 10, `${sent} of ${file.length} to make the tag`);
    assert.ok(engine.store.isPartial('far'));
    const { sandboxes, failures, firstResults } = await engine.fork({ tag: 'far', n: 2, firstEval: NUMPY });
    assert.equal(failures, []);
    assert.equal(
      [...firstResults.values()].map(({ result }) => result),
      [ZEROS, ZEROS],
    );
    assert.ok(sent < file.length * 0.6, `${sent} of ${file.length} until the children had answered`);
    const wandered = await Promise.all(sandboxes.map(({ id }) => engine.exec(id, WANDER, 60)));
    assert.ok(Number(wandered[0]?.stdout) > 2 ** 20, JSON.stringify(wandered[0]));
    assert.is(wandered[0]?.stdout, wandered[1]?.stdout);
    assert.ok(await eventually(() => !engine.store.isPartial('far'), 60_000), 'it never became whole');
    const { problems } = await engine.verify('far');
    assert.equal(problems, []);
    const { rootfs, rootfs_digest } = engine.store.manifest('far');
    const { digests } = await engine.pool.run('hash', { paths: [rootfs] });
    assert.is(digests[0]?.sha256, rootfs_digest.sha256);
  } finally {
    await engine.close();
  }
});

remote('a server that is gone ends who needs it, with that reason, and nobody else', async () => {
  const engine = new Engine({ patience: PATIENCE });
  try {
    await pulled('gone', engine);
    const { sandboxes } = await engine.fork({ tag: 'gone', n: 2, firstEval: NUMPY });
    const [wanderer, quiet] = sandboxes;
    instead = (_, response) => {
      response.destroy();
      return true;
    };
    const told = await engine.exec(wanderer?.id ?? '', WANDER, 60).catch((error: ForkdError) => error.message);
    assert.match(String(told), /could not|cannot/);
    assert.is((await engine.eval(quiet?.id ?? '', NUMPY)).result, ZEROS);
    assert.ok(engine.store.isPartial('gone'));
    // It is back: what was given up is asked for again.
    instead = undefined;
    const again = await engine.fork({ tag: 'gone', n: 1 });
    assert.is((await engine.exec(again.sandboxes[0]?.id ?? '', WANDER, 60)).exit_code, 0);
  } finally {
    await engine.close();
  }
});

remote('by command: pull --lazy, fork, pull TAG; and what needs all of it says so', async () => {
  const run = (...args: string[]) => forkd(args, { env: world.env });
  const lazily = await run('pull', '--lazy', server.url, '--tag', 'cli');
  assert.is(lazily.code, 0, lazily.stderr);
  assert.match(lazily.stderr, /'cli' can be forked/);
  const packed = await run('pack', '--tag', 'cli', '-o', join(root, 'x'));
  assert.match(packed.stderr, /SNAPSHOT_PARTIAL|not all of snapshot 'cli' is here/);
  const forked = await run('fork', '--tag', 'cli', '-n', '2', '--', 'echo', 'here');
  assert.is(forked.code, 0, forked.stderr);
  assert.match(forked.stdout, /^\[1\] here$/m);
  const rest = await run('pull', 'cli');
  assert.match(rest.stderr, /'cli' is (whole|here already)/);
  const verified = await run('inspect', 'cli', '--verify');
  assert.is(verified.code, 0, verified.stderr);
});

remote.run();
