/**
 * What the user typed, as the types a command wants. cac reads `--tag 007` as the number 7, so values are taken from
 * the raw arguments; cac decides which options exist.
 */
import { readFileSync } from 'node:fs';
import { ForkdError } from '../contract/errors.js';
import type { Isolation } from '../contract/snapshot.js';

export class Options {
  constructor(
    readonly command: string,
    readonly positional: string[],
    /** What came after `--`. */
    readonly rest: string[],
    readonly parsed: Record<string, unknown>,
    readonly argv: string[],
  ) {}

  flag(name: string): boolean {
    return this.parsed[camel(name)] === true;
  }

  /** Every value of `--name`, in order, as typed. */
  strings(name: string, short?: string): string[] {
    const end = this.argv.indexOf('--');
    const args = end < 0 ? this.argv : this.argv.slice(0, end);
    const values: string[] = [];
    args.forEach((arg, i) => {
      for (const spelled of short ? [`--${name}`, `-${short}`] : [`--${name}`]) {
        if (arg === spelled && args[i + 1] !== undefined) values.push(args[i + 1] as string);
        if (arg.startsWith(`${spelled}=`)) values.push(arg.slice(spelled.length + 1));
      }
    });
    return values;
  }

  /** The last value given, else that of the environment variable. */
  string(name: string, from: { short?: string; env?: string } = {}): string | undefined {
    return this.strings(name, from.short).at(-1) ?? (from.env ? process.env[from.env] || undefined : undefined);
  }

  required(name: string, from: { short?: string; env?: string } = {}): string {
    const value = this.string(name, from);
    if (value === undefined) throw this.wrong(`--${name}`, 'is required');
    return value;
  }

  /** The only positional argument. */
  one(name: string): string {
    const [value, ...more] = this.positional;
    if (value === undefined) throw this.wrong(name, 'is required');
    if (more.length > 0) throw this.wrong(name, 'is given more than once');
    return value;
  }

  /** A whole number, not negative. */
  count(name: string, short?: string): number | undefined {
    const text = this.string(name, short ? { short } : {});
    if (text === undefined) return undefined;
    if (!/^\d{1,15}$/.test(text)) throw this.wrong(`--${name}`, `'${text}' is not a whole number`);
    return Number(text);
  }

  requireIsolation(): Isolation | undefined {
    const value = this.string('require');
    if (value === undefined || value === 'kvm' || value === 'tcg') return value;
    throw this.wrong('--require', `'${value}' is neither kvm nor tcg`);
  }

  lines(path: string): string[] {
    try {
      const text = readFileSync(path, 'utf8');
      return text.replace(/\r?\n$/, '').split(/\r?\n/);
    } catch (error) {
      throw new ForkdError(
        'INPUT_FILE_INVALID',
        { path, reason: error instanceof Error ? error.message : String(error) },
        error,
      );
    }
  }

  wrong(argument: string, reason: string): ForkdError {
    return new ForkdError('ARGUMENT_INVALID', { argument, reason, command: this.command });
  }
}

const camel = (name: string): string => name.replace(/-([a-z])/g, (_, c: string) => c.toUpperCase());
