/** Volumes: each child writes to its own, branches and snapshots take it with them, and the file on the host stays as it was. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller } from '../../src/client/index.js';
import { forkd } from '../support/cli.js';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { makeWorld } from '../support/world.js';

const world = makeWorld();
const volumes = suite<{ daemon: TestDaemon; controller: Controller }>('volumes');

const file = (name: string): string => join(world.root, `${name}.ext4`);
const sums = (): string[] =>
  ['data', 'fixed'].map((name) =>
    createHash('sha256')
      .update(readFileSync(file(name)))
      .digest('hex'),
  );

volumes.before(async (context) => {
  for (const name of ['data', 'fixed']) {
    const tree = join(world.root, `tree-${name}`);
    mkdirSync(tree);
    writeFileSync(join(tree, 'file'), `of ${name}\n`);
    writeFileSync(file(name), '');
    truncateSync(file(name), 8 << 20);
    execFileSync('mkfs.ext4', ['-q', '-F', '-d', tree, file(name)]);
  }
  context.daemon = await startDaemon(world, ['--spares', '0']);
  context.controller = new Controller({ baseUrl: context.daemon.url });
});
volumes.after(async ({ daemon, controller }) => {
  await controller.close();
  await daemon.stop();
  world.close();
});

volumes(
  'shared and read only, or writable by each child; forked, branched and saved with it',
  async ({ controller }) => {
    const before = sums();
    const refused = await controller
      .createSnapshot({ tag: 'no', volumes: [{ hostPath: '/nowhere', guestPath: '/data' }] })
      .catch((error: { code: string }) => error.code);
    assert.is(refused, 'VOLUME_INVALID');
    await controller.createSnapshot({
      tag: 'vol',
      volumes: [
        { hostPath: file('data'), guestPath: '/data' },
        { hostPath: file('fixed'), guestPath: '/fixed', readOnly: true },
      ],
    });
    const shell = async (id: string, script: string): Promise<string> => {
      const { stdout, stderr, exit_code } = await controller.execCommand(id, ['sh', '-ec', script]);
      assert.is(exit_code, 0, stderr);
      return stdout;
    };
    const [a, b] = (await controller.spawnSandboxes({ snapshotTag: 'vol', n: 2 })).map(({ id }) => id) as [
      string,
      string,
    ];
    assert.is(await shell(a, 'cat /data/file /fixed/file; ! touch /fixed/no 2>/dev/null'), 'of data\nof fixed\n');
    // Both write the same names.
    await shell(a, 'echo of a > /data/file; echo a > /data/own');
    await shell(b, 'rm /data/file; echo b > /data/own');
    assert.is(await shell(a, 'cat /data/file /data/own'), 'of a\na\n');
    assert.is(await shell(b, 'cat /data/own; ls /data'), 'b\nlost+found\nown\n');
    // A branch has what its source had in that instant; neither hears of the other's from then on.
    await controller.branchSandbox(a, { tag: 'kept', mode: 'diff' });
    await shell(a, 'echo later > /data/own');
    const [c] = (await controller.spawnSandboxes({ snapshotTag: 'kept' })).map(({ id }) => id) as [string];
    assert.is(await shell(c, 'cat /data/file /data/own; echo c > /data/own'), 'of a\na\n');
    assert.is(await shell(a, 'cat /data/own'), 'later\n');
    // From disk alone, by a QEMU of its own.
    const cold = await forkd(['fork', '--tag', 'kept', '-n', '1', '--cold', '--', 'cat', '/data/own', '/fixed/file'], {
      env: world.env,
    });
    assert.match(cold.stdout, /\[1\] a\n(\[1\] )?of fixed/);
    const { files = [] } = await controller.diffBranches(b, 'kept', ['files']);
    assert.equal(
      files.map(({ change, path }) => `${change} ${path}`),
      ['added /data/file', 'changed /data/own'],
    );
    // Half of its memory is for all that a guest writes, however large the volume is.
    const full = await shell(
      b,
      'dd if=/dev/zero of=/data/new bs=1M count=400 2>&1 || true; cat /data/own; rm /data/new',
    );
    assert.match(full, /No space left on device(.|\n)*\nb\n$/);
    assert.equal(sums(), before);
  },
);

volumes('one that the guest cannot mount is refused, and what is more than a child may write is told', async () => {
  writeFileSync(file('none'), Buffer.alloc(300 << 20));
  const { code, stderr } = await forkd(['snapshot', '--tag', 'no', '--volume', `${file('none')}:/none`], {
    env: world.env,
  });
  assert.is(code, 1);
  assert.match(stderr, /\/none is larger than what a child may write, .*256\.0 MiB/);
  assert.match(stderr, /invalid volume '.*none\.ext4:\/none': the guest cannot mount it/);
  assert.not.match((await forkd(['images'], { env: world.env })).stdout, /^no /m);
});

volumes.run();
