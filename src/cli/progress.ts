/** Progress on stderr: `==>` steps, and a bar that is redrawn in place on a terminal and left out elsewhere. */
const BAR_WIDTH = 24;
const REDRAW_MS = 80;

const isTerminal = process.stderr.isTTY === true;
let barShown = false;

const clearBar = (): void => {
  if (barShown) process.stderr.write('\r\x1b[K');
  barShown = false;
};

export const step = (text: string): void => line(`==> ${text}`);

export const detail = (text: string): void => line(`    ${text}`);

export const warn = (text: string): void => line(`⚠ ${text}`);

export const line = (text: string): void => {
  clearBar();
  process.stderr.write(`${text}\n`);
};

/** A bar for work of a known size. */
export class Bar {
  #drawnAt = 0;

  /** `format` is how amounts are shown. */
  constructor(
    readonly label: string,
    readonly format: (amount: number) => string = String,
  ) {}

  update(done: number, total: number, note = ''): void {
    if (!isTerminal) return;
    const now = performance.now();
    if (done < total && now - this.#drawnAt < REDRAW_MS) return;
    this.#drawnAt = now;
    const filled = total === 0 ? BAR_WIDTH : Math.round((BAR_WIDTH * done) / total);
    process.stderr.write(
      `\r\x1b[K${this.label} [${'#'.repeat(filled)}${'.'.repeat(BAR_WIDTH - filled)}] ${this.format(done)}/${this.format(total)}${note}`,
    );
    barShown = true;
  }

  end(): void {
    clearBar();
  }
}
