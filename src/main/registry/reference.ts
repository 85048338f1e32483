/** What an image or a pack is called in a registry: `[HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST]`, as Docker reads it. */

export interface Reference {
  /** With its port. */
  host: string;
  repository: string;
  tag?: string;
  /** `sha256:...` */
  digest?: string;
}

const REPOSITORY = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$/;
const HOST =
  /^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])(?::\d{1,5})?$/;
const TAG = /^\w[\w.-]{0,127}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;
const NAME_MAX = 255;

export const DOCKER_HUB = 'docker.io';

/** Undefined when it is none. */
export const parseReference = (text: string): Reference | undefined => {
  const [named = '', digest, ...more] = text.split('@');
  if (more.length > 0 || (digest !== undefined && !DIGEST.test(digest))) return undefined;
  const [first = '', ...rest] = named.split('/');
  const hasHost = rest.length > 0 && (/[.:[]/.test(first) || first === 'localhost');
  const host = hasHost ? first : DOCKER_HUB;
  const path = hasHost ? rest.join('/') : named;
  const [name = '', tag, ...others] = path.split(':');
  if (others.length > 0 || (tag !== undefined && !TAG.test(tag))) return undefined;
  const repository = host === DOCKER_HUB && !name.includes('/') ? `library/${name}` : name;
  if (!HOST.test(host) || !REPOSITORY.test(repository) || repository.length > NAME_MAX) return undefined;
  return {
    host,
    repository,
    ...(digest !== undefined ? { digest } : {}),
    ...(tag !== undefined ? { tag } : digest === undefined ? { tag: 'latest' } : {}),
  };
};

export const showReference = ({ host, repository, tag, digest }: Reference): string =>
  `${host}/${repository}${tag === undefined ? '' : `:${tag}`}${digest === undefined ? '' : `@${digest}`}`;

/** Unencrypted on this host only. */
export const baseUrl = ({ host }: Reference): URL => {
  if (host === DOCKER_HUB) return new URL('https://registry-1.docker.io');
  const isHere = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::|$)/.test(host);
  return new URL(`${isHere ? 'http' : 'https'}://${host}`);
};
