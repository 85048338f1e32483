/** The jail of real VMs, looked at from outside: of a template, of its children, of branches and their branches. */
import { execFileSync } from 'node:child_process';
import { copyFileSync, readdirSync, readFileSync, readlinkSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { limits } from '../../src/contract/limits.js';
import { ForkdError } from '../../src/contract/errors.js';
import { Engine } from '../../src/main/engine.js';
import { runInDisk } from '../../src/main/oci/disk-vm.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, sharedData } from '../support/world.js';

process.env['XDG_DATA_HOME'] = sharedData();

const jail = suite<{ engine: Engine }>('jail');

jail.before((context) => {
  context.engine = new Engine({ resident: true });
});
jail.after(({ engine }) => engine.close());

const field = (text: string, name: string): string[] =>
  (new RegExp(`^${name}:[^\\S\\n]*(.*)$`, 'm').exec(text)?.[1] ?? 'missing').split(/\s+/).filter((word) => word !== '');

const NAMESPACES = ['mnt', 'pid', 'net', 'ipc', 'uts'];
const namespacesOf = (pid: number | 'self') => NAMESPACES.map((name) => readlinkSync(`/proc/${pid}/ns/${name}`));

/** Throws when process `pid` has more than a VMM in jail may have. Returns its user. */
const requireJailed = (pid: number, builds = false): number => {
  const uids = new Set<number>();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const status = readFileSync(`/proc/${pid}/task/${thread}/status`, 'utf8');
    const [uid, ...others] = field(status, 'Uid').map(Number) as [number, ...number[]];
    assert.equal(others, [uid, uid, uid]);
    assert.equal(field(status, 'Gid').map(Number), [uid, uid, uid, uid]);
    assert.equal(field(status, 'Groups'), []);
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
      assert.match(field(status, set)[0] ?? '', /^0+$/, set);
    assert.equal([field(status, 'NoNewPrivs'), field(status, 'Seccomp')], [['1'], ['2']]);
    uids.add(uid);
  }
  assert.is(uids.size, 1);
  assert.equal(readdirSync(`/proc/${pid}/root`).sort(), builds ? ['etc', 'proc'] : ['proc']);
  const outside = namespacesOf('self');
  for (const [i, inside] of namespacesOf(pid).entries()) {
    const isHosts = builds && NAMESPACES[i] === 'net';
    assert.is(inside === outside[i], isHosts, NAMESPACES[i]);
  }
  assert.match(readFileSync(`/proc/${pid}/limits`, 'utf8'), /Max core file size +0 +0/);
  if (builds) return [...uids][0] as number;
  const cards = readFileSync(`/proc/${pid}/net/dev`, 'utf8').trim().split('\n').slice(2);
  assert.equal(
    cards.map((line) => line.trim().split(':')[0]),
    ['lo'],
  );
  return [...uids][0] as number;
};

jail(
  'a template and its children: another user, no capability, an empty root, namespaces of their own',
  async ({ engine }) => {
    const template = await engine.warm(BASE_TAG);
    const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
    const pids = [...template.lanes.map(({ vm }) => vm.vmm.pid), ...sandboxes.map(({ vmm }) => vmm.pid)];
    const uids = new Set(pids.map((pid) => requireJailed(pid)));
    assert.is(uids.size, 1);
    const [uid] = [...uids] as [number];
    assert.ok(uid >= limits.jailUidFirst && uid < limits.jailUidFirst + limits.jailUids);
    await engine.kill(sandboxes);
  },
);

jail(
  'a child holds no directory, and of files only its disk, its console and the memory, which it cannot write',
  async ({ engine }) => {
    const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
    const [{ vmm, birth }] = sandboxes as [Sandbox];
    const links = readdirSync(`/proc/${vmm.pid}/fd`).map((fd) => ({
      path: readlinkSync(`/proc/${vmm.pid}/fd/${fd}`),
      isDevice: statSync(`/proc/${vmm.pid}/fd/${fd}`).isCharacterDevice(),
      flags: Number.parseInt(field(readFileSync(`/proc/${vmm.pid}/fdinfo/${fd}`, 'utf8'), 'flags')[0] ?? '', 8),
    }));
    // Of what was opened where nothing is mounted any more, the path is cut short.
    const files = links.filter(({ path, isDevice }) => path.startsWith('/') && !(isDevice && path.endsWith('/null')));
    for (const { path, flags } of files) {
      if (path === birth.consolePath) continue;
      assert.match(path, /\.(img|ext4)$|^\/memfd:forkd:/, path);
      // The memory is sealed against writing, whatever it was opened for.
      if (!path.startsWith('/memfd:')) assert.is(flags & 3, 0, `${path} can be written`);
    }
    await engine.kill(sandboxes);
  },
);

const ASKS = `
import socket
card = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
card.settimeout(2)
card.sendto(b'x', ('192.0.2.1', 9))
try: socket.create_connection(('192.0.2.1', 9), 0.2)
except OSError: pass
try: socket.getaddrinfo('packages.invalid', 80)
except socket.gaierror: pass
open('/written', 'wb').write(bytes(range(256)) * 40960)
`;

jail(
  'a VM that makes a disk: the same, but for the network of this host and its resolver; it writes its disk',
  async ({ engine }) => {
    const world = makeWorld();
    try {
      const disk = join(world.root, 'builder.ext4');
      copyFileSync((await engine.image()).rootfs, disk);
      truncateSync(disk, statSync(disk).size + 64 * 2 ** 20);
      execFileSync('resize2fs', [disk], { stdio: 'ignore' });
      const builder = () => qemusOf(disk);
      const script = `sleep 1; python3 -c "$1" && stat -c %s /written; sync`;
      const run = runInDisk(disk, ['sh', '-c', script, 'sh', ASKS], await engine.diskContext());
      const jailed = (pid: number) => /^Seccomp:\s*2$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
      assert.ok(await eventually(() => builder().some(jailed), 20_000));
      const uid = requireJailed(builder()[0] as number, true);
      assert.ok(uid >= limits.jailUidFirst && uid < limits.jailUidFirst + limits.jailUids);
      const { stdout, stderr } = await run;
      assert.is(stdout, '10485760\n', stderr);
    } finally {
      world.close();
    }
  },
);

jail('a branch of a branch is in the same jail and works', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  let source = sandboxes[0] as Sandbox;
  const uid = requireJailed(source.vmm.pid);
  const held = [];
  for (let depth = 1; depth <= 2; depth++) {
    await engine.eval(source.id, `import builtins; builtins.depth = ${depth}`);
    const { template } = await engine.branch(source.id);
    held.push(template);
    // It lives on without its source, whose groups end everything that is left in them.
    await engine.kill([source]);
    source = (await engine.forkFrom(template, { n: 1 })).sandboxes[0] as Sandbox;
    assert.is(requireJailed(source.vmm.pid), uid);
    const answer = await engine.eval(source.id, 'import builtins; builtins.depth');
    assert.is(answer.result, String(depth), JSON.stringify(answer));
  }
  for (const template of held) await engine.retire(template);
});

jail('cold restores are jailed as well, each as a user of its own; those of a daemon too', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2, cold: true });
  const uids = sandboxes.map(({ vmm }) => requireJailed(vmm.pid));
  assert.is(new Set(uids).size, 2);
  for (const { id } of sandboxes) assert.is((await engine.eval(id, '6 * 7')).result, '42');
  await engine.kill(sandboxes);
  const tied = new Engine({ tied: true });
  try {
    const made = await tied.fork({ tag: BASE_TAG, n: 1, cold: true });
    requireJailed((made.sandboxes[0] as Sandbox).vmm.pid);
    await tied.kill(made.sandboxes);
  } finally {
    await tied.close();
  }
});

jail('a parent is in jail before its guest runs', async () => {
  const world = makeWorld();
  const own = new Engine({ snapshotRoot: world.snapshots });
  const abort = new AbortController();
  try {
    const outcome = own.snapshot({ tag: 'jailed-boot', require: 'tcg' }, { signal: abort.signal }).then(
      () => 'saved',
      (error: unknown) => ForkdError.from(error).code,
    );
    const booting = () => qemusOf('forkd-parent-jailed-boot');
    const isInside = (pid: number) => /^Seccomp:\t2$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
    assert.ok(await eventually(() => booting().some(isInside), 20_000));
    requireJailed(booting()[0] as number);
    abort.abort();
    assert.is(await outcome, 'CANCELLED');
  } finally {
    await own.close();
    world.close();
  }
});

jail('a guest that powers itself off ends its VM by the ordinary way out', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const [sandbox] = sandboxes as [Sandbox];
  await engine.exec(sandbox.id, ['sh', '-c', 'echo o > /proc/sysrq-trigger; sleep 10'], 10).catch(() => undefined);
  // A pidfd watch does not keep the process alive; this does.
  const hold = setInterval(() => undefined, 60_000);
  const { code, signal } = await sandbox.ended;
  clearInterval(hold);
  assert.equal({ code, signal }, { code: 0, signal: null });
});

jail.run();
