import zstd from 'zstd-napi/binding.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';

// A context costs more than a frame: each worker makes its own on first use.
let compressor: zstd.CCtx | undefined;
let decompressor: zstd.DCtx | undefined;

/** One frame, with its size and a checksum. */
export const compress = ({ from, into, level }: TaskInput<'compress'>): TaskOutput<'compress'> => {
  compressor ??= new zstd.CCtx();
  compressor.setParameter(zstd.CParameter.compressionLevel, level);
  compressor.setParameter(zstd.CParameter.checksumFlag, 1);
  return { bytes: compressor.compress2(into, from) };
};

/** One frame that fills `into` exactly. */
export const decompress = ({ from, into }: TaskInput<'decompress'>): TaskOutput<'decompress'> => {
  decompressor ??= new zstd.DCtx();
  const bytes = decompressor.decompress(into, from);
  if (bytes !== into.length) throw new Error('a frame has another size than it says');
  return { bytes };
};
