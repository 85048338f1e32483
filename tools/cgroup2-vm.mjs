#!/usr/bin/env node
/**
 * Boots a VM that has cgroup v2 with all controllers, puts this build of forkd and a snapshot into it, runs tools/cgroup2-inside.mjs there, and prints how many
 * of its checks passed.
 *
 *     tools/cgroup2-vm.mjs [--tag base] [--no-vms]
 *
 * For hosts that have v1. Needs root, a snapshot (`forkd snapshot --tag base`), QEMU and mkfs.ext4. The disk is made of files of this host: node, QEMU, a few
 * tools, and the libraries that ldd names. `--no-vms` leaves out the commands, which start VMs inside the VM.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const { values } = parseArgs({ options: { tag: { type: 'string', default: 'base' }, 'no-vms': { type: 'boolean' } } });
const ROOT = realpathSync(join(import.meta.dirname, '..'));
const DATA = join(process.env.XDG_DATA_HOME ?? join(process.env.HOME ?? '/root', '.local/share'), 'forkd');
const SECS = 1200;

const TOOLS = ['sh', 'dd', 'sleep', 'cat', 'mount', 'umount', 'env', 'setpriv', 'unshare', 'nsenter', 'e2fsck'];
const SOURCES = ['package.json', 'dist', 'node_modules', 'tools', 'src/guest', 'recipes'];

const INIT = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r group name; do
	case $group in core | ext4 | rng) insmod /modules/$name.ko ;; esac
done 2>/dev/null </modules/list
until [ -b /dev/vda ]; do usleep 50000; done
mount -t ext4 -o rw,noatime /dev/vda /newroot
mount --move /dev /newroot/dev
mount --move /sys /newroot/sys
mount --move /proc /newroot/proc
mount -t tmpfs tmp /newroot/tmp
mkdir /newroot/dev/shm /newroot/dev/pts
mount -t devpts devpts /newroot/dev/pts
[ -e /newroot/dev/fd ] || ln -s /proc/self/fd /newroot/dev/fd
mount -t cgroup2 cgroup2 /newroot/sys/fs/cgroup
ifconfig lo 127.0.0.1 up
echo vm >/newroot/proc/sys/kernel/hostname
exec /bin/switch_root -c /dev/console /newroot /bin/sh /start
`;
// Everything is slow in there, so templates rehearse once. Other users count into the tally too. QEMU ends at a reboot, which does not wait for what was said.
const START = `export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/var/tmp XDG_DATA_HOME=/data FORKD_TALLY=/var/tmp/tally FORKD_WARM_ROUNDS=1
cd ${ROOT}
umask 0
: >$FORKD_TALLY
umask 022
node tools/cgroup2-inside.mjs ${values.tag} ${values['no-vms'] ? 'no-vms' : ''}
echo "EXIT $? $(cat $FORKD_TALLY)"
sleep 1
echo b >/proc/sysrq-trigger
`;

const fail = (problem, fix) => {
  console.error(`Error: ${problem}\n  hint: ${fix}`);
  process.exit(1);
};

/** What has to be there before anything is made. */
const readSnapshot = () => {
  const forkd = `node ${join(ROOT, 'dist/src/cli/main.js')}`;
  const again = `${forkd} snapshot --tag ${values.tag} --require tcg`;
  for (const path of ['dist/test/support/cli.js', 'build/Release/forkd_native.node'])
    if (!existsSync(join(ROOT, path))) fail(`there is no ${path} in ${ROOT}`, 'npm run build');
  if (process.getuid() !== 0) fail('only root can read what goes into the VM and keep its owners', 'run it as root');
  for (const tool of [...TOOLS, 'qemu-system-x86_64', 'mkfs.ext4', 'ldd'])
    if (which(tool) === undefined) fail(`'${tool}' is not installed`, `${forkd} doctor --fix, or apt-get install it`);
  const manifest = join(DATA, 'snapshots', values.tag, 'snapshot.json');
  if (!existsSync(manifest))
    fail(`there is no snapshot '${values.tag}' in ${DATA}`, `${again}; or name another: --tag NAME`);
  const snapshot = JSON.parse(readFileSync(manifest, 'utf8'));
  if (snapshot.isolation !== 'tcg')
    fail(
      `snapshot '${values.tag}' was made under ${snapshot.isolation}, which the VM does not have`,
      `${again} --force`,
    );
  if (snapshot.parent_tag)
    fail(`snapshot '${values.tag}' is a difference to another`, 'name one that is none: --tag NAME');
  for (const path of [snapshot.rootfs, snapshot.kernel.path, snapshot.initrd.path])
    if (!existsSync(path)) fail(`${path}, of snapshot '${values.tag}', is gone`, `${again} --force`);
  return snapshot;
};

const which = (name) => {
  const { status, stdout } = spawnSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' });
  return status === 0 ? stdout.trim() : undefined;
};

const snapshot = readSnapshot();
const { writeCpio } = await import('../dist/src/main/image/cpio.js');
const work = mkdtempSync(join(tmpdir(), 'forkd-cgroup2-'));
const tree = join(work, 'tree');
try {
  for (const dir of ['proc', 'sys', 'dev', 'tmp', 'etc', 'root', 'var/tmp', 'data/forkd/snapshots', 'run'])
    mkdirSync(join(tree, dir), { recursive: true });
  const qemu = which('qemu-system-x86_64');
  const programs = [process.execPath, qemu, ...TOOLS.map(which)];
  const modules = '/usr/lib/x86_64-linux-gnu/qemu';
  const all = [...programs, join(ROOT, 'build/Release/forkd_native.node')];
  const libraries = all.flatMap((file) =>
    [...execFileSync('ldd', [file], { encoding: 'utf8' }).matchAll(/(?:=> )?(\/\S+) \(0x/g)].map(([, path]) => path),
  );
  const copy = (path, to = path) =>
    cpSync(realpathSync(path), join(tree, to), { recursive: true, verbatimSymlinks: true });
  for (const path of new Set([...programs, ...libraries])) copy(path, path);
  for (const path of [modules, '/usr/share/qemu', '/usr/share/seabios'].filter(existsSync)) copy(path);
  if (!existsSync(join(tree, 'bin/sh'))) copy(which('sh'), 'bin/sh');
  for (const name of SOURCES) copy(join(ROOT, name));
  for (const name of [
    'forkd_native.node',
    'forkd_hotfork.so',
    'forkd_fence.so',
    'forkd_tether.so',
    'forkd_take.so',
    'forkd_keeper',
    'forkd_warden',
    'forkd_agent',
  ])
    copy(join(ROOT, 'build/Release', name));
  copy(join(DATA, 'snapshots', values.tag), `data/forkd/snapshots/${values.tag}`);
  if (existsSync(join(DATA, 'host.json'))) copy(join(DATA, 'host.json'), 'data/forkd/host.json');
  for (const path of [snapshot.rootfs, snapshot.kernel.path, snapshot.initrd.path]) copy(path);
  writeFileSync(join(tree, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n');
  writeFileSync(join(tree, 'start'), START);

  const disk = join(work, 'disk.ext4');
  execFileSync('mkfs.ext4', ['-q', '-F', '-d', tree, disk, '2G'], { stdio: ['ignore', 'ignore', 'inherit'] });
  rmSync(tree, { recursive: true });
  const initrd = join(work, 'initrd');
  const mine = writeCpio([{ path: 'start', kind: 'file', data: Buffer.from(INIT), mode: 0o755 }]);
  const theirs = readFileSync(snapshot.initrd.path);
  // Archives follow one another at multiples of four bytes.
  writeFileSync(initrd, Buffer.concat([theirs, Buffer.alloc((4 - (theirs.length % 4)) % 4), mine]));

  const append = `console=ttyS0 quiet rdinit=/start reboot=t panic=-1 random.trust_cpu=on tsc=reliable no_timer_check mitigations=off cgroup_no_v1=all tsc_early_khz=${snapshot.tsc_khz}`;
  const child = spawn(
    qemu,
    [
      '-nodefaults',
      '-no-user-config',
      '-no-reboot',
      '-display',
      'none',
      '-machine',
      snapshot.vmm.machine,
      '-accel',
      'tcg,thread=multi',
      '-cpu',
      snapshot.vmm.cpu_model,
      '-smp',
      '2',
      '-m',
      '2048',
      '-serial',
      'stdio',
      '-kernel',
      snapshot.kernel.path,
      '-initrd',
      initrd,
      '-append',
      append,
      '-drive',
      `if=none,id=root,format=raw,file=${disk}`,
      '-device',
      'virtio-blk-device,drive=root',
    ],
    { stdio: ['ignore', 'pipe', 'inherit'], timeout: SECS * 1000, killSignal: 'SIGKILL' },
  );
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill('SIGKILL'));
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    process.stdout.write(text);
    said += text;
  });
  await once(child, 'close');
  const [, status, tally] = /^EXIT (\d+) ([+-]*)\r?$/m.exec(said) ?? [];
  if (status !== '0')
    console.error(
      status === undefined
        ? `the VM ended, or was ended after ${SECS} s, before its checks`
        : 'not all checks were run',
    );
  const failed = (tally ?? '').split('-').length - 1;
  console.log(`${(tally ?? '').length - failed} passed, ${failed} failed`);
  process.exitCode = status === '0' && failed === 0 ? 0 : 1;
} finally {
  rmSync(work, { recursive: true, force: true });
}
