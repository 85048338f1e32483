/** Percentiles by nearest rank. */
export const percentile = (values: readonly number[], p: number): number => {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil((p / 100) * sorted.length) - 1))] as number;
};

export const median = (values: readonly number[]): number => percentile(values, 50);

/** Three significant digits: more would claim a precision that a noisy machine does not have. */
export const round = (value: number): number => (Number.isFinite(value) ? Number(value.toPrecision(3)) : value);

export const spread = (values: readonly number[]): { p50: number; p99: number } => ({
  p50: round(percentile(values, 50)),
  p99: round(percentile(values, 99)),
});
