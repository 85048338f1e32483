// Runs before `npm ci` compiles the addon: a bare machine has Node, but no compiler, no zstd to link and no BLAKE3.
// Plain JavaScript on purpose: nothing is built or installed yet.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const vendor = join(import.meta.dirname, '../vendor');
const blake3 = join(vendor, 'blake3');
/** Debian has no package of BLAKE3 for C; the one for Rust has the C and assembly sources inside. */
const blake3Package = 'librust-blake3-dev';

const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
const has = (tool) => spawnSync('which', [tool]).status === 0;
const isRoot = process.getuid?.() === 0;

const run = (file, args, options = {}) => execFileSync(file, args, { stdio: ['ignore', 2, 2], env, ...options });

const giveUp = (text) => {
  console.error(`forkd: ${text}`);
  process.exit(1);
};

const installPackages = () => {
  const tools = ['g++', 'make', 'python3'];
  const missing = tools.filter((tool) => !has(tool));
  if (!existsSync('/usr/include/zstd.h')) missing.push('libzstd-dev');
  if (missing.length === 0) return;
  const fix = `apt-get update && apt-get install -y ${missing.join(' ')}`;
  if (!isRoot || !has('apt-get')) {
    giveUp(`building the native addon needs ${missing.join(', ')}. Run as root on Debian: ${fix}`);
  }
  console.error(`forkd: installing ${missing.join(', ')} to build the native addon`);
  run('sh', ['-c', fix]);
};

/** Unpacked, not installed: its dependencies are half of Rust. Downloading and unpacking need no root; refreshing the lists does. */
const unpackBlake3 = () => {
  if (existsSync(join(blake3, 'blake3.h'))) return;
  const fix = `apt-get update; then run node tools/preinstall.mjs again. Or put the files of the folder c/ of BLAKE3's sources into ${blake3}`;
  if (!has('apt-get') || !has('dpkg-deb')) {
    giveUp(`building the native addon needs the BLAKE3 sources of Debian's ${blake3Package}. On Debian: ${fix}`);
  }
  console.error('forkd: unpacking the BLAKE3 sources to build the native addon');
  mkdirSync(vendor, { recursive: true });
  // Beside its destination, so that it can be renamed: a run that is interrupted leaves no half of it under the name.
  const work = mkdtempSync(join(vendor, 'unpack-'));
  try {
    const download = () => run('apt-get', ['-o', 'APT::Sandbox::User=root', 'download', blake3Package], { cwd: work });
    try {
      download();
    } catch (error) {
      if (!isRoot) throw error;
      run('apt-get', ['update']);
      download();
    }
    const archive = readdirSync(work).find((name) => name.endsWith('.deb'));
    run('dpkg-deb', ['-x', join(work, archive), join(work, 'tree')]);
    const registry = join(work, 'tree/usr/share/cargo/registry');
    const crate = readdirSync(registry).find((name) => name.startsWith('blake3-'));
    cpSync(join(registry, crate, 'c'), join(work, 'c'), { recursive: true });
    rmSync(blake3, { recursive: true, force: true });
    renameSync(join(work, 'c'), blake3);
  } catch (error) {
    rmSync(work, { recursive: true, force: true }); // giveUp exits, without what stands in `finally`
    console.error(`forkd: ${error.message}`);
    giveUp(`the BLAKE3 sources of Debian's ${blake3Package} could not be had. As root: ${fix}`);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
};

installPackages();
unpackBlake3();
