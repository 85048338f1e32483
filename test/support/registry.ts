/** A registry of images on loopback: the distribution API with a token server, uploads, ranges, and blobs behind redirects. */
import type { ServerResponse } from 'node:http';
import { type Heard, sendFile, serve, type WebServer } from './http.js';
import { type BuiltImage, sha } from './oci.js';

export interface RegistryOptions {
  /** `USER:PASSWORD` that tokens, or Basic, are given for; without it, tokens are for everybody. */
  user?: string;
  auth?: 'none' | 'token' | 'basic';
  /** Answers instead, when it returns true. */
  before?: (request: Heard, response: ServerResponse) => boolean;
  /** Likewise of the server that has the blobs. */
  beforeBlob?: (request: Heard, response: ServerResponse) => boolean;
}

export interface TestRegistry {
  /** `127.0.0.1:PORT` */
  host: string;
  heard: Heard[];
  /** What the server that has the blobs heard. */
  storeHeard: Heard[];
  blobs: Map<string, Buffer>;
  /** By `REPOSITORY:REFERENCE`. */
  manifests: Map<string, Buffer>;
  /** `name` is `REPOSITORY:TAG`. */
  put(name: string, image: BuiltImage): string;
  close(): Promise<void>;
}

const TOKEN = 'token-of-the-test';

export const startRegistry = async (options: RegistryOptions = {}): Promise<TestRegistry> => {
  const { auth = 'none', user } = options;
  const blobs = new Map<string, Buffer>();
  const manifests = new Map<string, Buffer>();
  const uploads = new Set<string>();
  const basic = user === undefined ? undefined : `Basic ${Buffer.from(user).toString('base64')}`;

  const store = await serve((request, response) => {
    if (options.beforeBlob?.(request, response)) return;
    const content = blobs.get(request.path.slice(1));
    if (content) sendFile(request, response, content, `"${request.path}"`);
    else response.writeHead(404).end();
  });
  const web: WebServer = await serve((request, response) => {
    const { method, path, headers, body } = request;
    const url = new URL(path, web.url);
    const error = (status: number, code: string, more = {}): void =>
      void response.writeHead(status, more).end(JSON.stringify({ errors: [{ code, message: code.toLowerCase() }] }));
    if (url.pathname === '/token') {
      if (basic !== undefined && headers.authorization !== basic) return error(401, 'UNAUTHORIZED');
      response.end(JSON.stringify({ token: TOKEN }));
      return;
    }
    if (options.before?.(request, response)) return;
    if (auth === 'token' && headers.authorization !== `Bearer ${TOKEN}`)
      return error(401, 'UNAUTHORIZED', { 'www-authenticate': `Bearer realm="${web.url}/token",service="test"` });
    if (auth === 'basic' && headers.authorization !== basic)
      return error(401, 'UNAUTHORIZED', { 'www-authenticate': 'Basic realm="test"' });
    const [, repository = '', kind = '', name = ''] =
      /^\/v2\/(.+?)\/(manifests|blobs\/uploads|blobs)\/(.*)$/.exec(url.pathname) ?? [];
    if (kind === 'manifests' && method === 'PUT') {
      manifests.set(`${repository}:${name}`, body);
      manifests.set(`${repository}:sha256:${sha(body)}`, body);
      response.writeHead(201).end();
    } else if (kind === 'manifests') {
      const content = manifests.get(`${repository}:${name}`);
      if (!content) return error(404, 'MANIFEST_UNKNOWN');
      response.writeHead(200, { 'content-type': 'application/vnd.oci.image.manifest.v1+json' }).end(content);
    } else if (kind === 'blobs/uploads' && method === 'POST') {
      uploads.add(`u${uploads.size}`);
      response.writeHead(202, { location: `/v2/${repository}/blobs/uploads/u${uploads.size - 1}?state=x` }).end();
    } else if (kind === 'blobs/uploads' && method === 'PUT') {
      const digest = url.searchParams.get('digest');
      if (!uploads.has(name) || url.searchParams.get('state') !== 'x' || digest !== `sha256:${sha(body)}`)
        return error(400, 'DIGEST_INVALID');
      blobs.set(digest, body);
      response.writeHead(201).end();
    } else if (!blobs.has(name)) error(404, 'BLOB_UNKNOWN');
    else if (method === 'HEAD') response.writeHead(200).end();
    else response.writeHead(307, { location: `${store.url}/${name}` }).end();
  });
  return {
    host: web.url.slice('http://'.length),
    heard: web.heard,
    storeHeard: store.heard,
    blobs,
    manifests,
    put: (name, image) => {
      const manifest = image.blobs.get(image.manifest.digest) as Buffer;
      for (const [digest, content] of image.blobs) blobs.set(digest, content);
      manifests.set(name, manifest);
      manifests.set(`${name.replace(/:[^:]*$/, '')}:${image.manifest.digest}`, manifest);
      return image.manifest.digest;
    },
    close: async () => {
      await web.close();
      await store.close();
    },
  };
};
