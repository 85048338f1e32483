/** Images for tests: layers, and the ways in which they lie on a disk or in a registry. */
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import * as tar from 'tar-stream';
import { compress } from 'zstd-napi';

export interface Item {
  name: string;
  type?: 'file' | 'symlink' | 'link' | 'directory' | 'character-device' | 'block-device' | 'fifo';
  to?: string;
  body?: string | Buffer;
  mode?: number;
  uid?: number;
  gid?: number;
  devmajor?: number;
  devminor?: number;
  pax?: Record<string, string>;
}

export const layer = async (items: Item[]): Promise<Buffer> => {
  const archive = tar.pack();
  for (const { name, type = 'file', to, body = '', mode, ...rest } of items) {
    const standard = type === 'directory' ? 0o755 : 0o644;
    const header = {
      name,
      type,
      mode: mode ?? standard,
      mtime: new Date(1e12),
      ...rest,
      ...(to === undefined ? {} : { linkname: to }),
    };
    archive.entry(header as tar.Header, type === 'file' ? body : '');
  }
  archive.finalize();
  const parts: Buffer[] = [];
  for await (const part of archive) parts.push(part as Buffer);
  return Buffer.concat(parts);
};

export const sha = (content: Buffer | string): string => createHash('sha256').update(content).digest('hex');

export interface Blob {
  mediaType: string;
  digest: string;
  size: number;
}

/** Everything of an image by digest, the manifest's descriptor, and what `docker save` would call the rest. */
export interface BuiltImage {
  blobs: Map<string, Buffer>;
  manifest: Blob;
  config: Buffer;
  layers: Buffer[];
}

const COMPRESSIONS = {
  plain: { suffix: '', pack: (content: Buffer) => content },
  gzip: { suffix: '+gzip', pack: (content: Buffer) => gzipSync(content) },
  zstd: { suffix: '+zstd', pack: (content: Buffer) => Buffer.from(compress(content)) },
};

export const buildImage = (
  layers: Buffer[],
  config: object = {},
  compression: keyof typeof COMPRESSIONS = 'gzip',
  platform = { os: 'linux', architecture: 'amd64' },
): BuiltImage => {
  const blobs = new Map<string, Buffer>();
  const put = (mediaType: string, content: Buffer): Blob => {
    const digest = `sha256:${sha(content)}`;
    blobs.set(digest, content);
    return { mediaType, digest, size: content.length };
  };
  const { suffix, pack } = COMPRESSIONS[compression];
  const rootfs = { type: 'layers', diff_ids: layers.map((one) => `sha256:${sha(one)}`) };
  const document = Buffer.from(JSON.stringify({ ...platform, config, rootfs }));
  const manifest = {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: put('application/vnd.oci.image.config.v1+json', document),
    layers: layers.map((one) => put(`application/vnd.oci.image.layer.v1.tar${suffix}`, pack(one))),
  };
  return { blobs, manifest: put(manifest.mediaType, Buffer.from(JSON.stringify(manifest))), config: document, layers };
};

const layoutFiles = ({ blobs, manifest }: BuiltImage): [name: string, content: Buffer][] => [
  ['oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')],
  ['index.json', Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [manifest] }))],
  ...[...blobs].map(([digest, content]): [string, Buffer] => [`blobs/${digest.replace(':', '/')}`, content]),
];

export const writeLayout = (dir: string, image: BuiltImage): string => {
  for (const [name, content] of layoutFiles(image)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true });
    writeFileSync(join(dir, name), content);
  }
  return dir;
};

export const ociArchive = (image: BuiltImage): Promise<Buffer> =>
  layer(layoutFiles(image).map(([name, body]) => ({ name, body })));

/** As `docker save` wrote them before it wrote OCI layouts; a layer that occurs again is a link. */
export const savedArchive = ({ config, layers }: BuiltImage): Promise<Buffer> => {
  const names = layers.map((one, i) => `${i}${sha(one).slice(0, 20)}/layer.tar`);
  const first = (i: number): number => layers.findIndex((one) => one.equals(layers[i] as Buffer));
  const manifest = [{ Config: `${sha(config)}.json`, RepoTags: ['test:latest'], Layers: names }];
  return layer([
    ...layers.map((body, i): Item => {
      const name = names[i] as string;
      return first(i) === i ? { name, body } : { name, type: 'symlink', to: `../${names[first(i)]}` };
    }),
    { name: `${sha(config)}.json`, body: config },
    { name: 'manifest.json', body: JSON.stringify(manifest) },
  ]);
};
