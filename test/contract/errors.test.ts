import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { catalogue, ForkdError } from '../../src/contract/errors.js';

const errors = suite('errors');
const page = readFileSync(join(import.meta.dirname, '../../../docs/reference/errors.md'), 'utf8');
const rows = [...page.matchAll(/^\| `(\w+)` \| (\d+) \| (\d+) \| (.*?) \| (.*?) \|$/gm)];

errors('the page lists the catalogue, row for row', () => {
  const documented = rows.map(([, code, http, exit, message, hint]) => [
    code,
    Number(http),
    Number(exit),
    message,
    hint,
  ]);
  const actual = Object.entries(catalogue).map(([code, row]) => [
    code,
    row.http,
    row.exit,
    cell(row.message),
    cell(row.hint),
  ]);
  assert.equal(documented, actual);
});

errors('an error survives a structured clone as data', () => {
  const error = new ForkdError('DISK_FULL', { path: '/x', needed: '2 GiB', free: '1 MiB' }, new Error('ENOSPC'));
  const back = ForkdError.fromData(structuredClone(error.toData()));
  assert.is(back.code, 'DISK_FULL');
  assert.is(back.message, 'no space left in /x: 2 GiB needed, 1 MiB free');
  assert.is(back.cause, 'ENOSPC');
});

errors('errno codes get the row that tells the user what to do', () => {
  const errno = (code: string) => Object.assign(new Error(code), { code });
  assert.is(ForkdError.from(errno('ENOSPC')).code, 'DISK_FULL');
  assert.is(ForkdError.from(errno('EACCES')).code, 'PERMISSION_DENIED');
  assert.is(ForkdError.from(errno('EIO')).code, 'INTERNAL');
});

const cell = (text: string): string => text.replaceAll('|', '\\|');

errors.run();
