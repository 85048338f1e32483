/** `npm run -s bench -- NAME [--json] [--n N] [--trials T] [--smoke] [--record] [--plot FILE.svg]`. */
import { spawn } from 'node:child_process';
import { appendFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cac } from 'cac';
import type { Bench, Parameters } from './bench.js';
import { hostFacts } from './host.js';
import { ensureParent } from './parent.js';
import { histogram } from './plot.js';
import { benches, findBench } from './trials/index.js';

/** A trial that hangs must end some time; one of ten thousand forks on a busy machine takes the better part of an hour. */
const TRIAL_TIMEOUT_MS = 1_200_000;
const TIMEOUT_MS_PER_N = 300;

const runTrial = (bench: Bench<unknown>, parameters: Parameters): Promise<unknown> =>
  new Promise((resolve, reject) => {
    const args = [join(import.meta.dirname, 'trial.js'), bench.name, JSON.stringify(parameters)];
    const timeout = TRIAL_TIMEOUT_MS + parameters.n * TIMEOUT_MS_PER_N;
    const began = performance.now();
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], timeout });
    let output = '';
    child.stdout.on('data', (data: Buffer) => {
      output += data.toString('utf8');
    });
    child.on('close', (code, signal) => {
      if (code === 0) resolve(JSON.parse(output));
      else {
        const end =
          performance.now() - began > timeout ? `its time limit, ${timeout / 1000} s` : (signal ?? `exit code ${code}`);
        reject(new Error(`a trial of ${bench.name} ended with ${end}`));
      }
    });
  });

const parametersOf = (bench: Bench<unknown>, options: Record<string, unknown>): Parameters => {
  const parameters = { ...(options['smoke'] ? bench.smoke : bench.full) };
  for (const key of Object.keys(parameters)) {
    if (options[key] !== undefined) parameters[key] = options[key] as number;
  }
  return parameters;
};

const record = (command: string, host: object, result: object): void => {
  const facts = Object.entries(host)
    .map(([key, value]) => `${key} ${value}`)
    .join(', ');
  const text = `\n## \`${command}\`\n\n${new Date().toISOString().slice(0, 10)}; ${facts}\n\n\`\`\`json\n${JSON.stringify(result, null, 1)}\n\`\`\`\n`;
  appendFileSync('bench/RESULTS.md', text);
};

const cli = cac('bench');
cli.usage('NAME [options]');
cli.option('--json', 'Print one JSON object on one line');
cli.option('--n <N>', 'Size of a trial');
cli.option('--trials <T>', 'Number of trials, each in a fresh process');
cli.option('--eager', 'Load memory whole before anything runs (fan-out, density)');
cli.option('--smoke', 'Small parameters: does it run at all?');
cli.option('--record', 'Append the figures, with what they were measured on, to bench/RESULTS.md');
cli.option('--plot <FILE.svg>', "Draw the distribution of the children's ready times (fan-out)");
cli.example('npm run -s bench -- fan-out --n 100 --plot ready.svg');
for (const bench of benches) cli.command(bench.name, bench.description).allowUnknownOptions();
cli.help();
const { options } = cli.parse(process.argv, { run: false });
const bench = findBench(process.argv[2]);

if (options['help']) process.exit(0);
if (!bench) {
  cli.outputHelp();
  process.exit(2);
}
const plotFile: unknown = options['plot'];
if (plotFile !== undefined && (typeof plotFile !== 'string' || !bench.plot)) {
  const able = benches.filter(({ plot }) => plot).map(({ name }) => name);
  console.error(typeof plotFile === 'string' ? `--plot is for ${able.join(', ')}` : '--plot needs the name of a file');
  process.exit(2);
}
const parameters = parametersOf(bench, options);
await ensureParent();
const trials: unknown[] = [];
for (let i = 0; i < parameters.trials; i++) {
  process.stderr.write(`trial ${i + 1} of ${parameters.trials}\n`);
  trials.push(await runTrial(bench, parameters));
}
const host = await hostFacts();
const result = { bench: bench.name, ...bench.summarise(trials, parameters), trials: parameters.trials };
console.log(options['json'] ? JSON.stringify({ ...result, host }) : JSON.stringify({ ...result, host }, null, 2));
if (typeof plotFile === 'string' && bench.plot) writeFileSync(plotFile, histogram(bench.plot(trials, parameters)));
if (options['record'])
  record(
    `npm run -s bench -- ${process.argv
      .slice(2)
      .filter((a) => a !== '--record')
      .join(' ')}`,
    host,
    result,
  );
process.exit();
