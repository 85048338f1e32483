import { ForkdError, reasonOf } from '../../contract/errors.js';
import {
  type CheckResult,
  countStatuses,
  DEFAULT_DAEMON_URL,
  describeFix,
  type DoctorOptions,
  examineHost,
  planFixes,
} from '../../main/host/doctor/index.js';
import { daemonCa, nearDaemonUrl } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { line, step, warn } from '../progress.js';
import { printJson, printLine } from '../render.js';
import { applyWithProgress, confirmFixes } from '../setup.js';
import { withEngine } from '../with-engine.js';

const GLYPHS = { pass: '✓', warn: '⚠', fail: '✗', skip: '-' } as const;

export const doctor: Command = {
  name: 'doctor',
  description: 'Check what forkd needs on this host; with --fix, put right what can be',
  options: [
    ['--fix', 'Install missing packages (root), build the guest image, try KVM; then check again'],
    ['-y, --yes', 'With --fix: do not ask'],
    ['--daemon-url <URL>', `Daemon to look for (env FORKD_URL; default: its socket, else ${DEFAULT_DAEMON_URL})`],
    ['--daemon-token <TOKEN>', 'Its token (env FORKD_TOKEN)'],
    ['--daemon-ca <FILE>', 'Certificates, PEM, of whom to believe with https (env FORKD_CA)'],
    ['--json', 'Print one JSON object'],
  ],
  examples: ['forkd doctor', 'sudo forkd doctor --fix --yes'],
  run: async (options) => {
    const daemonUrl = nearDaemonUrl(options);
    const daemonToken = options.string('daemon-token', { env: 'FORKD_TOKEN' });
    const ca = daemonCa(options, daemonUrl ?? DEFAULT_DAEMON_URL);
    const where: DoctorOptions = {
      ...(daemonUrl ? { daemonUrl } : {}),
      ...(daemonToken ? { daemonToken } : {}),
      ...(ca === undefined ? {} : { daemonCa: ca }),
    };
    let results = await examineHost(where);
    if (options.flag('fix') && (await mend(results, options.flag('yes')))) results = await examineHost(where);
    show(results, options.flag('json'));
    return results.some(({ status }) => status === 'fail') ? 1 : 0;
  },
};

/** Applies the fixes; one that fails does not keep the others from being tried. False when there was nothing to do. */
const mend = async (results: CheckResult[], yes: boolean): Promise<boolean> => {
  const fixes = planFixes(results);
  if (fixes.length === 0) {
    step('there is nothing that --fix could do');
    return false;
  }
  await withEngine(async (engine, signal) => {
    await confirmFixes(fixes, yes, signal);
    for (const fix of fixes) {
      try {
        await applyWithProgress(fix, engine, signal);
      } catch (error) {
        if (signal.aborted) throw new ForkdError('CANCELLED');
        warn(reasonOf(error));
        if (error instanceof ForkdError) line(`  ${error.hint}`);
      }
    }
  });
  return true;
};

const show = (results: CheckResult[], json: boolean): void => {
  const counts = countStatuses(results);
  if (json) {
    const checks = results.map(({ fix, ...rest }) => ({ ...rest, ...(fix ? { fix: describeFix(fix) } : {}) }));
    printJson({ checks, ...counts });
    return;
  }
  const width = Math.max(...results.map(({ name }) => name.length));
  for (const { name, status, detail, hint } of results) {
    printLine(`${GLYPHS[status]} ${name.padEnd(width)}  ${detail}`);
    // A hint beside something that is in order would only distract.
    if (hint && status !== 'pass') printLine(`${' '.repeat(width + 4)}→ ${hint}`);
  }
  printLine();
  printLine(`pass=${counts.pass} warn=${counts.warn} fail=${counts.fail} skip=${counts.skip}`);
};
