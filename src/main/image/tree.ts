/** What package scripts would have written into a root file system: accounts, links, caches. */
import { existsSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { command } from './command.js';
import { BUSYBOX_COMMANDS } from './packages.js';

const PASSWD = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`;
const GROUP = `root:x:0:
daemon:x:1:
tty:x:5:
disk:x:6:
kmem:x:15:
shadow:x:42:
users:x:100:
nogroup:x:65534:
`;

const FILES: Record<string, string> = {
  'etc/passwd': PASSWD,
  'etc/group': GROUP,
  'etc/shadow': 'root:*:19000:0:99999:7:::\n',
  'etc/hosts': '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n',
  'etc/hostname': 'forkd\n',
  'etc/resolv.conf': 'nameserver 1.1.1.1\nnameserver 8.8.8.8\n',
  'etc/machine-id': 'uninitialized\n',
  'etc/nsswitch.conf': 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n',
  'etc/fstab': '',
  'etc/ld.so.conf':
    '/usr/local/lib/x86_64-linux-gnu\n/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n/usr/local/lib\n',
};

const DIRECTORIES = [
  'dev',
  'proc',
  'sys',
  'run',
  'tmp',
  'root',
  'home',
  'mnt',
  'opt',
  'srv',
  'var/tmp',
  'var/log',
  'etc/forkd/fork.d',
];

/** Turns unpacked packages into a root file system. */
export const finishTree = async (tree: string, signal?: AbortSignal): Promise<void> => {
  for (const path of DIRECTORIES) await mkdir(join(tree, path), { recursive: true });
  await chmod(join(tree, 'tmp'), 0o1777);
  await chmod(join(tree, 'var/tmp'), 0o1777);
  await chmod(join(tree, 'root'), 0o700);
  for (const [path, text] of Object.entries(FILES)) await writeFile(join(tree, path), text);
  await linkCommands(tree);
  await linkAlternatives(tree);
  await writeCertificates(tree);
  // Without the cache every library is still found through the default directories, only slower.
  await command('ldconfig', ['-X', '-r', tree], { signal });
};

const link = async (tree: string, path: string, target: string): Promise<void> => {
  if (existsSync(join(tree, path))) return;
  await mkdir(dirname(join(tree, path)), { recursive: true });
  await symlink(target, join(tree, path)).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
};

const linkCommands = async (tree: string): Promise<void> => {
  await link(tree, 'usr/bin/sh', 'dash');
  await link(tree, 'usr/bin/awk', 'mawk');
  for (const name of BUSYBOX_COMMANDS) await link(tree, `usr/bin/${name}`, 'busybox');
};

/** Debian's update-alternatives chooses BLAS and LAPACK at installation: the plain builds are in subdirectories. */
const linkAlternatives = async (tree: string): Promise<void> => {
  const libraries = 'usr/lib/x86_64-linux-gnu';
  for (const name of ['blas', 'lapack']) {
    for (const directory of [`openblas-pthread`, name]) {
      const file = `lib${name}.so.3`;
      if (existsSync(join(tree, libraries, directory, file)))
        await link(tree, `${libraries}/${file}`, `${directory}/${file}`);
    }
  }
};

/** The bundle that update-ca-certificates would write, at the path where OpenSSL looks for one. */
const writeCertificates = async (tree: string): Promise<void> => {
  const source = join(tree, 'usr/share/ca-certificates/mozilla');
  if (!existsSync(source)) return;
  const names = (await readdir(source)).filter((name) => name.endsWith('.crt')).sort();
  const certificates = await Promise.all(names.map((name) => readFile(join(source, name), 'utf8')));
  await mkdir(join(tree, 'etc/ssl/certs'), { recursive: true });
  await writeFile(join(tree, 'etc/ssl/certs/ca-certificates.crt'), certificates.join(''));
  await link(tree, 'usr/lib/ssl/certs', '/etc/ssl/certs');
  await link(tree, 'usr/lib/ssl/cert.pem', '/etc/ssl/certs/ca-certificates.crt');
};
