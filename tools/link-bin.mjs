// Runs after the build: makes `npx forkd` in this checkout start the checkout. npm links the commands of dependencies only;
// without the link npx would install this folder once more, into its own cache, and compile everything again.
import { chmodSync, mkdirSync, rmSync, symlinkSync } from 'node:fs';

mkdirSync('node_modules/.bin', { recursive: true });
rmSync('node_modules/.bin/forkd', { force: true });
chmodSync('dist/src/cli/main.js', 0o755);
symlinkSync('../../dist/src/cli/main.js', 'node_modules/.bin/forkd');
rmSync('node_modules/.bin/forkd-controller', { force: true });
chmodSync('dist/src/cli/controller.js', 0o755);
symlinkSync('../../dist/src/cli/controller.js', 'node_modules/.bin/forkd-controller');
