/** The file system that is written here, as e2fsprogs see it. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { Disk } from '../../src/main/oci/ext4/disk.js';
import { type DiskRoom, writeExt4 } from '../../src/main/oci/ext4/write.js';
import type { TarEntry } from '../../src/main/oci/tar.js';
import { Tree } from '../../src/main/oci/tree.js';
import { suite } from '../support/suite.js';

const MIB = 1024 * 1024;
const root = mkdtempSync(join(tmpdir(), 'ext4-'));
let count = 0;

const test = suite('ext4');
test.after(() => rmSync(root, { recursive: true, force: true }));

const make = async (fill: (tree: Tree) => Promise<void>, room: DiskRoom = { minBytes: 0 }): Promise<string> => {
  const path = join(root, `disk-${++count}`);
  const disk = new Disk(path);
  try {
    const tree = new Tree(disk);
    await fill(tree);
    await writeExt4(tree, disk, room);
  } finally {
    await disk.close();
  }
  tool('e2fsck', '-fn', path);
  return path;
};

const tool = (name: string, ...args: string[]): Buffer =>
  execFileSync(`/usr/sbin/${name}`, args, { stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 512 * MIB });
const debugfs = (path: string, request: string): string => tool('debugfs', '-R', request, path).toString('latin1');

const entry = (name: string, more: Partial<TarEntry> = {}): TarEntry => ({
  name,
  kind: 'file',
  target: '',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: 1e9,
  major: 0,
  minor: 0,
  xattrs: new Map(),
  ...more,
});

async function* parts(...list: Buffer[]): AsyncGenerator<Buffer> {
  yield* list;
}

test('a file in thousands of pieces, over groups with a copy of the superblock, and room for more', async () => {
  const hash = createHash('sha256');
  const [data, hole] = [Buffer.alloc(64 * 1024, 'data'), Buffer.alloc(64 * 1024)];
  const pieces = 2200;
  const content = async function* (): AsyncGenerator<Buffer> {
    for (let i = 0; i < pieces; i++) {
      data.writeUInt32LE(i);
      // Not as they will lie: a part is read across the borders of pieces.
      const both = Buffer.concat([data, hole]);
      hash.update(both);
      yield both.subarray(0, 5000);
      yield both.subarray(5000);
    }
    hash.update('end');
    yield Buffer.from('end');
  };
  const size = pieces * 128 * 1024 + 3;
  const path = await make((tree) => tree.add(entry('a/large', { size }), content()), { minBytes: 900 * MIB });
  assert.is(statSync(path).size, 900 * MIB);
  assert.ok(statSync(path).blocks * 512 < 160 * MIB, 'room takes no space');
  const read = createHash('sha256').update(tool('debugfs', '-R', 'cat /a/large', path));
  assert.is(read.digest('hex'), hash.digest('hex'));
  // 4 pieces fit into an inode, 340 into a block: two levels above them.
  assert.match(debugfs(path, 'dump_extents /a/large'), /^ *0\/ *2 /m);
  const groups = tool('dumpe2fs', path).toString();
  assert.match(groups, /^Block count: +230400$/m);
  for (const group of [1, 3, 5, 7])
    assert.match(groups, new RegExp(`Backup superblock at ${group * 32768},`), `group ${group}`);
  // By the copy alone.
  tool('e2fsck', '-fn', '-b', '32768', '-B', '4096', path);
});

test('directories of many names, and all that an inode can say', async () => {
  const long = 'n'.repeat(250);
  const path = await make(async (tree) => {
    for (let i = 0; i < 1500; i++) await tree.add(entry(`many/${long}${i}`), parts());
    for (let i = 0; i < 40; i++) await tree.add(entry(`many/below-${i}`, { kind: 'directory', mode: 0o700 }), parts());
    const late = { uid: 100_000, gid: 70_000, mode: 0o4755, mtime: 2 ** 32 + 5, size: 3 };
    await tree.add(entry('late', late), parts(Buffer.from('abc')));
    await tree.add(entry('link', { kind: 'link', target: 'late' }), parts());
    await tree.add(entry('null', { kind: 'character', major: 1, minor: 3 }), parts());
    await tree.add(entry('large', { kind: 'block', major: 300, minor: 70_000 }), parts());
    await tree.add(entry('short', { kind: 'symlink', target: 's'.repeat(59) }), parts());
    await tree.add(entry('longer', { kind: 'symlink', target: 'l'.repeat(60) }), parts());
    const xattrs = new Map([
      ['user.b', Buffer.from('one')],
      ['security.capability', Buffer.alloc(20, 7)],
      ['user.a', Buffer.alloc(3000, 'v')],
      ['security.selinux', Buffer.from('left out')],
    ]);
    await tree.add(entry('noted', { xattrs }), parts());
  });
  assert.is(debugfs(path, 'ls -p /many').match(/n{250}\d+/g)?.length, 1500);
  assert.match(debugfs(path, 'stat /many'), /Links: 42 /);
  const late = debugfs(path, 'stat /late');
  assert.match(late, /Mode: +04755/);
  assert.match(late, /User: 100000 +Group: 70000 .*Size: 3$/m);
  assert.match(late, /Links: 2 /);
  assert.match(late, /mtime: 0x00000005:00000001/);
  assert.match(debugfs(path, 'stat /null'), /major\/minor number: 01:03/);
  assert.match(debugfs(path, 'stat /large'), /New-style\) Device major\/minor number: 300:70000/);
  assert.match(debugfs(path, 'stat /short'), /Fast link dest: "s{59}"/);
  assert.is(debugfs(path, 'cat /longer'), 'l'.repeat(60));
  const noted = debugfs(path, 'ea_list /noted');
  assert.match(noted, /security\.capability \(20\)/);
  assert.match(noted, /user\.a \(3000\)/);
  assert.match(noted, /user\.b \(3\) = "one"/);
  assert.not(noted.includes('selinux'));
  assert.match(debugfs(path, 'stat /lost+found'), /Type: directory/);
});

test('a directory of more names than a call has arguments', async () => {
  const names = 150_000;
  const path = await make(async (tree) => {
    for (let i = 0; i < names; i++) await tree.add(entry(`many/${i}`), parts());
  });
  assert.is(debugfs(path, 'ls -p /many').match(/^\/\d+\/100644\//gm)?.length, names);
});

test('what a layer removes is not on the disk, and its place is used again', async () => {
  const secret = Buffer.alloc(3 * MIB, 'secret of a lower layer ');
  const other = Buffer.alloc(2 * MIB, 'another ');
  const path = await make(async (tree) => {
    await tree.add(entry('secret', { size: secret.length }), parts(secret));
    tree.beginLayer(1);
    await tree.add(entry('.wh.secret'), parts());
    await tree.add(entry('other', { size: other.length }), parts(other));
  });
  const bytes = readFileSync(path);
  assert.not(bytes.includes('secret of a lower layer'));
  assert.ok(bytes.length < 4 * MIB, `${bytes.length} bytes`);
  assert.ok(tool('debugfs', '-R', 'cat /other', path).equals(other));
});

test('what no file system can hold is refused', async () => {
  const refusal = async (more: Partial<TarEntry>): Promise<string> =>
    make((tree) => tree.add(entry('x', more), parts())).then(
      () => 'made',
      (error: Error) => error.message,
    );
  assert.match(await refusal({ xattrs: new Map([['user.a', Buffer.alloc(5000)]]) }), /attributes .* too large/);
  assert.match(await refusal({ name: 'a\0b' }), /has a zero in it/);
  assert.match(await refusal({ kind: 'symlink', target: 'a\0b' }), /has a zero in it/);
  assert.is(await refusal({ name: 'a\nb' }), 'made');
  const linked = (links: number): Promise<string> =>
    make(async (tree) => {
      await tree.add(entry('a'), parts());
      for (let i = 0; i < links; i++) await tree.add(entry(`links/${i}`, { kind: 'link', target: 'a' }), parts());
    }).catch((error: Error) => error.message);
  assert.match(debugfs(await linked(64_999), 'stat /a'), /Links: 65000 /);
  assert.is(await linked(65_000), "'/a' has more than 65000 names");
});

test.run();
