// Runs after the build: npm links the commands of dependencies only, so `node_modules/.bin/forkd` of this checkout is ours to make.
// npx from 7 on installs the folder that it stands in into its cache the first time, as a link: our scripts run again, and so they find
// what is built already (`node-gyp configure build`, incremental tsc).
import { chmodSync, mkdirSync, rmSync, symlinkSync } from 'node:fs';

mkdirSync('node_modules/.bin', { recursive: true });
rmSync('node_modules/.bin/forkd', { force: true });
chmodSync('dist/src/cli/main.js', 0o755);
symlinkSync('../../dist/src/cli/main.js', 'node_modules/.bin/forkd');
rmSync('node_modules/.bin/forkd-controller', { force: true });
chmodSync('dist/src/cli/controller.js', 0o755);
symlinkSync('../../dist/src/cli/controller.js', 'node_modules/.bin/forkd-controller');
