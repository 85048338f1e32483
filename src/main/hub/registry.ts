/** The hub's registry.json: `{packages: {"owner/name": {versions: {latest: {url, sha256?, size_bytes?}}}}}`. */
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { type Http, shown } from '../../http/client.js';

export const DEFAULT_HUB = 'https://raw.githubusercontent.com/deeplethe/forkd/main/registry.json';

export interface PackSource {
  url: URL;
  sha256?: string;
  bytes?: number;
}

const NAME = /^([\w.-]+\/[\w./-]+?)(?:@([\w.+-]+))?$/;

/** `owner/name[@version]`. */
export const isPackageName = (text: string): boolean => NAME.test(text);

/** Throws HUB_INVALID, PACKAGE_NOT_FOUND, and what Http.text throws. */
export const findPackage = async (http: Http, hub: URL, target: string, signal?: AbortSignal): Promise<PackSource> => {
  const [, name = '', version = 'latest'] = NAME.exec(target) ?? [];
  const { text, reply } = await http.text(hub, limits.registryMaxBytes, signal ? { signal } : {});
  const bad = (reason: string, cause?: unknown) => new ForkdError('HUB_INVALID', { url: shown(hub), reason }, cause);
  let packages: unknown;
  try {
    ({ packages } = JSON.parse(text.toString('utf8')) as { packages?: unknown });
  } catch (error) {
    throw bad(reasonOf(error), error);
  }
  if (!isRecord(packages)) throw bad('it has no packages');
  const missing = (known: string) => new ForkdError('PACKAGE_NOT_FOUND', { name: target, url: shown(hub), known });
  const found = own(packages, name);
  if (!isRecord(found)) throw missing(`it has ${listed(Object.keys(packages))}`);
  const versions = found['versions'];
  if (!isRecord(versions)) throw bad(`'${name}' has no versions`);
  const entry = own(versions, version);
  if (entry === undefined) throw missing(`'${name}' has the versions ${listed(Object.keys(versions))}`);
  if (!isRecord(entry)) throw bad(`'${target}' is not a version`);
  return sourceOf(entry, reply.url, (reason) => bad(`'${target}': ${reason}`));
};

const sourceOf = (entry: Record<string, unknown>, base: URL, bad: (reason: string) => ForkdError): PackSource => {
  const { url: text, sha256, size_bytes: bytes } = entry;
  const url = typeof text === 'string' && URL.canParse(text, base.href) ? new URL(text, base) : undefined;
  if (!url || (url.protocol !== 'http:' && url.protocol !== 'https:')) throw bad('its url is not one');
  if (sha256 !== undefined && !(typeof sha256 === 'string' && /^[0-9a-f]{64}$/i.test(sha256)))
    throw bad('its sha256 is not one');
  if (bytes !== undefined && !(Number.isSafeInteger(bytes) && Number(bytes) > 0))
    throw bad('its size_bytes is not one');
  // Without a hash, a pack is what its server says; whoever is on the way to an http server can say it too.
  if (sha256 === undefined && base.protocol === 'https:' && url.protocol === 'http:')
    throw bad('it is fetched over http, and has no sha256');
  return {
    url,
    ...(typeof sha256 === 'string' ? { sha256: sha256.toLowerCase() } : {}),
    ...(typeof bytes === 'number' ? { bytes } : {}),
  };
};

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const own = (record: Record<string, unknown>, key: string): unknown =>
  Object.hasOwn(record, key) ? record[key] : undefined;

const NAMES_SHOWN = 20;
const listed = (names: string[]): string => {
  const safe = names.slice(0, NAMES_SHOWN).map((name) => name.replace(/[^\x20-\x7e]+/g, '?').slice(0, 80));
  return names.length === 0 ? 'none' : `${safe.join(', ')}${names.length > NAMES_SHOWN ? ', ...' : ''}`;
};
