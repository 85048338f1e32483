import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { limits } from '../../contract/limits.js';
import { formatBytes, MiB } from '../../contract/units.js';
import { wpBench as measure, type WpBenchResult } from '../../main/host/wp-bench.js';
import type { Command } from '../command.js';
import { detail, step } from '../progress.js';
import { printFacts, printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

const DEFAULT_REGION_MIB = 64;

export const wpBench: Command = {
  name: 'wp-bench',
  description: 'Copy write-protected memory as it is at one instant, check every byte, and say how long it took',
  options: [
    ['--region-mib <N>', `Size of the memory (default: ${DEFAULT_REGION_MIB})`],
    ['--private', 'Map it MAP_PRIVATE, as children map an image, instead of MAP_SHARED'],
    ['--writer', 'A thread stores all over the memory while it is copied'],
    ['--copiers <N>', 'Threads that copy (default: one for each processor)'],
    ['--snapshot <FILE>', 'Keep the copy in FILE (default: it is left nowhere)'],
    ['--json', 'Print one JSON object'],
  ],
  examples: ['forkd wp-bench', 'forkd wp-bench --region-mib 1024 --private --writer --json'],
  run: async (options) => {
    const within = (name: string, fallback: number, max: number): number => {
      const value = options.count(name) ?? fallback;
      if (value < 1 || value > max) throw options.wrong(`--${name}`, `must be a whole number from 1 to ${max}`);
      return value;
    };
    const regionMib = within('region-mib', DEFAULT_REGION_MIB, limits.memoryMaxMib);
    const copiers = within('copiers', Math.min(availableParallelism(), limits.copiersMax), limits.copiersMax);
    const snapshot = options.string('snapshot');
    const [isPrivate, writer] = [options.flag('private'), options.flag('writer')];
    const mapping = isPrivate ? 'private' : 'shared';
    step(`copying ${regionMib} MiB (${mapping}, ${copiers} copiers${writer ? ', a writer' : ''})`);
    const request = { regionMib, isPrivate, writer, copiers, ...(snapshot === undefined ? {} : { snapshot }) };
    const result = await withEngine((engine) => measure(engine.pool, request));
    const where = snapshot === undefined ? undefined : resolve(snapshot);
    if (options.flag('json')) printJson(asJson(result, { mapping, copiers, snapshot: where }));
    else show(result, { mapping, copiers, snapshot: where });
    if (result.wrong > 0) detail(`${result.wrong} bytes of the copy are not what they were when the memory was armed`);
    return result.wrong > 0 ? 1 : 0;
  },
};

interface Setting {
  mapping: string;
  copiers: number;
  snapshot: string | undefined;
}

const GiB = 1024 * MiB;

const mibPerSecond = ({ bytes, copyMs }: WpBenchResult): number => Math.round(bytes / MiB / (copyMs / 1000));
const armMsPerGib = ({ bytes, armMs }: WpBenchResult): number => round((armMs * GiB) / bytes);
const round = (ms: number): number => Math.round(ms * 1000) / 1000;

const asJson = (result: WpBenchResult, { mapping, copiers, snapshot }: Setting): object => ({
  region_bytes: result.bytes,
  mapping,
  copiers,
  arm_ms: round(result.armMs),
  arm_ms_per_gib: armMsPerGib(result),
  bulk_ms: round(result.copyMs),
  bulk_mib_per_s: mibPerSecond(result),
  finalize_ms: round(result.finalizeMs),
  captured_by_fault: result.byFault,
  captured_by_bulk: result.byCopiers,
  total_pages: result.pages,
  stores: result.stores,
  longest_store_ms: round(result.longestStoreMs),
  wrong_bytes: result.wrong,
  snapshot: snapshot ?? null,
});

const show = (result: WpBenchResult, { mapping, copiers, snapshot }: Setting): void =>
  printFacts([
    ['region', `${formatBytes(result.bytes)}, ${mapping}`],
    ['arm', `${result.armMs.toFixed(2)} ms (${armMsPerGib(result).toFixed(2)} ms per GiB)`],
    ['bulk copy', `${result.copyMs.toFixed(2)} ms (${mibPerSecond(result)} MiB/s, ${copiers} copiers)`],
    ['finalize', `${result.finalizeMs.toFixed(2)} ms`],
    ['captured by fault', String(result.byFault)],
    ['captured by bulk', String(result.byCopiers)],
    ['total pages', String(result.pages)],
    ['stores meanwhile', result.stores > 0 ? `${result.stores}, ${longest(result)}` : undefined],
    ['verified', result.wrong === 0 ? 'every byte' : `no: ${result.wrong} bytes are wrong`],
    ['snapshot', snapshot],
  ]);

const longest = ({ longestStoreMs }: WpBenchResult): string => `the longest took ${longestStoreMs.toFixed(2)} ms`;
