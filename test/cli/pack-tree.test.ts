/** A directory as a tar archive: what GNU tar makes of it is what was there. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { packTree } from '../../src/cli/pack-tree.js';

const pack = suite('pack tree');

pack('names that are no UTF-8, long ones, and what goes away meanwhile: the rest comes all the same', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'pack-tree-'));
  try {
    const deep = Array(6).fill('deep'.repeat(10)).join('/');
    mkdirSync(join(dir, 'tree', deep), { recursive: true });
    for (const name of [Buffer.from([0xff, 0x61]), Buffer.from([0xfe, 0x61])])
      writeFileSync(Buffer.concat([Buffer.from(`${dir}/tree/`), name]), name);
    for (let i = 0; i < 2000; i++) writeFileSync(join(dir, 'tree', `f${i}`), 'x'.repeat(i));
    writeFileSync(join(dir, 'tree', deep, 'file'), 'end', { mode: 0o640 });
    symlinkSync('t'.repeat(140), join(dir, 'tree/link'));
    const parts: Buffer[] = [];
    for await (const part of packTree(join(dir, 'tree'))) {
      // Listed, and not read yet.
      if (parts.length === 0) for (let i = 0; i < 2000; i += 2) rmSync(join(dir, 'tree', `f${i}`));
      parts.push(part);
    }
    mkdirSync(join(dir, 'back'));
    execFileSync('tar', ['-x', '-C', join(dir, 'back')], { input: Buffer.concat(parts) });
    const names = readdirSync(join(dir, 'back'), { encoding: 'latin1' });
    for (const name of ['\xffa', '\xfea', 'link', ...Array.from({ length: 1000 }, (_, i) => `f${2 * i + 1}`)])
      assert.ok(names.includes(name), name);
    assert.is(readFileSync(join(dir, 'back', deep, 'file'), 'utf8'), 'end');
    assert.is(readFileSync(join(dir, 'back/f1999')).length, 1999);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

pack.run();
