/** Fan-outs that are compared: one of each kind in turn, so that what the machine does meanwhile befalls all. */
import type { Engine } from '../src/main/engine.js';
import type { ForkRequest } from '../src/main/planner/plan.js';
import { FIRST_ANSWER, FIRST_EVAL } from './parent.js';

export interface Side {
  engine: Engine;
  request: ForkRequest;
  /** Done before each, and not counted. */
  before?: () => Promise<unknown>;
}

export interface Turns<K extends string> {
  /** Milliseconds from the request until the last child had answered. */
  ready: Record<K, number[]>;
  /** Children that were not made, or whose answer was wrong. */
  failed: number;
}

/** The template of a tag, with all of its memory there. A fork is followed by the fault server while there is one: slower, and not what a resident template is like for long. */
export const warmWhole = async (engine: Engine, tag: string): Promise<void> => {
  const { snapshot } = await engine.warm(tag, { firstEval: FIRST_EVAL });
  while (snapshot?.memory.server !== undefined) await new Promise((resolve) => setTimeout(resolve, 20));
};

export const inTurns = async <K extends string>(rounds: number, sides: Record<K, Side>): Promise<Turns<K>> => {
  const kinds = Object.keys(sides) as K[];
  for (const kind of kinds) await warmWhole(sides[kind].engine, sides[kind].request.tag);
  const ready = Object.fromEntries(kinds.map((kind) => [kind, []])) as unknown as Record<K, number[]>;
  let failed = 0;
  for (let i = 0; i < rounds; i++) {
    for (const kind of i % 2 === 0 ? kinds : [...kinds].reverse()) {
      const { engine, request, before } = sides[kind];
      await before?.();
      const made = await engine.fork({ ...request, firstEval: FIRST_EVAL });
      ready[kind].push(made.ready_ms);
      const { sandboxes, failures, firstResults } = made;
      failed += failures.length;
      failed += sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
      await engine.kill(sandboxes);
    }
  }
  return { ready, failed };
};
