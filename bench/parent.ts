/** The snapshot that benchmarks fork from: made once, kept under the tag `bench`, made again when it no longer fits. */
import { ForkdError } from '../src/contract/errors.js';
import { Engine } from '../src/main/engine.js';

export const BENCH_TAG = 'bench';
/** The same with a network card. */
export const CARD_TAG = 'bench-card';

/** What the reference's benchmark asks of every child. */
export const FIRST_EVAL = 'numpy.zeros(5).tolist()';
export const FIRST_ANSWER = '[0.0, 0.0, 0.0, 0.0, 0.0]';

export const ensureParent = async (tag = BENCH_TAG): Promise<void> => {
  const engine = new Engine();
  try {
    const usable = await engine.load(tag).then(
      (loaded) => {
        loaded.close();
        return true;
      },
      (error: unknown) => {
        const code = error instanceof ForkdError ? error.code : '';
        if (!['SNAPSHOT_NOT_FOUND', 'SNAPSHOT_CORRUPT', 'SNAPSHOT_INCOMPATIBLE'].includes(code)) throw error;
        return false;
      },
    );
    if (usable) return;
    const onStep = (text: string) => process.stderr.write(`==> ${text}\n`);
    await engine.snapshot({ tag, net: tag === CARD_TAG, force: true }, { onStep });
  } finally {
    await engine.close();
  }
};
