/**
 * One repository of a registry (OCI distribution API). A registry that wants a user says how; the answer to that is kept. Credentials go to
 * the registry and to the token server that it names, and nowhere else.
 */
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { type Http, readAll, refused, type Reply, type Send, shown } from '../../http/client.js';
import { type Login, loginFor } from './credentials.js';
import { baseUrl, type Reference, showReference } from './reference.js';

export interface Answer {
  url: URL;
  status: number;
  headers: Reply['headers'];
  body: Buffer;
}

export interface Call extends Omit<Send, 'authorization'> {
  maxBytes?: number;
  /** Other answers than 2xx that are no errors. */
  allowed?: number[];
}

type Challenge = { kind: 'basic' } | { kind: 'bearer'; realm: URL; service: string };

const ANSWER_MAX_BYTES = 64 * 1024;
const TOKEN_MAX_BYTES = 64 * 1024;

export class Registry {
  readonly base: URL;
  authorization: string | undefined;
  #challenge: Challenge | undefined;
  #login: Promise<Login | undefined> | undefined;

  /** `actions` is what tokens are asked for. */
  constructor(
    readonly http: Http,
    readonly reference: Reference,
    readonly actions: 'pull' | 'pull,push' = 'pull',
  ) {
    this.base = baseUrl(reference);
  }

  url(path: string): URL {
    return new URL(`/v2/${this.reference.repository}/${path}`, this.base);
  }

  /**
   * Throws REGISTRY_DENIED, REGISTRY_NOT_FOUND, HUB_ANSWERED for other answers than 2xx, what Http throws, and CREDENTIALS_UNREADABLE.
   */
  async call(url: URL, { maxBytes = ANSWER_MAX_BYTES, allowed = [], ...options }: Call = {}): Promise<Answer> {
    const hooks = options.signal ? { signal: options.signal } : {};
    return this.http.retried(
      url,
      async () => {
        let reply = await this.#send(url, options);
        if (reply.status === 401 && (await this.#logIn(reply, options.signal))) reply = await this.#send(url, options);
        const body = options.method === 'HEAD' ? Buffer.alloc(0) : await readAll(reply, maxBytes, this.http.patience);
        const { status, headers } = reply;
        if ((status < 200 || status > 299) && !allowed.includes(status)) throw this.failure(url, status, body);
        return { url: reply.url, status, headers, body };
      },
      hooks,
    );
  }

  /** Asks for a new token, where the old one may have expired. */
  async renew(signal?: AbortSignal): Promise<void> {
    if (this.#challenge) this.authorization = await this.#answerTo(this.#challenge, signal);
  }

  failure(url: URL, status: number, body: Buffer): ForkdError {
    const reference = showReference(this.reference);
    const said = saidIn(body);
    if (status === 401 || status === 403)
      return new ForkdError('REGISTRY_DENIED', { reference, host: this.reference.host, said });
    if (status === 404) return new ForkdError('REGISTRY_NOT_FOUND', { reference, said });
    return new ForkdError('HUB_ANSWERED', { url: shown(url), status, said });
  }

  #send(url: URL, options: Send): Promise<Reply> {
    // An upload may be at another place than the registry.
    const own = url.origin === this.base.origin ? this.authorization : undefined;
    return this.http.send(url, { ...options, ...(own === undefined ? {} : { authorization: own }) });
  }

  /** False when there is nothing to try. */
  async #logIn(reply: Reply, signal?: AbortSignal): Promise<boolean> {
    const challenge = challengeOf(reply, this.base);
    if (challenge === undefined || reply.url.origin !== this.base.origin) return false;
    reply.body.destroy();
    this.#challenge = challenge;
    this.authorization = await this.#answerTo(challenge, signal);
    return this.authorization !== undefined;
  }

  async #answerTo(challenge: Challenge, signal?: AbortSignal): Promise<string | undefined> {
    this.#login ??= loginFor(this.reference.host);
    const login = await this.#login;
    if (challenge.kind === 'basic') return login && 'user' in login ? basic(login.user, login.password) : undefined;
    return `Bearer ${await this.#token(challenge.realm, challenge.service, login, signal)}`;
  }

  async #token(realm: URL, service: string, login: Login | undefined, signal?: AbortSignal): Promise<string> {
    const scope = `repository:${this.reference.repository}:${this.actions}`;
    const url = new URL(realm);
    const asked = { ...(service === '' ? {} : { service }), scope };
    const send: Send = signal ? { signal } : {};
    if (login && 'identityToken' in login) {
      const form = { ...asked, grant_type: 'refresh_token', client_id: 'forkd', refresh_token: login.identityToken };
      send.method = 'POST';
      send.headers = { 'content-type': 'application/x-www-form-urlencoded' };
      send.body = () => Buffer.from(new URLSearchParams(form).toString());
    } else {
      for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value);
      if (login) send.authorization = basic(login.user, login.password);
    }
    const { status, body } = await this.http.retried(
      url,
      async () => {
        const reply = await this.http.send(url, send);
        return { status: reply.status, body: await readAll(reply, TOKEN_MAX_BYTES, this.http.patience) };
      },
      signal ? { signal } : {},
    );
    if (status < 200 || status > 299) throw this.failure(url, status, body);
    const { token, access_token: other } = parsed(body);
    const found = token ?? other;
    if (typeof found !== 'string' || !/^[\x21-\x7e]+$/.test(found))
      throw refused(url, 'there is no token in its answer');
    return found;
  }
}

const basic = (user: string, password: string): string =>
  `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;

/** `Bearer realm="...",service="..."`, or Basic. Throws TRANSFER_REFUSED for a realm that would see a password in the clear. */
const challengeOf = (reply: Reply, base: URL): Challenge | undefined => {
  const text = String(reply.headers['www-authenticate'] ?? '').slice(0, limits.httpHeadersMaxBytes);
  if (/^basic\b/i.test(text)) return { kind: 'basic' };
  if (!/^bearer\b/i.test(text)) return undefined;
  const values = new Map([...text.matchAll(/(\w+)="([^"]*)"/g)].map(([, name = '', value = '']) => [name, value]));
  const realm = values.get('realm') ?? '';
  if (!URL.canParse(realm)) throw refused(reply.url, 'its token server is not a URL');
  const url = new URL(realm);
  const isSafe = url.protocol === 'https:' || (url.protocol === 'http:' && base.protocol === 'http:');
  if (!isSafe || url.username !== '' || url.password !== '')
    throw refused(reply.url, `its token server is ${url.protocol}//${url.host}`);
  return { kind: 'bearer', realm: url, service: values.get('service') ?? '' };
};

const parsed = (body: Buffer): Record<string, unknown> => {
  try {
    const value = JSON.parse(body.toString('utf8')) as unknown;
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
};

/** The first of a registry's errors, for people. */
const saidIn = (body: Buffer): string => {
  const { errors } = parsed(body);
  const [first] = (Array.isArray(errors) ? errors : []) as { code?: unknown; message?: unknown }[];
  const text = [first?.code, first?.message].filter((one) => typeof one === 'string').join(', ');
  const clean = text.replace(/[^\x20-\x7e]+/g, ' ').slice(0, 300);
  return clean === '' ? '' : `: ${clean}`;
};
