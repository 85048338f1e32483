#!/usr/bin/env node
/** Wires the commands to cac and turns outcomes into exit codes; nothing else. */
import { cac } from 'cac';
import { ForkdError } from '../contract/errors.js';
import { VERSION } from '../main/version.js';
import type { Command } from './command.js';
import { loadCommands } from './commands/index.js';
import { Options } from './options.js';
import { line } from './progress.js';
import { printLine } from './render.js';

/** Exit code of a mistake in the command line, as the reference's. */
const USAGE_ERROR = 2;

const run = async (argv: string[]): Promise<number> => {
  const [name] = argv;
  if (name === '-V' || name === '--version') {
    printLine(`forkd ${VERSION}`);
    return 0;
  }
  if (name === 'help') return run([...argv.slice(1), '--help']);
  const cli = cac('forkd');
  const running: { result?: Promise<number | undefined> } = {};
  for (const command of await loadCommands(name)) register(cli, command, argv, running);
  cli.help((sections) => {
    // cac's own heading says `forkd/VERSION`; the list of `--help` invitations says nothing new.
    sections.splice(0, 1, { body: `forkd ${VERSION}` });
    // cac takes `--no-wait` for an option `wait` that is on unless it is given.
    for (const section of sections) section.body = section.body.replaceAll(' (default: true)', '');
    return sections.filter((section) => !section.title?.startsWith('For more info'));
  });
  cli.version(VERSION, '-V, --version');
  const end = argv.indexOf('--');
  const isDash = (arg: string, i: number) => arg === '-' && (end < 0 || i < end);
  cli.parse(['node', 'forkd', ...argv.map((arg, i) => (isDash(arg, i) ? DASH : arg))], { run: false });
  if (argv.includes('--help') || argv.includes('-h')) {
    if (end < 0 || argv.slice(0, end).some((a) => a === '--help' || a === '-h')) return 0;
  }
  if (!cli.matchedCommand) {
    if (name !== undefined) line(`Error: unknown ${name.startsWith('-') ? 'option' : 'command'} '${name}'\n`);
    // cac writes help to stdout; nobody asked for it here.
    console.info = console.error;
    cli.outputHelp();
    return USAGE_ERROR;
  }
  cli.runMatchedCommand();
  return (await running.result) ?? 0;
};

/** In place of a lone dash, which the parser takes for an option, and what follows it for the value. */
const DASH = '\0';

const register = (
  cli: ReturnType<typeof cac>,
  command: Command,
  argv: string[],
  running: { result?: Promise<number | undefined> },
): void => {
  const { name, args, usage, description, options, examples } = command;
  const registered = cli.command(args ? `${name} ${args}` : name, description);
  if (usage) registered.usage(usage);
  for (const [flags, text] of options) registered.option(flags, text);
  for (const example of examples) registered.example(`  $ ${example}`);
  registered.action((...given: unknown[]) => {
    const parsed = given.pop() as Record<string, unknown>;
    const typed = given.flat().filter((arg) => arg !== undefined) as string[];
    const positional = typed.map((arg) => (arg === DASH ? '-' : arg));
    const rest = (parsed['--'] as string[] | undefined) ?? [];
    running.result = (async () => command.run(new Options(name, positional, rest, parsed, argv)))();
  });
};

/** `Error: ...`, then the causes and the hint, as the reference lays them out. */
const report = (error: unknown): number => {
  if (error instanceof Error && error.name === 'CACError') {
    line(`Error: ${error.message}\n\nHint: See \`forkd --help\`, or \`forkd COMMAND --help\`.`);
    return USAGE_ERROR;
  }
  const failure = ForkdError.from(error);
  line(`Error: ${failure.message}`);
  const causes = causesOf(failure);
  if (causes.length > 0) {
    line('\nCaused by:');
    for (const [i, cause] of causes.entries()) line(causes.length > 1 ? `    ${i}: ${cause}` : `    ${cause}`);
  }
  line(`\nHint: ${failure.hint}`);
  if (failure.code === 'INTERNAL' && process.env['FORKD_DEBUG']) line(String(failure.stack));
  return failure.exitCode;
};

const causesOf = (error: Error): string[] => {
  const causes: string[] = [];
  for (
    let cause = error.cause;
    cause !== undefined && causes.length < 8;
    cause = cause instanceof Error ? cause.cause : undefined
  ) {
    const text = cause instanceof Error ? cause.message : String(cause);
    if (!error.message.includes(text) && !causes.includes(text)) causes.push(text);
  }
  return causes;
};

process.exitCode = await run(process.argv.slice(2)).catch(report);
// Nothing may keep a finished command alive: what it owned has been closed.
process.exit();
