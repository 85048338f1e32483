/** Sizes and times as people read them; the rule for sizes is the reference's. */
const KIB = 1024;
const MIB = KIB * 1024;
const GIB = MIB * 1024;

export const MiB = MIB;

export const formatBytes = (bytes: number): string => {
  if (bytes >= GIB) return `${(bytes / GIB).toFixed(2)} GiB`;
  if (bytes >= MIB) return `${(bytes / MIB).toFixed(1)} MiB`;
  return `${(bytes / KIB).toFixed(0)} KiB`;
};

/** `12 ms` or `3.4 s`. */
export const formatMs = (ms: number): string =>
  ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;

/** Age as `s`/`m`/`h`/`d`/`mo` ago. */
export const formatAge = (seconds: number): string => {
  const steps: [limit: number, size: number, unit: string][] = [
    [60, 1, 's'],
    [3600, 60, 'm'],
    [86_400, 3600, 'h'],
    [30 * 86_400, 86_400, 'd'],
  ];
  const s = Math.max(0, Math.floor(seconds));
  const [, size, unit] = steps.find(([limit]) => s < limit) ?? [0, 30 * 86_400, 'mo'];
  return `${Math.floor(s / size)}${unit} ago`;
};

const SECONDS: Record<string, number> = { s: 1, m: 60, h: 3600, d: 86_400, w: 7 * 86_400 };

/** `90`, `90s`, `15m`, `12h`, `7d` or `2w` in seconds; undefined for anything else. */
export const parseAge = (text: string): number | undefined => {
  const [, count = '', unit = 's'] = /^(\d{1,9})([smhdw]?)$/.exec(text) ?? [];
  return count === '' ? undefined : Number(count) * (SECONDS[unit || 's'] ?? 1);
};
