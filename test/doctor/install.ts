/** Installs the packages named on the command line; aborts at the step that starts with $ABORT_AT. Prints what happened. */
import { ForkdError } from '../../src/contract/errors.js';
import { installPackages } from '../../src/main/host/packages.js';
import type { Installed } from './scenario.js';

const began = Date.now();
const abort = new AbortController();
const at = process.env['ABORT_AT'];
const steps: Installed['steps'] = [];
const onProgress = (step: string, fraction: number) => {
  steps.push([step, fraction]);
  if (at !== undefined && step.startsWith(at)) abort.abort();
};
const error = await installPackages(process.argv.slice(2), { signal: abort.signal, onProgress }).then(
  () => null,
  (thrown: unknown) => ForkdError.from(thrown).toData(),
);
console.log(JSON.stringify({ steps, error, ms: Date.now() - began } satisfies Installed));
