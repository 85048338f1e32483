/**
 * Damaged and forged packs: whatever the bytes, a pack is unpacked as it was made, or refused by one of its errors, and nothing is left. Seeded, so that a
 * failure can be repeated.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { compress, decompress } from 'zstd-napi';
import { ForkdError } from '../../src/contract/errors.js';
import { Http } from '../../src/http/client.js';
import { pack } from '../../src/main/hub/pack.js';
import { pullLazy } from '../../src/main/hub/pull-lazy.js';
import { unpack } from '../../src/main/hub/unpack.js';
import { Store } from '../../src/main/store/store.js';
import { sendFile, serve } from '../support/http.js';
import { putBase, putDisk } from '../support/layers.js';
import { framed, unframed } from '../support/packs.js';
import { damaged, forgedAt, random } from '../support/random.js';
import { suite } from '../support/suite.js';

const SEED = 0x9acc;
const ROUNDS = 40;
const LAZY_ROUNDS = 20;
const PLAIN_ROUNDS = 12;
const CODES = /^(PACK_(INVALID|UNREADABLE|NOT_LAZY|OTHER_ENGINE|SIDECAR_MISSING)|REMOTE_CHANGED|DISK_FULL)$/;

const next = random(SEED);
const root = mkdtempSync(join(tmpdir(), 'fuzz-packs-'));
const store = new Store(join(root, 'from'));
const target = new Store(join(root, 'to'));
let good: Buffer;
let content: Buffer;

/** A number, a hash or a name of the manifest is another, at the same length: what comes behind its parser. */
const forgedManifest = (bytes: Buffer): Buffer => {
  const copy = Buffer.from(bytes);
  const size = Number.parseInt(copy.toString('latin1', 124, 135), 8);
  const text = copy.toString('latin1', 512, 512 + size);
  const tokens = [...text.matchAll(/\d+|[0-9a-f]{64}|"[^"]{1,40}"/g)];
  for (let i = next(3); i >= 0; i--) {
    const token = tokens[next(tokens.length)];
    if (!token) continue;
    const at = 512 + token.index + next(token[0].length);
    copy[at] = (/\d/.test(token[0]) ? '0123456789' : 'abcdef"./').charCodeAt(next(9));
  }
  return copy;
};

/** In any header. */
const forgedHeader = (bytes: Buffer): Buffer => {
  const headers = [...Array(Math.floor(bytes.length / 512)).keys()].filter(
    (block) => bytes.toString('latin1', block * 512 + 257, block * 512 + 262) === 'ustar',
  );
  return forgedAt(bytes, (headers[next(headers.length)] as number) * 512, next);
};

const sample = async (round: number): Promise<Buffer> => {
  const kind = round % 4;
  if (kind === 0) return damaged(good, next);
  if (kind === 1) return framed(forgedManifest(content));
  if (kind === 2) return framed(forgedHeader(content));
  return framed(damaged(content, next));
};

const requireNothing = (where: string): void => {
  const left = existsSync(target.root) ? readdirSync(target.root).filter((name) => name !== '.locks') : [];
  assert.equal(left, [], `${where}: something is left`);
  assert.equal(
    readdirSync(root).filter((name) => !['from', 'to', 'disk', 'pack', 'good', 'plain'].includes(name)),
    [],
    where,
  );
};

/** What it was, or an error of packs. */
const settle = async (where: string, work: Promise<unknown>): Promise<boolean> => {
  const error = await work.then(
    () => undefined,
    (one: unknown) => one,
  );
  if (error === undefined) {
    for (const tag of target.tags()) {
      assert.is(target.manifest(tag).memory_root, store.manifest('base').memory_root, `${where}: another memory`);
      target.remove(tag);
    }
  } else assert.ok(error instanceof ForkdError && CODES.test(error.code), `${where}: ${String(error)}`);
  requireNothing(where);
  return error !== undefined;
};

const test = suite('fuzz of packs');

test.before(async () => {
  const path = join(root, 'disk');
  const disk = putDisk(path, Buffer.alloc(70_000, 'disk'));
  putBase(store, 'base', { 0: 1, 20: 2, 400: 3 }, { kernel: disk, initrd: disk, rootfs: path, rootfs_digest: disk });
  const out = join(root, 'good');
  await pack(store, { tag: 'base', out });
  good = readFileSync(out);
  content = await unframed(good);
});
test.after(() => {
  rmSync(root, { recursive: true, force: true });
});

test('unpack', async () => {
  let refused = 0;
  const path = join(root, 'pack');
  for (let round = 0; round < ROUNDS; round++) {
    writeFileSync(path, await sample(round));
    if (await settle(`seed ${SEED}, round ${round}`, unpack(target, { path }))) refused++;
  }
  assert.ok(refused > ROUNDS / 2, `only ${refused} of ${ROUNDS} were refused`);
});

test('unpack, of versions 1 and 2', async () => {
  const folder = join(root, 'plain');
  mkdirSync(folder);
  const path = join(folder, 'pack');
  await pack(store, { tag: 'base', out: path, version: 1 });
  const whole = readFileSync(path);
  const inside = Buffer.from(decompress(whole));
  let refused = 0;
  for (let round = 0; round < PLAIN_ROUNDS; round++) {
    const kind = round % 3;
    const bad =
      kind === 0 ? damaged(whole, next) : compress(kind === 1 ? forgedManifest(inside) : forgedHeader(inside));
    writeFileSync(path, bad);
    if (await settle(`seed ${SEED}, plain round ${round}`, unpack(target, { path }))) refused++;
  }
  rmSync(folder, { recursive: true });
  assert.ok(refused > PLAIN_ROUNDS / 2, `only ${refused} of ${PLAIN_ROUNDS} were refused`);
});

test('lazily', async () => {
  let bytes = good;
  const server = await serve((request, response) => sendFile(request, response, bytes));
  const http = new Http({ tries: 1 });
  let refused = 0;
  try {
    for (let round = 0; round < LAZY_ROUNDS; round++) {
      bytes = await sample(round);
      const where = `seed ${SEED}, lazy round ${round}`;
      if (await settle(where, pullLazy(http, target, { url: new URL(server.url) }))) refused++;
    }
  } finally {
    await http.close();
    await server.close();
  }
  assert.ok(refused > LAZY_ROUNDS / 3, `only ${refused} of ${LAZY_ROUNDS} were refused`);
});

test.run();
