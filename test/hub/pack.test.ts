/** Packs: there and back, and samples made to harm. Each hostile one must leave the store as it was. */
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync, type KeyObject, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { Encrypter, generateIdentity, identityToRecipient } from 'age-encryption';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { compress, decompress } from 'zstd-napi';

import { ForkdError } from '../../src/contract/errors.js';
import { limits } from '../../src/contract/limits.js';
import { DISK_BLOCK_BYTES } from '../../src/contract/remote-role.js';
import { BLOCKS_FILE, type FileDigest } from '../../src/contract/snapshot.js';
import { FRAME_BYTES } from '../../src/main/hub/frames.js';
import { pack } from '../../src/main/hub/pack.js';
import { unpack } from '../../src/main/hub/unpack.js';
import { requireSize } from '../../src/main/hub/unpack-frames.js';
import { type PackFile, readPackManifest } from '../../src/main/hub/format.js';
import { decodeHeader, TarReader } from '../../src/main/hub/tar-reader.js';
import { header } from '../../src/main/hub/tar-writer.js';
import { Store } from '../../src/main/store/store.js';
import { native } from '../../src/native/binding.js';
import { CLI, forkd, start, startCli } from '../support/cli.js';
import { archive, type Entry, framed, listen, unframed } from '../support/packs.js';
import { PAGE, putBase, putDiff, putDisk, putImage, Subject } from '../support/layers.js';

const root = mkdtempSync(join(tmpdir(), 'packs-'));
const store = new Store(join(root, 'from'));
const target = new Store(join(root, 'to'));
const good = join(root, 'good.tar.zst');
let entries: Entry[] = [];

const disk = (name: string, content: string | Buffer): FileDigest => putDisk(join(root, name), content);

/** The code that unpacking these bytes is refused with, or `accepted`; nothing may be there afterwards. */
const refusal = async (bytes: Buffer): Promise<string> => {
  const path = join(root, 'bad.tar.zst');
  writeFileSync(path, bytes);
  let code = 'accepted';
  try {
    const { made } = await unpack(target, { path });
    for (const tag of made.reverse()) {
      assert.is(target.manifest(tag).memory_root, store.manifest(tag).memory_root, 'accepted, and something else');
      target.remove(tag);
    }
  } catch (error) {
    code = error instanceof ForkdError ? error.code : String(error);
  }
  assert.equal(existsSync(target.root) ? readdirSync(target.root).filter((name) => name !== '.locks') : [], []);
  assert.not(existsSync(join(root, 'escaped')));
  return code;
};

const encryptedFor = (recipients: string[], content: Buffer): Promise<Uint8Array> => {
  const encrypter = new Encrypter();
  for (const recipient of recipients) encrypter.addRecipient(recipient);
  return encrypter.encrypt(content);
};

const edited = async (edit: (list: Entry[]) => Entry[]): Promise<string> =>
  refusal(await framed(await archive(edit(entries.map((entry) => ({ ...entry }))))));

const manifestEdited = (edit: (text: string) => string): Promise<string> =>
  edited(([first, ...rest]) => [
    { ...(first as Entry), body: Buffer.from(edit((first as Entry).body.toString())) },
    ...rest,
  ]);

const packs = suite('packs');

packs.before(async () => {
  const change = { volumes: [], volume_digests: [], kernel: disk('k', 'kernel'), initrd: disk('i', 'initrd') };
  const rootfs = disk('r', `disk${'\0'.repeat(100_000)}end`);
  putBase(store, 'base', { 0: 1, 20: 2 }, { ...change, rootfs: rootfs.path, rootfs_digest: rootfs });
  const subject = await Subject.start();
  await subject.write({ 3: 7 });
  putDiff(store, 'child', 'base', subject);
  await subject.end();
  await pack(store, { tag: 'child', out: good, description: 'a "test"' });
  entries = await listen(await unframed(readFileSync(good)));
});
packs.after(() => {
  rmSync(root, { recursive: true, force: true });
});

packs('hostile entries are refused', async () => {
  const body = Buffer.from('x');
  const instead = (entry: Omit<Entry, 'body'>) =>
    edited((list) => list.map((one, i) => (i === 2 ? { ...entry, body } : one)));
  assert.is(await instead({ name: '../escaped' }), 'PACK_INVALID');
  assert.is(await instead({ name: join(root, 'escaped') }), 'PACK_INVALID');
  const name = entries[2]?.name as string;
  assert.is(await instead({ name, type: 'symlink', linkname: join(root, 'escaped') }), 'PACK_INVALID');
  assert.is(await instead({ name, type: 'link', linkname: '/etc/passwd' }), 'PACK_INVALID');
  assert.is(await instead({ name, type: 'directory' }), 'PACK_INVALID');
  assert.is(await edited((list) => [...list, { name: 'more', body }]), 'PACK_INVALID', 'undeclared');
  assert.is(await edited((list) => list.slice(0, -1)), 'PACK_INVALID', 'missing');
  assert.is(await edited((list) => list.slice(1)), 'PACK_INVALID', 'no manifest');
});

packs('every file is held to its hash and size', async () => {
  for (const i of entries.keys()) {
    // The guest of the samples shares no page with its disk: that list is empty.
    if (i === 0 || entries[i]?.body.length === 0) continue;
    const flip = (at: number) => (list: Entry[]) =>
      list.map((one, j) => {
        if (j !== i) return one;
        const body = Buffer.from(one.body);
        body[at] = (body[at] as number) ^ 1;
        return { ...one, body };
      });
    const longer = (list: Entry[]) =>
      list.map((one, j) => (j === i ? { ...one, body: Buffer.concat([one.body, Buffer.from('x')]) } : one));
    const { name, body } = entries[i] as Entry;
    assert.is(await edited(flip(body.length >> 1)), 'PACK_INVALID', `${name} flipped`);
    assert.is(await edited(longer), 'PACK_INVALID', `${name} longer`);
    if (!name.endsWith('memory.layer')) continue;
    // The header is in memory.first, and zeros in its place here.
    assert.is(body[0], 0);
    assert.is(await edited(flip(0)), 'PACK_INVALID', `${name}: not zero`);
  }
});

packs('a manifest that points elsewhere, lies, or is too large', async () => {
  assert.is(await manifestEdited((text) => text.replaceAll('child', '../escaped')), 'PACK_INVALID');
  assert.is(await manifestEdited((text) => text.replaceAll('base', '/tmp/x')), 'PACK_INVALID');
  assert.is(
    await manifestEdited((text) => text.replace(/size = \d+/, 'size = 900000000000')),
    'PACK_INVALID',
    'a bomb',
  );
  assert.is(await manifestEdited((text) => `${text}\n# ${'x'.repeat(2 * 1024 * 1024)}`), 'PACK_INVALID', 'huge');
  assert.is(await manifestEdited(() => `a = ${'['.repeat(100_000)}`), 'PACK_INVALID', 'deep');
  for (const also of [`["${'0'.repeat(64)}"]`, '[5]', '"x"', '5'])
    assert.is(await manifestEdited((text) => text.replace(/also = \[.*?\]/, `also = ${also}`)), 'PACK_INVALID', also);
  const versioned = (version: string) =>
    manifestEdited((text) => text.replace('pack_version = 3', `pack_version = ${version}`));
  assert.is(await versioned('4'), 'PACK_UNREADABLE');
  // Read as what they say they are, and they are not.
  for (const version of ['1', '2']) assert.is(await versioned(version), 'PACK_INVALID');
});

packs('a pack without its seek table is refused', async () => {
  assert.is(await refusal(compress(await archive(entries))), 'PACK_INVALID');
});

packs('any zstd and tar read a pack; a seek table that lies is refused', async () => {
  const bytes = readFileSync(good);
  const contents = Buffer.from(decompress(bytes));
  assert.equal(
    (await listen(contents)).map(({ name }) => name),
    entries.map(({ name }) => name),
  );
  const footer = bytes.length - 9;
  assert.is(bytes.readUInt32LE(bytes.length - 4), 0x8f92eab1);
  // Two layers and three disks begin one; what comes first of each link ends one; and one is the last.
  assert.is(bytes.readUInt32LE(footer), 8, 'frames');
  for (const at of [footer, footer - 4, footer - 8, bytes.length - 5]) {
    const bad = Buffer.from(bytes);
    bad[at] = (bad[at] as number) ^ 4;
    assert.is(await refusal(bad), 'PACK_INVALID', `byte ${at}`);
  }
  assert.is(await refusal(Buffer.concat([bytes, Buffer.from('x')])), 'PACK_INVALID', 'more behind it');
  const large = compress(Buffer.alloc(limits.packFrameMaxBytes + 1));
  assert.is(await refusal(Buffer.concat([large, bytes])), 'PACK_INVALID', 'a frame that unpacks to too much');
});

packs('frames come back whole, in order', async () => {
  const content = Buffer.concat([randomBytes(3 * FRAME_BYTES + 17), Buffer.alloc(5 * FRAME_BYTES), Buffer.from('end')]);
  const bytes = await framed(content);
  assert.is(bytes.readUInt32LE(bytes.length - 9), 9);
  assert.ok((await unframed(bytes)).equals(content));
  assert.ok(Buffer.from(decompress(bytes)).equals(content));
});

packs('a header says any size', async () => {
  for (const size of [0, 1, 8 ** 11 - 1, 8 ** 11, 2 ** 40]) {
    const reader = new TarReader(Readable.from([header('a name', size)]), decodeHeader);
    assert.equal(await reader.next(), { name: 'a name', size });
  }
  assert.throws(() => header('x'.repeat(101), 1), /too long/);
});

packs('pages that memory shares with its root disk or its kernel are stored once', async () => {
  const world = new Store(join(root, 'shared'));
  const [content, loaded] = [randomBytes(600 * PAGE + 100), randomBytes(90 * PAGE + 100)];
  const rootfs = disk('shared-disk', content);
  const kernel = disk('shared-kernel', loaded);
  const rest = { kernel, initrd: disk('si', 'i'), rootfs: rootfs.path, rootfs_digest: rootfs };
  // Among pages of its own: pages 100 to 399 of the root disk; then its last whole ones, and the whole kernel behind them.
  const pagesOf = (from: Buffer, first: number, count: number, at: number) =>
    Array.from(
      { length: count },
      (_, i) => [at + i, from.subarray((first + i) * PAGE, (first + i + 1) * PAGE)] as const,
    );
  const image = Object.fromEntries([
    ...pagesOf(content, 100, 300, 32),
    ...pagesOf(content, 590, 10, 390),
    ...pagesOf(loaded, 0, 90, 400),
  ]);
  putImage(world, 'shared', { ...image, 5: Buffer.alloc(PAGE, 5), 500: Buffer.alloc(PAGE, 6) }, rest);
  const out = join(root, 'shared.tar.zst');
  const { bytes } = await pack(world, { tag: 'shared', out });
  const noise = content.length + loaded.length;
  assert.ok(bytes < noise + 100 * 1024, `${bytes} bytes hold ${noise} of noise once`);
  const back = new Store(join(root, 'shared-back'));
  await unpack(back, { path: out });
  const file = (one: Store) => readFileSync(one.manifest('shared').memory);
  assert.ok(file(back).equals(file(world)));
  assert.not(readdirSync(back.dir('shared')).includes('memory.pages'));
});

packs('what was touched first travels with a pack, and is in front', async () => {
  const order = Uint32Array.of(5, 0);
  const file = join(store.dir('base'), 'working-set');
  writeFileSync(file, order);
  const out = join(root, 'touched.tar.zst');
  await pack(store, { tag: 'base', out });
  rmSync(file);
  const list = await listen(await unframed(readFileSync(out)));
  const first = list.find(({ name }) => name.endsWith('memory.first'))?.body as Buffer;
  // Its frames, behind header and index, in that order: pages 20 and 0 of the image.
  assert.equal([first.at(-PAGE - 1), first.at(-1)], [2, 1]);
  const back = new Store(join(root, 'touched'));
  await unpack(back, { path: out });
  assert.equal(readFileSync(join(back.dir('base'), 'working-set')), Buffer.from(order.buffer));
  assert.ok(readFileSync(back.manifest('base').memory).equals(readFileSync(store.manifest('base').memory)));
});

packs('lists of shared pages that point outside or backwards are refused', async () => {
  const at = entries.findIndex(({ name }) => name.endsWith('memory.pages'));
  const list = async (...runs: number[]): Promise<string> => {
    const body = Buffer.alloc(runs.length * 4);
    runs.forEach((value, i) => void body.writeUInt32LE(value, i * 4));
    const old = native.blake3(entries[at]?.body as Buffer);
    return edited(([first, ...rest]) => {
      const text = (first as Entry).body.toString();
      const named = text.indexOf(`"${entries[at]?.name}"`);
      const changed = text
        .slice(named)
        .replace(/size = \d+/, `size = ${body.length}`)
        .replace(old, native.blake3(body));
      return [
        { ...(first as Entry), body: Buffer.from(text.slice(0, named) + changed) },
        ...rest.map((one, i) => (i + 1 === at ? { ...one, body } : one)),
      ];
    });
  };
  assert.is(await list(), 'accepted', 'the same, said anew');
  for (const runs of [
    [1, 0, 1e6],
    [1e6, 0, 1],
    [1, 1e6, 1],
    [1, 0, 0],
    [2, 0, 1, 1, 0, 1],
    [1, 2],
    [0xffffffff, 0xffffffff, 0xffffffff],
  ])
    assert.is(await list(...runs), 'PACK_INVALID', runs.join(' '));
});

packs('a signature is held to what it signs, and to the keys that are trusted', async () => {
  const [mine, other] = [generateKeyPairSync('ed25519'), generateKeyPairSync('ed25519')];
  const out = join(root, 'signed.tar.zst');
  await pack(store, { tag: 'child', out, signingKey: mine.privateKey });
  const open = async (path: string, trusted: KeyObject[]): Promise<string> => {
    const world = new Store(join(root, 'trust'));
    const made = await unpack(world, { path, trusted }).then(
      (done) => done.made,
      (error: ForkdError) => error.code,
    );
    assert.equal(world.tags().sort(), Array.isArray(made) ? ['base', 'child'] : []);
    rmSync(world.root, { recursive: true, force: true });
    return Array.isArray(made) ? 'accepted' : made;
  };
  assert.is(await open(out, [mine.publicKey]), 'accepted');
  assert.is(await open(out, [other.publicKey, mine.publicKey]), 'accepted');
  assert.is(await open(out, []), 'accepted', 'nobody asked for trust');
  assert.is(await open(out, [other.publicKey]), 'PACK_UNTRUSTED');
  assert.is(await open(good, [mine.publicKey]), 'PACK_UNTRUSTED', 'not signed');

  const signed = await listen(await unframed(readFileSync(out)));
  assert.is(signed[1]?.name, 'manifest.sig');
  const changed = async (i: number, edit: (body: Buffer) => Buffer, trusted: KeyObject[]): Promise<string> => {
    const path = join(root, 'changed.tar.zst');
    const list = signed.map((one, j) => (i === j ? { ...one, body: edit(Buffer.from(one.body)) } : one));
    writeFileSync(path, await framed(await archive(list)));
    return open(path, trusted);
  };
  const flip = (at: number) => (body: Buffer) => {
    body[at] = (body[at] as number) ^ 1;
    return body;
  };
  const described = (body: Buffer) => Buffer.from(`${body}description = "another"\n`);
  assert.is(await changed(0, described, [mine.publicKey]), 'PACK_INVALID', 'another manifest');
  assert.is(await changed(0, described, []), 'PACK_INVALID', 'wrong even if nobody asked for trust');
  assert.is(await changed(1, flip(3), [mine.publicKey]), 'PACK_INVALID', 'another key');
  assert.is(await changed(1, flip(40), [mine.publicKey]), 'PACK_INVALID', 'another signature');
  assert.is(await changed(1, (body) => body.subarray(1), [mine.publicKey]), 'PACK_INVALID', 'a short one');
});

packs('--sign and --trust take keys as openssl writes them, and no others', async () => {
  const data = join(root, 'keys');
  putBase(
    new Store(join(data, 'forkd/snapshots')),
    'small',
    { 1: 1 },
    {
      rootfs: join(root, 'i'),
      kernel: disk('i', 'initrd'),
      initrd: disk('i', 'initrd'),
      rootfs_digest: disk('i', 'initrd'),
    },
  );
  const env = { XDG_DATA_HOME: data };
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const file = (name: string, text: string | Buffer): string => {
    writeFileSync(join(data, name), text);
    return join(data, name);
  };
  const key = file('key.pem', privateKey.export({ type: 'pkcs8', format: 'pem' }));
  const pub = file('key.pub', publicKey.export({ type: 'spki', format: 'pem' }));
  const rsaKey = file('rsa.pem', rsa.privateKey.export({ type: 'pkcs8', format: 'pem' }));
  const out = join(data, 'small.tar.zst');
  const run = async (...args: string[]) => {
    const { code, stderr } = await forkd(args, { env });
    return `${code} ${/\[(\w+)\]/.exec(stderr)?.[1] ?? stderr}`;
  };
  for (const bad of [pub, rsaKey, out])
    assert.match(await run('pack', '--tag', 'small', '-o', out, '--sign', bad), /^1 .*not a key/s);
  assert.match(await run('pack', '--tag', 'small', '-o', out, '--sign', key), /^0 /);
  assert.match(await run('unpack', out, '--tag', 'copy', '--trust', rsaKey), /^1 .*not a key/s);
  assert.match(await run('unpack', out, '--tag', 'copy', '--trust', pub), /^0 /);
});

packs('where a pack cannot be is said before anything is read, and nothing but a file is replaced', async () => {
  const refused = (out: string) =>
    pack(store, { tag: 'base', out }).then(
      () => 'packed',
      (error: ForkdError) => error.code,
    );
  const pipe = join(root, 'pipe');
  execFileSync('mkfifo', [pipe]);
  assert.is(await refused(pipe), 'FILE_EXPECTED');
  assert.ok(statSync(pipe).isFIFO());
  assert.is(await refused(root), 'FILE_EXPECTED');
  assert.is(await refused(join(root, 'no', 'pack')), 'FILE_MISSING');
  assert.is(await refused(join(good, 'pack')), 'FILE_MISSING');
  assert.equal(readdirSync(join(store.root, '.halves')), []);
});

packs('an encrypted pack opens for its recipients, and for nobody else', async () => {
  const [mine, theirs, other] = await Promise.all([generateIdentity(), generateIdentity(), generateIdentity()]);
  const recipients = await Promise.all([mine, theirs].map((identity) => identityToRecipient(identity)));
  const out = join(root, 'secret.tar.zst.age');
  await pack(store, { tag: 'child', out, recipients });
  const bytes = readFileSync(out);
  assert.not(bytes.includes('manifest.toml') || bytes.includes(Buffer.from([0x28, 0xb5, 0x2f, 0xfd])));
  const open = async (content: Buffer, identities: string[]): Promise<string> => {
    const world = new Store(join(root, 'secrets'));
    const path = join(root, 'try.age');
    writeFileSync(path, content);
    const outcome = await unpack(world, { path, identities }).then(
      ({ made }) => made.join(),
      (error: ForkdError) => `${error.code} ${error.message}`,
    );
    assert.equal(world.tags().length, outcome === 'base,child' ? 2 : 0);
    rmSync(world.root, { recursive: true, force: true });
    return outcome;
  };
  assert.is(await open(bytes, [mine]), 'base,child');
  assert.is(await open(bytes, [other, theirs]), 'base,child');
  assert.match(await open(bytes, []), /^PACK_ENCRYPTED .* is encrypted$/);
  assert.match(await open(bytes, [other]), /^PACK_ENCRYPTED .*not for this identity/);
  for (const at of [30, 150, 320, bytes.length >> 1, bytes.length - 1]) {
    const bad = Buffer.from(bytes);
    bad[at] = (bad[at] as number) ^ 1;
    assert.match(await open(bad, [mine]), /^PACK_(INVALID|ENCRYPTED) /, `byte ${at}`);
  }
  for (const part of [10, 100, 330, bytes.length >> 1, bytes.length - 1])
    assert.match(await open(bytes.subarray(0, part), [mine]), /^PACK_INVALID /, `${part} bytes`);
  const endless = Buffer.concat([Buffer.from('age-encryption.org/v1\n'), Buffer.alloc(2 ** 20, 'x')]);
  assert.match(await open(endless, [mine]), /^PACK_INVALID .*header/);
});

packs('an encrypted pack of more than a socket and a cipher hold at once', async () => {
  const identity = await generateIdentity();
  const recipients = [await identityToRecipient(identity)];
  const large = new Store(join(root, 'large'));
  const noise = disk('noise', randomBytes(6_000_000));
  const disks = { kernel: noise, initrd: noise, rootfs: noise.path, rootfs_digest: noise };
  putBase(large, 'base', { 0: 1 }, { volumes: [], volume_digests: [], ...disks });
  for (const version of [3, 1] as const) {
    const out = join(root, `large-${version}`);
    await pack(large, { tag: 'base', out, version, ...(version === 3 ? { recipients } : {}) });
    // Ours never are: others may be.
    if (version === 1) writeFileSync(out, await encryptedFor(recipients, readFileSync(out)));
    const world = new Store(join(root, 'secrets'));
    assert.equal((await unpack(world, { path: out, identities: [identity] })).made, ['base']);
    assert.ok(readFileSync(world.manifest('base').rootfs).equals(readFileSync(noise.path)));
    rmSync(world.root, { recursive: true });
  }
});

packs('--encrypt and --identity take keys as age-keygen writes them, and no others', async () => {
  const data = join(root, 'age');
  const initrd = disk('i', 'initrd');
  const change = { rootfs: initrd.path, kernel: initrd, initrd, rootfs_digest: initrd };
  putBase(new Store(join(data, 'forkd/snapshots')), 'small', { 1: 1 }, change);
  const env = { XDG_DATA_HOME: data };
  const identity = await generateIdentity();
  const recipient = await identityToRecipient(identity);
  const file = (name: string, text: string): string => {
    writeFileSync(join(data, name), text);
    return join(data, name);
  };
  const key = file('key.txt', `# created: today\n# public key: ${recipient}\n${identity}\n`);
  const run = async (...args: string[]) => {
    const { code, stderr } = await forkd(args, { env, cwd: data });
    return `${code} ${stderr}`;
  };
  for (const bad of [key, 'age1xyz', '/nowhere'])
    assert.match(await run('pack', '--tag', 'small', '--encrypt', bad), /^1 .*no age key/s, bad);
  assert.match(await run('pack', '--tag', 'small', '--encrypt', file('pub', `${recipient}\n`)), /^0 /);
  const out = join(data, 'small.forkd-snapshot.tar.zst.age');
  assert.match(await run('unpack', out, '--tag', 'copy'), /^1 .*is encrypted.*--identity/s);
  assert.match(
    await run('unpack', out, '--tag', 'copy', '--identity', file('none', '# none\n')),
    /^1 .*there is none/s,
  );
  assert.match(await run('unpack', out, '--tag', 'copy', '--identity', key), /^0 /);
});

packs('truncated, and with bits flipped', async () => {
  const bytes = readFileSync(good);
  for (let i = 0; i < 8; i++)
    assert.is(await refusal(bytes.subarray(0, Math.floor((bytes.length * i) / 8))), 'PACK_INVALID');
  let idle = 0;
  for (let i = 0; i < 40; i++) {
    const bad = Buffer.from(bytes);
    const at = Math.floor(((bytes.length - 1) * i) / 40);
    bad[at] = (bad[at] as number) ^ (1 << (i % 8));
    const outcome = await refusal(bad);
    assert.not.match(outcome, /INTERNAL|Error:/, `bit at ${at}`);
    if (outcome === 'accepted') idle++;
  }
  // A few bits of a zstd frame mean nothing (the size of its window, unused bits): every content hash was right all the same.
  assert.ok(idle <= 4, `${idle} of 40 accepted`);
});

packs('a chain comes back whole, with its disks, and not twice', async () => {
  const { tag, made } = await unpack(target, { path: good });
  assert.equal([tag, made], ['child', ['base', 'child']]);
  const back = target.manifest('child');
  assert.is(back.memory_root, store.manifest('child').memory_root);
  assert.ok(back.rootfs.startsWith(target.root));
  assert.equal(readFileSync(back.rootfs), readFileSync(join(root, 'r')));
  assert.equal(readdirSync(target.dir('child')).sort(), [
    'initrd',
    'kernel',
    'memory.layer',
    'rootfs.ext4',
    'snapshot.json',
    'vmstate',
  ]);
  const again = await unpack(target, { path: good }).catch((error: ForkdError) => error.code);
  assert.is(again, 'SNAPSHOT_EXISTS');
  const other = await unpack(target, { path: good, tag: 'second' });
  assert.equal(other.made, ['second'], 'the base that is here is used');
  assert.equal(target.abandoned(), []);
});

packs('more than any chain can have, or than such a file can hold, is refused before anything is read', async () => {
  const [first, ...rest] = entries as [Entry, ...Entry[]];
  const path = join(root, 'total.tar.zst');
  for (const [size, reason] of [
    [2 ** 41, /unpacks to \d+ bytes, which is too much/],
    [2 ** 33, /unpacks to more than 2000 times its size/],
  ] as const) {
    const body = Buffer.from(first.body.toString().replace(/size = \d+/, `size = ${size}`));
    writeFileSync(path, await framed(await archive([{ ...first, body }, ...rest])));
    const error = await unpack(target, { path }).catch((e: ForkdError) => e);
    assert.match(String((error as ForkdError).details['reason']), reason);
  }
});

packs('a pack may have the hashes of as large a disk as is made here', () => {
  const hashesOf = (diskBytes: number): number => (diskBytes / DISK_BLOCK_BYTES) * 32;
  const manifest = readPackManifest('a pack', (entries[0] as Entry).body);
  const blocks = manifest.files.find(({ path }) => path.endsWith(`/${BLOCKS_FILE}`)) as PackFile;
  const withDisk = (bytes: number) => ({ ...manifest, files: [{ ...blocks, size: hashesOf(bytes) }] });
  requireSize('a pack', withDisk(128 * 2 ** 30), 2 ** 30);
  assert.throws(
    () => requireSize('a pack', withDisk(129 * 2 ** 30), 2 ** 30),
    (error: ForkdError) => error.code === 'PACK_INVALID',
  );
});

packs('half a chain is taken back when its head cannot appear', async () => {
  const world = new Store(join(root, 'half'));
  // Somebody makes the head's tag after unpacking has looked for it.
  const onProgress = () => mkdirSync(world.dir('child'), { recursive: true });
  const code = await unpack(world, { path: good }, { onProgress }).catch((error: ForkdError) => error.code);
  assert.is(code, 'SNAPSHOT_EXISTS');
  assert.equal(world.tags(), ['child'], 'the base had appeared and is gone again');
  assert.equal(readdirSync(world.dir('child')), [], 'what is not ours was left alone');
  assert.equal(world.abandoned(), []);
});

packs('--force replaces the head, and only by something that is whole', async () => {
  const world = new Store(join(root, 'force'));
  const old = putBase(world, 'child', { 5: 5 });
  const before = world.manifest('child').memory_root;
  const unpackInto = (request: { path: string; force?: boolean }) =>
    unpack(world, request).then(
      ({ made }) => made,
      (error: ForkdError) => error.code,
    );
  assert.is(await unpackInto({ path: good }), 'SNAPSHOT_EXISTS');
  const cut = join(root, 'cut.tar.zst');
  writeFileSync(cut, readFileSync(good).subarray(0, -200));
  assert.is(await unpackInto({ path: cut, force: true }), 'PACK_INVALID');
  assert.is(world.manifest('child').memory_root, before, 'a bad pack changes nothing');
  assert.equal(await unpackInto({ path: good, force: true }), ['base', 'child']);
  assert.is(world.manifest('child').memory_root, store.manifest('child').memory_root);
  assert.ok(existsSync(old));
  assert.equal(world.abandoned(), []);

  putBase(world, 'parent', { 1: 1 });
  const subject = await Subject.start();
  await subject.write({ 2: 2 });
  putDiff(world, 'made-of-it', 'parent', subject);
  await subject.end();
  const forced = await unpack(world, { path: good, tag: 'parent', force: true }).catch((e: ForkdError) => e.code);
  assert.is(forced, 'SNAPSHOT_HAS_DEPENDENTS');
});

packs('a pack that is killed leaves what cleanup finds, and one that shows its progress draws a bar', async () => {
  const data = join(root, 'data');
  const world = new Store(join(data, 'forkd/snapshots'));
  const big = disk('big', 'disk');
  // Sparse: it takes a while to read, and no room.
  truncateSync(big.path, 2 ** 30);
  const change = { kernel: disk('bk', 'k'), initrd: disk('bi', 'i'), rootfs: big.path };
  const { mtimeMs: mtime_ms } = statSync(big.path);
  putBase(world, 'big', { 1: 1 }, { ...change, rootfs_digest: { ...big, bytes: 2 ** 30, mtime_ms } });
  putBase(world, 'small', { 1: 1 }, { ...change, rootfs: change.kernel.path, rootfs_digest: change.kernel });
  const env = { XDG_DATA_HOME: data };
  const out = join(root, 'killed.tar.zst');
  const running = startCli(['pack', '--tag', 'big', '-o', out], { env });
  const halves = () => readdirSync(root).filter((name) => name.startsWith('killed'));
  while (halves().length === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  running.kill('SIGKILL');
  await running.ended;
  const [half = ''] = halves();
  assert.match(half, /^killed\.tar\.zst\.[0-9a-f]{12}\.part$/);
  const { stdout } = await forkd(['cleanup', '--yes'], { env });
  assert.match(stdout, new RegExp(`^DEL +half-made file .*${half}$`, 'm'));
  assert.equal(halves(), []);

  const terminal = 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)';
  const args = ['-c', terminal, process.execPath, CLI, 'pack', '--tag', 'small', '-o', out];
  const drawn = await start('python3', args, { env }).ended;
  assert.is(drawn.code, 0, drawn.stdout);
  assert.match(drawn.stdout, /\[#+\.*\] .* KiB\/.* KiB/);
});

packs('nothing is left of a pack that fails', async () => {
  writeFileSync(join(root, 'r'), 'another disk');
  const out = join(root, 'fails.tar.zst');
  const code = await pack(store, { tag: 'child', out }).catch((error: ForkdError) => error.code);
  assert.is(code, 'SNAPSHOT_INCOMPATIBLE');
  assert.equal(
    readdirSync(root).filter((name) => name.startsWith('fails')),
    [],
  );
});

packs.run();
