/** The command `wp-bench`, and what it leaves behind. */
import { readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { forkd } from '../support/cli.js';
import { makeWorld, type World } from '../support/world.js';

const bench = suite<{ world: World }>('wp-bench');

bench.before((context) => {
  context.world = makeWorld();
});
bench.after(({ world }) => world.close());

bench('a copy of private memory that a thread writes to is checked, and left nowhere', async ({ world }) => {
  const args = ['wp-bench', '--region-mib', '32', '--private', '--writer', '--copiers', '1', '--json'];
  const { code, stdout, stderr } = await forkd(args, { env: world.env });
  assert.is(code, 0, stderr);
  const said = JSON.parse(stdout);
  const { total_pages, captured_by_fault, captured_by_bulk, wrong_bytes, mapping, snapshot } = said;
  assert.equal([total_pages, wrong_bytes, mapping, snapshot], [8192, 0, 'private', null]);
  assert.is(captured_by_fault + captured_by_bulk, total_pages);
  for (const key of ['arm_ms', 'bulk_ms', 'finalize_ms']) assert.ok(said[key] > 0, key);
  assert.equal(readdirSync(world.env.TMPDIR), []);
});

bench('--snapshot keeps the copy, and replaces none but a plain file', async ({ world }) => {
  const file = join(world.root, 'copy');
  const args = ['wp-bench', '--region-mib', '2', '--snapshot'];
  const { code, stdout, stderr } = await forkd([...args, file], { env: world.env });
  assert.is(code, 0, stderr);
  assert.match(stdout, /^verified: +every byte$/m);
  assert.ok(readFileSync(file).equals(Buffer.alloc(2 * 2 ** 20, 0x42)));
  const link = join(world.root, 'link');
  symlinkSync(file, link);
  const refused = await forkd([...args, link], { env: world.env });
  assert.is(refused.code, 2);
  assert.match(refused.stderr, /exists and is not a plain file/);
  assert.is((await forkd(['wp-bench', '--region-mib', '0'], { env: world.env })).code, 2);
});

bench.run();
