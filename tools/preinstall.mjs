// Runs before `npm ci` compiles the addon: a bare machine has Node but no compiler.
// Plain JavaScript on purpose: nothing is built or installed yet.
import { execFileSync, spawnSync } from 'node:child_process';

const needed = [
  ['g++', 'g++'],
  ['make', 'make'],
  ['python3', 'python3'],
];
const missing = needed.filter(([tool]) => spawnSync('which', [tool]).status !== 0).map(([, name]) => name);
if (missing.length > 0) {
  const fix = `apt-get update && apt-get install -y ${missing.join(' ')}`;
  if (process.getuid?.() !== 0 || spawnSync('which', ['apt-get']).status !== 0) {
    console.error(`forkd: building the native addon needs ${missing.join(', ')}. Run as root: ${fix}`);
    process.exit(1);
  }
  console.error(`forkd: installing ${missing.join(', ')} to build the native addon`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  execFileSync('sh', ['-c', fix], { stdio: ['ignore', 2, 2], env });
}
