// `npm run check`: types, lint, format, clang-format, Python syntax, and that every uvu suite is run.
// Plain JavaScript, so that it works on a tree that does not compile.
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const files = (dir, pattern) =>
  readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && pattern.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));

/** Resolves to what is wrong, a text each. */
const run = (file, args) =>
  new Promise((resolve) => {
    const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => {
        output += data;
      });
    }
    child.on('error', (error) =>
      resolve([error.code === 'ENOENT' ? `${file} is not installed: apt-get install -y ${file}` : String(error)]),
    );
    child.on('close', (status) => resolve(status === 0 ? [] : [output.trim()]));
  });

/** uvu reports `Total: 0` and success for a suite without `.run()`, so nobody would notice. */
const unrunSuites = () =>
  files('test', /\.test\.ts$/).flatMap((path) => {
    const text = readFileSync(path, 'utf8');
    const suites = [...text.matchAll(/const (\w+) = \w*[sS]uite(?:<.*>)?\(/g)].map(([, name]) => name);
    if (/\bimport \{[^}]*\btest\b[^}]*\} from 'uvu'/.test(text)) suites.push('test');
    if (suites.length === 0) return [`${path}: no uvu suite`];
    return suites
      .filter((name) => !new RegExp(`^${name}\\.run\\(\\);?$`, 'm').test(text))
      .map((name) => `${path}: ${name}.run() is missing`);
  });

const checks = {
  types: () => run('node_modules/.bin/tsc', ['--noEmit', '-p', '.']),
  'lint and format': () => run('node_modules/.bin/biome', ['check', '--error-on-warnings', '--max-diagnostics=100']),
  'clang-format': () =>
    run('clang-format', [
      '--dry-run',
      '--Werror',
      ...files('src/native', /\.(cc|c|h)$/),
      ...files('src/guest', /\.(c|h)$/),
      ...files('test', /\.(cc|c|h)$/),
    ]),
  'python syntax': () =>
    run('python3', [
      '-c',
      'import ast,sys\nfor path in sys.argv[1:]: ast.parse(open(path).read(), path)',
      ...files('src/guest', /\.py$/),
    ]),
  'uvu suites are run': unrunSuites,
};

let failed = 0;
// All at once: types take one processor, the others the next.
const begun = Object.entries(checks).map(([name, check]) => [name, (async () => check())()]);
for (const [name, check] of begun) {
  const problems = await check;
  console.log(`${problems.length === 0 ? 'ok  ' : 'FAIL'} ${name}`);
  for (const problem of problems) console.log(problem);
  if (problems.length > 0) failed++;
}
process.exit(failed === 0 ? 0 : 1);
