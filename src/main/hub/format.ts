/** Version 3 of packs: what manifest.toml says, and its checks. A reader believes nothing else about an archive. */
import { parse, stringify } from 'smol-toml';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { isTag } from '../../contract/names.js';

export const PACK_VERSION = 3;
export const PACK_MANIFEST = 'manifest.toml';

/** One entry of the archive. A layer, and what was moved out of it, is known by its root hash, every other file by its BLAKE3. */
export interface PackFile {
  path: string;
  size: number;
  blake3?: string;
  root?: string;
  /** Of memory.pages: the root disk, and further disks: where the pages are. */
  disk?: string;
  also?: string[];
}

export interface PackManifest {
  forkd_pack_version: typeof PACK_VERSION;
  /** The head of the chain. */
  tag: string;
  description?: string;
  base_image?: string;
  created_at: string;
  forkd_version: string;
  compatibility: { isolation: string; vmm_version: string; machine: string; tsc_khz: number; agent_generation: number };
  /** Base first. */
  chain: { tag: string; memory_root: string }[];
  /** In the order of the archive. */
  files: PackFile[];
}

export const linkPath = (tag: string, file: string): string => `chain/${tag}/${file}`;
export const diskPath = (blake3: string): string => `disks/${blake3}`;
/** The disks through which pages are counted. */
export const sharedDisks = ({ disk = '', also = [] }: PackFile): string[] => [disk, ...also].map(diskPath);

export const writePackManifest = (manifest: PackManifest): Buffer => Buffer.from(stringify(manifest));

export const invalid = (path: string, reason: string, cause?: unknown): ForkdError =>
  new ForkdError('PACK_INVALID', { path, reason }, cause);

/** `path` is for errors. Throws PACK_INVALID, PACK_UNREADABLE. */
export const readPackManifest = (path: string, text: Buffer): PackManifest => {
  let value: Partial<PackManifest>;
  try {
    value = parse(new TextDecoder('utf-8', { fatal: true }).decode(text)) as Partial<PackManifest>;
  } catch (error) {
    throw invalid(path, `${PACK_MANIFEST}: ${reasonOf(error)}`, error);
  }
  const version = value.forkd_pack_version as unknown;
  if (version !== PACK_VERSION)
    throw new ForkdError('PACK_UNREADABLE', { path, reason: `its version is ${String(version)}` });
  const wrong = firstWrong(value);
  if (wrong !== undefined) throw invalid(path, `${PACK_MANIFEST}: ${wrong}`);
  return value as PackManifest;
};

const HASH = /^[0-9a-f]{64}$/;
/** Of each link, in this order: all that is small, then the layer. */
export const SMALL_LINK_FILES = [
  'snapshot.json',
  'vmstate',
  'memory.pages',
  'disk.blocks',
  'working-set',
  'memory.runs',
  'memory.first',
] as const;
export const LINK_FILES = [...SMALL_LINK_FILES, 'memory.layer'] as const;
type LinkFile = (typeof LINK_FILES)[number];
const MAY_BE_EMPTY: readonly LinkFile[] = ['memory.pages', 'disk.blocks', 'working-set'];
/** Parts of the layer, and known by what the layer is known by. */
const OF_LAYER: readonly LinkFile[] = ['memory.first', 'memory.layer'];

const haveDisksOf = (disks: PackFile[], pages: PackFile): boolean => {
  if (typeof pages.disk !== 'string' || !Array.isArray(pages.also ?? [])) return false;
  const wanted = sharedDisks(pages);
  return wanted.length <= disks.length && wanted.every((path) => disks.some((disk) => disk.path === path));
};

const firstWrong = ({ tag, chain, files }: Partial<PackManifest>): string | undefined => {
  if (typeof tag !== 'string' || !isTag(tag)) return 'its tag is not one';
  if (!Array.isArray(chain) || chain.length === 0 || chain.length > limits.chainDepthMax + 1)
    return 'its chain is wrong';
  for (const link of chain) {
    if (typeof link?.tag !== 'string' || !isTag(link.tag)) return 'a tag of its chain is not one';
    if (!HASH.test(String(link.memory_root))) return `the root of '${link.tag}' is not a hash`;
  }
  if (new Set(chain.map((link) => link.tag)).size !== chain.length) return 'a tag occurs twice in its chain';
  if (chain.at(-1)?.tag !== tag) return 'its chain does not end in its tag';
  if (!Array.isArray(files)) return 'it lists no files';
  const expected = chain.flatMap((link) => LINK_FILES.map((file) => linkPath(link.tag, file)));
  const disks = files.slice(expected.length);
  if (expected.some((path, i) => files[i]?.path !== path)) return 'its files are not those of its chain';
  if (disks.length === 0 || disks.length > chain.length * 3) return 'its number of disks is wrong';
  for (const [i, file] of files.entries()) {
    const kind = i < expected.length ? LINK_FILES[i % LINK_FILES.length] : undefined;
    if (!Number.isSafeInteger(file.size) || file.size < (kind && MAY_BE_EMPTY.includes(kind) ? 0 : 1))
      return `the size of ${file.path} is wrong`;
    if ('sha256' in file) return 'an older version of forkd made it; pack it again';
    const root = chain[Math.floor(i / LINK_FILES.length)]?.memory_root;
    if (kind && OF_LAYER.includes(kind) ? file.root !== root : !HASH.test(String(file.blake3)))
      return `the hash of ${file.path} is wrong`;
    if (kind === 'memory.pages' && !haveDisksOf(disks, file)) return `a disk of ${file.path} is not in it`;
    if (i >= expected.length && file.path !== diskPath(String(file.blake3))) return 'a disk is not named by its hash';
  }
  if (new Set(files.map((file) => file.path)).size !== files.length) return 'a file occurs twice';
  return undefined;
};
