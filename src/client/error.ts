/** The daemon's refusals, as errors: its status, its text, and the stable code and hint that it sends along. */
export class ControllerError extends Error {
  constructor(
    readonly status: number,
    /** Parsed if it was JSON, else the text; `{}` if it was empty. */
    readonly body: unknown,
    readonly url: string,
  ) {
    super(textOf(body, 'error') ?? `HTTP ${status}: ${typeof body === 'string' ? body : JSON.stringify(body)}`);
    this.name = 'ControllerError';
  }

  /** A code of docs/reference/errors.md, e.g. `SNAPSHOT_NOT_FOUND`. */
  get code(): string | undefined {
    return textOf(this.body, 'code');
  }

  /** What to do next. */
  get hint(): string | undefined {
    return textOf(this.body, 'hint');
  }
}

const textOf = (body: unknown, key: string): string | undefined => {
  const value = (body as Record<string, unknown> | null)?.[key];
  return typeof value === 'string' ? value : undefined;
};
