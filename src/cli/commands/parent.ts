import { formatBytes, formatMs } from '../../contract/units.js';
import { rootfsDir } from '../../main/paths.js';
import { buildRootfs } from '../../main/oci/rootfs.js';
import { requirePackages } from '../../main/oci/extras.js';
import { copySparse } from '../../main/sparse-file.js';
import { slugOf } from '../../main/oci/slug.js';
import { HalfFile } from '../../main/store/half-file.js';
import type { Command } from '../command.js';
import { Bar, detail, line, step, warn } from '../progress.js';
import { printJson } from '../render.js';
import { withEngine } from '../with-engine.js';
import { ForkdError } from '../../contract/errors.js';

export const parent: Command = {
  name: 'parent',
  args: '<action> <image>',
  usage: 'parent build <image>',
  description: 'Make a root disk of a container image or a root file system, without Docker and without root',
  options: [
    ['-o, --output <PATH>', 'The disk (default: ./<image>.ext4)'],
    ['--extra <PACKAGE>', 'Add a package, by its own apt, apk or dnf, in a VM (repeatable)'],
    ['--size-mib <N>', 'The least size of the disk, MiB; guests write to RAM, so it needs none to spare'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd parent build debian:12 -o base.ext4                    # from its registry',
    'forkd parent build debian:12 --extra git --extra curl -o git.ext4',
    'forkd parent build ./image.tar                  # docker save, or an OCI archive; also .tar.gz and .tar.zst',
    'forkd parent build ./layout -o base.ext4        # an OCI layout, or the directory of a root file system',
    'forkd snapshot --tag mine --rootfs base.ext4',
  ],
  run: (options) => {
    const [action, image, ...more] = options.positional;
    if (action !== 'build') throw options.wrong('ACTION', `'${action}' is not build`);
    if (image === undefined || more.length > 0) throw options.wrong('IMAGE', 'is to be given once');
    const out = options.string('output', { short: 'o' }) ?? `./${slugOf(image)}.ext4`;
    const sizeMib = options.count('size-mib');
    const extras = options.strings('extra');
    requirePackages(extras, 'parent build');
    return withEngine(async (engine, signal) => {
      const bar = new Bar('   ', formatBytes);
      const half = HalfFile.of(engine.store.root, out);
      try {
        const request = { image, extras, ...(sizeMib === undefined ? {} : { sizeMib }) };
        const { path, record, cached } = await buildRootfs(rootfsDir(), request, {
          signal,
          install: (disk, name, packages) => engine.installExtras(disk, name, packages, signal),
          onStep: step,
          onRetry: (reason, ms) => warn(`${reason}: trying again in ${formatMs(ms)}`),
          onProgress: (done, total) => bar.update(done, Math.max(done, total)),
        }).finally(() => bar.end());
        if (cached) detail('nothing has changed since it was built');
        await copySparse(path, half.path, signal);
        half.publish();
        line(`✓ ${out} (${formatBytes(record.bytes)})`);
        if (options.flag('json')) printJson({ output: out, ...record, cached });
        return 0;
      } catch (error) {
        throw signal.aborted ? new ForkdError('CANCELLED') : error;
      } finally {
        half.close();
      }
    });
  },
};
