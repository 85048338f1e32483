/** A histogram as a small SVG, made by hand: no picture library for one picture. */
import { median, percentile, round } from './stats.js';

export interface Plot {
  title: string;
  /** What the values are, with their unit. */
  label: string;
  values: number[];
}

const WIDTH = 720;
const HEIGHT = 360;
const MARGIN = { top: 48, right: 24, bottom: 56, left: 56 };
const BARS_MAX = 40;
/** The axis ends here, so that one straggler does not squeeze all others into one bar; what lies beyond is in the last bar. */
const AXIS_PERCENTILE = 99.5;

/** Throws RangeError without values. */
export const histogram = ({ title, label, values }: Plot): string => {
  if (values.length === 0) throw new RangeError('nothing to draw');
  const low = Math.min(...values);
  const high = percentile(values, AXIS_PERCENTILE);
  const bars = high > low ? Math.min(BARS_MAX, Math.max(5, Math.ceil(Math.sqrt(values.length)))) : 1;
  const counts = countsOf(values, low, high, bars);
  const top = Math.max(...counts);
  const inner = { width: WIDTH - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const x = (value: number) =>
    MARGIN.left + (high > low ? (Math.min(value, high) - low) / (high - low) : 0.5) * inner.width;
  const y = (count: number) => MARGIN.top + inner.height * (1 - count / top);
  const bar = inner.width / bars;
  const base = HEIGHT - MARGIN.bottom;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<title>${escapeXml(title)}</title>`,
    '<rect width="100%" height="100%" fill="#fff"/>',
    text(MARGIN.left, 24, 'start', title, 15),
    ...counts.map((count, i) => {
      const left = MARGIN.left + i * bar;
      return `<rect class="bar" x="${left.toFixed(1)}" y="${y(count).toFixed(1)}" width="${Math.max(1, bar - 1).toFixed(1)}" height="${(base - y(count)).toFixed(1)}" fill="#4878a8"><title>${count}</title></rect>`;
    }),
    `<path d="M${MARGIN.left} ${MARGIN.top}V${base}H${WIDTH - MARGIN.right}" fill="none" stroke="#333"/>`,
    text(MARGIN.left - 8, MARGIN.top + 4, 'end', String(top)),
    text(MARGIN.left - 8, base + 4, 'end', '0'),
    text(MARGIN.left, base + 18, 'start', String(round(low))),
    text(
      WIDTH - MARGIN.right,
      base + 18,
      'end',
      `${round(high)}${Math.max(...values) > high ? ` (slowest ${round(Math.max(...values))})` : ''}`,
    ),
    text(MARGIN.left + inner.width / 2, HEIGHT - 12, 'middle', label),
    ...[['p50', median(values)] as const, ['p99', percentile(values, 99)] as const].map(
      ([name, value]) =>
        `<path d="M${x(value).toFixed(1)} ${MARGIN.top - 6}V${base}" stroke="#c04830" stroke-dasharray="4 3"/>` +
        text(x(value), MARGIN.top - 10, 'middle', `${name} ${round(value)}`),
    ),
    '</svg>',
  ];
  return `${parts.join('\n')}\n`;
};

const countsOf = (values: number[], low: number, high: number, bars: number): number[] => {
  const counts = new Array<number>(bars).fill(0);
  for (const value of values) {
    const i = high > low ? Math.min(bars - 1, Math.floor(((value - low) / (high - low)) * bars)) : 0;
    counts[i] = (counts[i] ?? 0) + 1;
  }
  return counts;
};

const text = (x: number, y: number, anchor: string, content: string, size?: number): string =>
  `<text x="${x.toFixed(1)}" y="${y}" text-anchor="${anchor}"${size ? ` font-size="${size}"` : ''}>${escapeXml(content)}</text>`;

const escapeXml = (content: string): string =>
  content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
