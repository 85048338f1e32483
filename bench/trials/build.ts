import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Engine } from '../../src/main/engine.js';
import { buildRootfs } from '../../src/main/oci/rootfs.js';
import type { Bench } from '../bench.js';
import { median, round } from '../stats.js';

const MIB = 1024 * 1024;

interface Trial {
  build_ms: number;
  tar_ms: number;
  archive_bytes: number;
  disk_bytes: number;
}

const sha = (content: Buffer | string): string => createHash('sha256').update(content).digest('hex');

const ARCHIVE_BYTES = 150 * MIB;
const FILLER_BYTES = 64 * 1024;

/** Files of noise in `folder`, beside what is there, so that an archive of them has its size. */
const fill = (folder: string, archiveBytes: number): void => {
  mkdirSync(join(folder, 'filler'));
  for (let at = archiveBytes, i = 0; at < ARCHIVE_BYTES; at += FILLER_BYTES, i++)
    writeFileSync(join(folder, 'filler', String(i)), randomBytes(FILLER_BYTES));
};

/** An OCI archive with the Debian packages of the default guest and some noise in one layer, not compressed. */
const makeArchive = (folder: string, rootfs: string): { archive: string; layer: string } => {
  const [tree, layout] = [join(folder, 'tree'), join(folder, 'layout')];
  const blobs = join(layout, 'blobs', 'sha256');
  mkdirSync(tree);
  mkdirSync(blobs, { recursive: true });
  execFileSync('debugfs', ['-R', `rdump / ${tree}`, rootfs], { stdio: 'ignore' });
  fill(tree, statSync(rootfs).size);
  const raw = join(folder, 'layer.tar');
  execFileSync('tar', ['--format=pax', '-C', tree, '-cf', raw, '.']);
  rmSync(tree, { recursive: true });
  const content = readFileSync(raw);
  const put = (blob: Buffer | string, mediaType: string) => {
    const digest = sha(blob);
    writeFileSync(join(blobs, digest), blob);
    return { mediaType, digest: `sha256:${digest}`, size: Buffer.byteLength(blob) };
  };
  const digest = sha(content);
  renameSync(raw, join(blobs, digest));
  const type = 'application/vnd.oci.image';
  const layer = { mediaType: `${type}.layer.v1.tar`, digest: `sha256:${digest}`, size: content.length };
  const rootfsOf = { type: 'layers', diff_ids: [layer.digest] };
  const config = put(
    JSON.stringify({ os: 'linux', architecture: 'amd64', config: {}, rootfs: rootfsOf }),
    `${type}.config.v1+json`,
  );
  const manifest = put(JSON.stringify({ schemaVersion: 2, config, layers: [layer] }), `${type}.manifest.v1+json`);
  writeFileSync(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
  writeFileSync(join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [manifest] }));
  const archive = join(folder, 'image.tar');
  execFileSync('tar', ['-C', layout, '-cf', archive, 'oci-layout', 'index.json', 'blobs']);
  rmSync(layout, { recursive: true });
  return { archive, layer: `blobs/sha256/${digest}` };
};

const timed = async (work: () => unknown): Promise<number> => {
  const began = performance.now();
  await work();
  return performance.now() - began;
};

const trial = async (): Promise<Trial> => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  const engine = new Engine();
  try {
    const { rootfs } = await engine.image();
    const { archive, layer } = makeArchive(folder, rootfs);
    const into = join(folder, 'into');
    mkdirSync(into);
    const tar_ms = await timed(() =>
      execFileSync('sh', ['-c', `tar -xOf '${archive}' ${layer} | tar -x --xattrs --numeric-owner -C '${into}'`]),
    );
    let path = '';
    const build_ms = await timed(async () => {
      path = (await buildRootfs(join(folder, 'cache'), { image: archive })).path;
    });
    return { build_ms, tar_ms, archive_bytes: statSync(archive).size, disk_bytes: statSync(path).size };
  } finally {
    await engine.close();
    rmSync(folder, { recursive: true });
  }
};

export const buildBench: Bench<Trial> = {
  name: 'build',
  description:
    'A root disk of an OCI archive of 150 MB that has the Debian packages of the default guest and files of noise in one layer, not compressed: checked digests, every file, ext4, its hash. ' +
    'Beside it (tar_ms) the system’s tar, which takes the layer out of the archive and extracts it, and checks nothing. Sources in the page cache; neither waits for the disk.',
  full: { n: 1, trials: 5 },
  smoke: { n: 1, trials: 1 },
  trial,
  summarise: (trials) => {
    const of = (key: keyof Trial) => median(trials.map((t) => t[key]));
    return {
      archive_mib: round(of('archive_bytes') / MIB),
      disk_mib: round(of('disk_bytes') / MIB),
      build_ms: round(of('build_ms')),
      tar_ms: round(of('tar_ms')),
      ratio: round(median(trials.map((t) => t.build_ms / t.tar_ms))),
      failed: 0,
    };
  },
};
