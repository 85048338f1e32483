/**
 * What manifest.toml of a pack of version 1 or 2 says, and its checks. Such a pack holds whole memory images and SHA-256 of its files, as the first tool of
 * this name wrote them: version 1 one snapshot, version 2 a chain, each link in a folder of its own. A kernel and an initramfs are ours, where they are there.
 */
import { parse, stringify } from 'smol-toml';
import { reasonOf } from '../../../contract/errors.js';
import { limits } from '../../../contract/limits.js';
import { isTag } from '../../../contract/names.js';
import { MANIFEST_FILE, STATE_FILE } from '../../../contract/snapshot.js';
import { invalid, PACK_MANIFEST } from '../format.js';

export type PlainVersion = 1 | 2;

export const MEMORY_IMAGE = 'memory.bin';
export const ROOTFS = 'rootfs.ext4';
/** In the order in which they are written: the image last. */
export const PLAIN_FILES = [MANIFEST_FILE, STATE_FILE, 'kernel', 'initrd', ROOTFS, MEMORY_IMAGE] as const;
export type PlainFileName = (typeof PLAIN_FILES)[number];

export interface PlainFile {
  /** In version 2 without the link's folder. */
  path: PlainFileName;
  size: number;
  sha256: string;
}

export interface PlainLink {
  tag: string;
  parent_tag?: string;
  /** SHA-256 of the parent's memory.bin. */
  parent_content_hash?: string;
  files: PlainFile[];
}

export interface PlainManifest {
  forkd_pack_version: PlainVersion;
  tag: string;
  description?: string;
  base_image?: string;
  created_at: string;
  forkd_version: string;
  parent_tag?: string;
  /** Empty in version 2. */
  files: PlainFile[];
  /** Base first; only in version 2. */
  chain?: PlainLink[];
  /** Of the root disk, which is beside the pack. `target_path` is where its maker had it: nothing is ever written there. */
  rootfs?: { target_path: string; sha256: string; size: number };
}

/** Where a file of a link is in the archive. */
export const entryName = ({ forkd_pack_version }: PlainManifest, link: PlainLink, file: PlainFileName): string =>
  forkd_pack_version === 1 ? file : `${link.tag}/${file}`;

/** Base first; of version 1 the one that it has. */
export const linksOf = ({ tag, files, chain = [] }: PlainManifest): PlainLink[] =>
  chain.length > 0 ? chain : [{ tag, files }];

export const fileOf = (link: PlainLink, name: PlainFileName): PlainFile | undefined =>
  link.files.find(({ path }) => path === name);

export const writePlainManifest = (manifest: PlainManifest): Buffer => Buffer.from(stringify(manifest));

/** `path` is for errors. Throws PACK_INVALID. */
export const readPlainManifest = (path: string, text: Buffer): PlainManifest => {
  let value: Partial<PlainManifest>;
  try {
    value = parse(new TextDecoder('utf-8', { fatal: true }).decode(text)) as Partial<PlainManifest>;
  } catch (error) {
    throw invalid(path, `${PACK_MANIFEST}: ${reasonOf(error)}`, error);
  }
  const wrong = firstWrong(value);
  if (wrong !== undefined) throw invalid(path, `${PACK_MANIFEST}: ${wrong}`);
  return value as PlainManifest;
};

const HASH = /^[0-9a-f]{64}$/;

const firstWrong = (value: Partial<PlainManifest>): string | undefined => {
  const { tag, files, chain = [], rootfs } = value;
  if (typeof tag !== 'string') return 'it has no tag';
  if (!Array.isArray(files) || !Array.isArray(chain)) return 'it lists no files';
  if (value.forkd_pack_version === 2 ? files.length > 0 || chain.length === 0 : chain.length > 0)
    return 'its files are where another version has them';
  if (chain.length > limits.chainDepthMax + 1) return 'its chain is too long';
  if (rootfs !== undefined && !isRootfs(rootfs)) return 'its root disk is wrong';
  const links = linksOf(value as PlainManifest);
  for (const link of links) {
    const wrong = wrongLink(link);
    if (wrong !== undefined) return wrong;
  }
  if (new Set(links.map((link) => link.tag)).size !== links.length) return 'a tag occurs twice in its chain';
  return wrongOrder(links);
};

const isRootfs = ({ sha256, size }: NonNullable<PlainManifest['rootfs']>): boolean =>
  HASH.test(String(sha256)) && Number.isSafeInteger(size) && size > 0;

const wrongLink = (link: PlainLink): string | undefined => {
  // Said before anything is written: it becomes the name of a directory.
  if (typeof link?.tag !== 'string' || !isTag(link.tag)) return 'its tag is not one';
  if (!Array.isArray(link.files)) return `'${link.tag}' has no files`;
  for (const file of link.files) {
    if (!(PLAIN_FILES as readonly unknown[]).includes(file?.path))
      return `'${link.tag}' has a file that no snapshot has`;
    if (!Number.isSafeInteger(file.size) || file.size < 1) return `the size of ${file.path} of '${link.tag}' is wrong`;
    if (!HASH.test(String(file.sha256))) return `the hash of ${file.path} of '${link.tag}' is wrong`;
  }
  if (new Set(link.files.map((file) => file.path)).size !== link.files.length) return `'${link.tag}' has a file twice`;
  for (const name of [STATE_FILE, MEMORY_IMAGE] as const)
    if (!fileOf(link, name)) return `'${link.tag}' has no ${name}`;
  return undefined;
};

const wrongOrder = (links: PlainLink[]): string | undefined => {
  for (const [i, { tag, parent_tag, parent_content_hash }] of links.entries()) {
    const parent = links[i - 1];
    if (parent_tag !== parent?.tag) return `'${tag}' does not follow its parent`;
    if (parent && parent_content_hash !== fileOf(parent, MEMORY_IMAGE)?.sha256)
      return `'${tag}' is a difference to another memory than that of '${parent.tag}'`;
  }
  return undefined;
};
