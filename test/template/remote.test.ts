/** `pull --lazy`: a snapshot that is started while its pack is on a web server. Real VMs, a real pack. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { ForkdError } from '../../src/contract/errors.js';
import type { RemotePack } from '../../src/contract/remote-role.js';
import { MEMORY_FILE, REMOTE_FILE, WORKING_SET_FILE } from '../../src/contract/snapshot.js';
import { Http } from '../../src/http/client.js';
import { Engine } from '../../src/main/engine.js';
import { fileDigest } from '../../src/main/file-digest.js';
import { chunksOf, framesOf } from '../../src/main/hub/first.js';
import { pack } from '../../src/main/hub/pack.js';
import { pullLazy } from '../../src/main/hub/pull-lazy.js';
import { readWorkingSet } from '../../src/main/store/working-set.js';
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
    await pack(engine.store, { tag: BASE_TAG, out });
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
    assert.is((await fileDigest(rootfs)).blake3, rootfs_digest.blake3);
  } finally {
    await engine.close();
  }
});

remote('what was touched first where the pack was made is asked for first, in that order', async () => {
  const engine = new Engine();
  const folder = engine.store.dir(BASE_TAG);
  const recorded = readFileSync(join(folder, WORKING_SET_FILE));
  // An order that no file has by itself.
  const order = (readWorkingSet(folder, chunksOf(engine.store.manifest(BASE_TAG).memory_bytes)) as Uint32Array)
    .slice()
    .reverse();
  const out = join(root, 'order.tar.zst');
  writeFileSync(join(folder, WORKING_SET_FILE), order);
  await pack(engine.store, { tag: BASE_TAG, out });
  writeFileSync(join(folder, WORKING_SET_FILE), recorded);
  const content = readFileSync(out);
  const web = await serve((request, response) => sendFile(request, response, content));
  try {
    const http = new Http();
    await pullLazy(http, engine.store, { url: new URL(web.url), tag: 'order' });
    await http.close();
    const positions = positionsOf(engine.store.dir('order'), order);
    assert.ok(positions.length > 100, `${positions.length} chunks`);
    assert.equal(
      positions,
      [...positions].sort((a, b) => a - b),
      'they come over the wire in that order',
    );
    const { frames } = JSON.parse(readFileSync(join(engine.store.dir('order'), REMOTE_FILE), 'utf8')) as RemotePack;
    const before = web.heard.length;
    await engine.fork({ tag: 'order', n: 2, firstEval: NUMPY });
    const asked = web.heard.slice(before).flatMap(({ headers }) => framesIn(frames, headers.range));
    const wanted = framesOfContent(frames, positions).filter(
      (frame) => !framesIn(frames, web.heard[0]?.headers.range).includes(frame),
    );
    assert.is(asked[0], wanted[0], 'before anything else');
    assert.equal(
      asked.filter((frame) => wanted.includes(frame)),
      wanted,
      'each once',
    );
  } finally {
    await engine.close();
    await web.close();
  }
});

/** Where in the unpacked pack the first byte of each chunk is; equal chunks are stored once. */
const positionsOf = (folder: string, chunks: Uint32Array): number[] => {
  const { segments } = JSON.parse(readFileSync(join(folder, REMOTE_FILE), 'utf8')) as RemotePack;
  const layer = openSync(join(folder, MEMORY_FILE), 'r');
  const offsets = new Map(framesOf(layer).map(({ chunk, offset }) => [chunk, offset]));
  closeSync(layer);
  const wanted = [...new Set([...chunks].map((chunk) => offsets.get(chunk)))];
  return wanted.flatMap((offset) => {
    for (let i = 0; i < segments.length && offset !== undefined; i += 4) {
      const [at, count, file, from] = segments.slice(i, i + 4) as [number, number, number, number];
      if (file === 0 && from <= offset && offset < from + count) return [at + offset - from];
    }
    return [];
  });
};

/** The frames that have these bytes of the content, each once. */
const framesOfContent = (frames: number[], positions: number[]): number[] => {
  const ends: number[] = [];
  for (let i = 1; i < frames.length; i += 2) ends.push((ends.at(-1) ?? 0) + (frames[i] as number));
  return [...new Set(positions.map((position) => ends.findIndex((end) => position < end)))];
};

/** The whole frames of a range of the pack. */
const framesIn = (frames: number[], range = ''): number[] => {
  const [, from, to] = (/^bytes=(\d+)-(\d+)$/.exec(range) ?? []).map(Number);
  const inside: number[] = [];
  for (let i = 0, at = 0; i < frames.length; i += 2) {
    const end = at + (frames[i] as number);
    if (at >= (from ?? 0) && end <= (to ?? -1) + 1) inside.push(i / 2);
    at = end;
  }
  return inside;
};

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
