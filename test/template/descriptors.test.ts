/** A template that may open no more descriptors. A real QEMU under the hot-fork shim, limited from outside. */
import { spawnSync } from 'node:child_process';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Engine } from '../../src/main/engine.js';
import { BASE_TAG, sharedData } from '../support/world.js';

process.env['XDG_DATA_HOME'] = sharedData();

const descriptors = suite<{ engine: Engine }>('descriptors');

descriptors.before((context) => {
  // Without a jail: to limit another user's process takes CAP_SYS_RESOURCE, which not every root has.
  context.engine = new Engine({ jail: false });
});
descriptors.after(({ engine }) => engine.close());

descriptors('a template that is out of descriptors refuses, and everyone is served cold', async ({ engine }) => {
  const template = await engine.warm(BASE_TAG);
  // Fewer than it has open already: not one more can come.
  for (const { vm } of template.lanes) {
    assert.is(spawnSync('prlimit', [`--pid=${vm.vmm.pid}`, '--nofile=8:8']).status, 0);
  }
  let fallback = '';
  const onFallback = (reason: string) => {
    fallback = reason;
  };
  const { sandboxes, failures } = await engine.fork({ tag: BASE_TAG, n: 2 }, { onFallback });
  assert.equal(failures, []);
  assert.match(fallback, /2 children are restored cold: the template cannot be forked: .*descriptors/);
  for (const { id } of sandboxes) assert.is((await engine.eval(id, '6 * 7')).result, '42');
});

descriptors.run();
