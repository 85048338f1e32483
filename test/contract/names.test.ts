import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { isSandboxId, parseTag, parseTarget, sandboxId } from '../../src/contract/names.js';

const names = suite('names');

const refused = (code: string, call: () => unknown) => {
  assert.throws(call, (error: unknown) => error instanceof ForkdError && error.code === code);
};

names('a tag is a safe file name', () => {
  for (const tag of ['a', '_x', 'v1.2', 'base-3_4', 'A'.repeat(64)]) assert.is(parseTag(tag), tag);
  for (const tag of [
    '',
    '.',
    '..',
    '.hidden',
    '-dash',
    'a/b',
    'a b',
    'ä',
    'A'.repeat(65),
    'a\n',
    '../etc/passwd',
    7,
    null,
  ]) {
    refused('TAG_INVALID', () => parseTag(tag));
  }
});

names('a target is an address, a path or a sandbox', () => {
  assert.equal(parseTarget('10.42.0.2:8888'), { kind: 'tcp', host: '10.42.0.2', port: 8888 });
  assert.equal(parseTarget('[::1]:1'), { kind: 'tcp', host: '::1', port: 1 });
  assert.equal(parseTarget('unix:/run/x.sock'), { kind: 'unix', path: '/run/x.sock' });
  const one = { kind: 'unix', path: '/run/#1/x.sock', sandbox: 'sb-6b0c8b96-9a7dca98' };
  assert.equal(parseTarget('unix:/run/#1/x.sock#sb-6b0c8b96-9a7dca98'), one);
  assert.is(parseTarget(sandboxId(1_700_000_000, 7)).kind, 'sandbox');
  for (const text of ['', 'host', 'host:', 'host:0', 'host:65536', 'unix:', ':80', '::1:80']) {
    refused('TARGET_INVALID', () => parseTarget(text));
  }
});

names('a sandbox id has the form that clients know', () => {
  assert.is(sandboxId(0x6543_2100, 10), 'sb-65432100-0000000a');
  assert.ok(isSandboxId('sb-65432100-000a'));
  assert.not.ok(isSandboxId('sb-../x-0000'));
});

names.run();
