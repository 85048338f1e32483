import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import type { SnapshotManifest } from '../../src/contract/snapshot.js';
import { misfit } from '../../src/main/store/fit.js';
import { Store } from '../../src/main/store/store.js';
import { code, putBase } from '../support/layers.js';
import { manifest } from '../support/manifest.js';

const store = suite<{ root: string; store: Store }>('store');

store.before.each((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'store-'));
  context.store = new Store(join(context.root, 'snapshots'));
});
store.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));

/** A tag with a small image. */
const put = (target: Store, tag: string, change: Partial<SnapshotManifest> = {}, replace = false): string =>
  putBase(target, tag, { 0: 1, 20: 2 }, change, replace);

store('what is published can be opened, and nothing else is left', ({ store: s }) => {
  const dir = put(s, 'base');
  assert.is(s.open('base').memory, join(dir, 'memory.layer'));
  assert.equal(
    readdirSync(s.root).filter((name) => !name.startsWith('.locks')),
    ['base'],
  );
});

store('a store can be moved', ({ root, store: s }) => {
  put(s, 'base');
  spawnSync('mv', [s.root, join(root, 'moved')]);
  assert.is(new Store(join(root, 'moved')).open('base').memory, join(root, 'moved/base/memory.layer'));
});

store('an existing tag is replaced only when asked, in one step', ({ store: s }) => {
  put(s, 'base');
  assert.is(
    code(() => put(s, 'base', { vcpus: 2 })),
    'SNAPSHOT_EXISTS',
  );
  assert.is(s.open('base').vcpus, 1);
  put(s, 'base', { vcpus: 2 }, true);
  assert.is(s.open('base').vcpus, 2);
});

store('missing, truncated and unreadable parts are named', ({ store: s }) => {
  const dir = put(s, 'base');
  const problem = () => {
    try {
      s.open('base');
      return '';
    } catch (error) {
      assert.ok(error instanceof ForkdError && error.code === 'SNAPSHOT_CORRUPT', String(error));
      return error.message;
    }
  };
  truncateSync(join(dir, 'vmstate'), 3);
  assert.match(problem(), /vmstate has 3 bytes instead of 12/);
  writeFileSync(join(dir, 'vmstate'), 'device state');
  truncateSync(join(dir, 'memory.layer'), 5000);
  assert.match(problem(), /memory\.layer: .*truncated/);
  truncateSync(join(dir, 'memory.layer'), 0);
  assert.match(problem(), /memory\.layer: /);
  unlinkSync(join(dir, 'memory.layer'));
  assert.match(problem(), /memory\.layer is missing/);
  spawnSync('mkfifo', [join(dir, 'memory.layer')]);
  assert.match(problem(), /memory\.layer: it is not a file/);
  writeFileSync(join(dir, 'snapshot.json'), '{"vmstate": ');
  assert.match(problem(), /snapshot\.json/);
  writeFileSync(join(dir, 'snapshot.json'), Buffer.alloc(2 * 2 ** 20, 0x20));
  assert.match(problem(), /too large/);
});

store('every wrong key of snapshot.json is caught by name', ({ store: s }) => {
  const dir = put(s, 'base');
  const good = s.open('base') as unknown as Record<string, unknown>;
  const optional = new Set(['parent_tag', 'parent_content_hash', 'branched_from', 'tap']);
  for (const key of Object.keys(good)) {
    for (const wrong of [null, [], {}, -1, '', undefined]) {
      if (key.startsWith('volume') && Array.isArray(wrong)) continue;
      if (wrong === undefined && optional.has(key)) continue;
      writeFileSync(join(dir, 'snapshot.json'), JSON.stringify({ ...good, [key]: wrong }));
      const got = code(() => s.open('base'));
      assert.ok(
        got === 'SNAPSHOT_CORRUPT' || (key === 'format' && got === 'SNAPSHOT_INCOMPATIBLE'),
        `${key}=${JSON.stringify(wrong)}: ${got}`,
      );
    }
  }
});

store(
  'the bus of the agent’s port has as many ports as its snapshot says; one that does not say has what QEMU gives',
  ({ store: s }) => {
    const dir = put(s, 'base');
    const good = s.open('base');
    const withPorts = (serial_ports: unknown) => {
      writeFileSync(join(dir, 'snapshot.json'), JSON.stringify({ ...good, vmm: { ...good.vmm, serial_ports } }));
      return code(() => s.open('base'));
    };
    for (const wrong of [1, 32, 2.5, '2', '2,id=x', null])
      assert.is(withPorts(wrong), 'SNAPSHOT_CORRUPT', String(wrong));
    for (const right of [2, 31, undefined]) assert.is(withPorts(right), 'no error', String(right));
  },
);

store('a snapshot of the reference is refused as made by another engine', ({ store: s }) => {
  mkdirSync(s.dir('theirs'), { recursive: true });
  writeFileSync(join(s.dir('theirs'), 'snapshot.json'), JSON.stringify({ vmstate: '/x', memory: '/y', volumes: [] }));
  assert.is(
    code(() => s.open('theirs')),
    'SNAPSHOT_INCOMPATIBLE',
  );
});

store('a snapshot of format 1 says how to get a new one', ({ store: s }) => {
  const dir = put(s, 'old');
  const path = join(dir, 'snapshot.json');
  writeFileSync(
    path,
    JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), format: 1, memory: `${dir}/memory.bin` }),
  );
  assert.is(
    code(() => s.open('old')),
    'SNAPSHOT_INCOMPATIBLE',
  );
  assert.match(s.list()[0]?.problem ?? '', /older version of forkd; make it again with --force/);
  put(s, 'old', {}, true);
  assert.is(s.list()[0]?.problem, undefined);
});

store('unknown and unsafe tags', ({ store: s }) => {
  assert.is(
    code(() => s.open('nope')),
    'SNAPSHOT_NOT_FOUND',
  );
  assert.is(
    code(() => s.remove('nope')),
    'SNAPSHOT_NOT_FOUND',
  );
  assert.is(
    code(() => s.remove('../../etc')),
    'TAG_INVALID',
  );
  assert.equal(s.abandoned(), []);
});

store('one writer a tag; the lock ends with its holder', ({ store: s }) => {
  const lock = s.lock('base');
  assert.is(
    code(() => s.lock('base')),
    'SNAPSHOT_BUSY',
  );
  assert.is(
    code(() => s.remove('base')),
    'SNAPSHOT_BUSY',
  );
  lock.release();
  s.lock('base').release();
});

store('staging is abandoned once its writer is gone', ({ store: s }) => {
  const lock = s.lock('base');
  const staging = s.stage('base');
  assert.equal(s.abandoned(), []);
  lock.release();
  assert.equal(s.abandoned(), [staging.path]);
  assert.not.ok(s.exists('base'));
});

store('removal takes everything', ({ store: s }) => {
  const dir = put(s, 'base');
  s.remove('base');
  assert.not.ok(existsSync(dir));
  assert.equal(s.list(), []);
  assert.equal(s.abandoned(), []);
});

store('the list is newest first and shows damage', ({ store: s }) => {
  put(s, 'old', { created_at_unix: 1 });
  put(s, 'new', { created_at_unix: 3 });
  const dir = put(s, 'bad', { created_at_unix: 2 });
  unlinkSync(join(dir, 'vmstate'));
  const list = s.list();
  assert.is(list.length, 3);
  assert.match(list.find((one) => one.tag === 'bad')?.problem ?? '', /vmstate is missing/);
  assert.ok(list.findIndex((one) => one.tag === 'new') < list.findIndex((one) => one.tag === 'old'));
});

store('no space is said before the work is done', ({ store: s }) => {
  assert.is(
    code(() => s.requireSpace(2 ** 52)),
    'DISK_FULL',
  );
  s.requireSpace(4096);
  assert.ok(statSync(s.root).isDirectory());
});

store('a snapshot that does not fit this host is refused with the reason', () => {
  const host = { vmmVersion: '7.2.22', machine: 'microvm', tscKhz: 2_600_000, kvmProblem: 'there is no /dev/kvm' };
  assert.is(misfit(manifest(), host), undefined);
  assert.is(misfit(manifest(), { ...host, vmmVersion: '7.2.1' }), undefined);
  assert.match(misfit(manifest(), { ...host, vmmVersion: '10.0.1' }) ?? '', /QEMU 7\.2\.22/);
  assert.match(misfit(manifest(), { ...host, tscKhz: 3_000_000 }) ?? '', /3000000 kHz here/);
  assert.match(misfit(manifest({ isolation: 'kvm' }), host) ?? '', /no \/dev\/kvm/);
});

store.run();
