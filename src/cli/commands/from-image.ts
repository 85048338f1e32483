import { formatMs } from '../../contract/units.js';
import { snapshotImage } from '../../main/from-image.js';
import type { Command } from '../command.js';
import { imageHooks, imageOptions, readImageRequest } from '../image-options.js';
import { tellSnapshot } from '../made-snapshot.js';
import { detail } from '../progress.js';
import { volumeOption, volumesOf } from '../volume-options.js';
import { withEngine } from '../with-engine.js';

export const fromImage: Command = {
  name: 'from-image',
  args: '<image>',
  description: 'Make a snapshot of a container image: build its root disk, boot it, warm it, save it',
  options: [
    ['--tag <TAG>', 'Name of the snapshot'],
    ...imageOptions,
    volumeOption,
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
    ['--force', 'Replace an existing tag'],
    ['--keep-workdir', 'Keep the work directory with the console log'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd from-image ghcr.io/owner/app:v2 --tag app',
    'forkd from-image ./image.tar --tag mine',
    "forkd from-image ./layout --tag app --warm 'node /app/warm.js'",
    'forkd fork --tag mine -n 10 -- cat /etc/os-release',
  ],
  run: (options) => {
    const request = {
      ...readImageRequest(options, options.one('IMAGE')),
      tag: options.required('tag'),
      volumes: volumesOf(options),
      force: options.flag('force'),
      keepWorkDir: options.flag('keep-workdir'),
    };
    return withEngine(async (engine, signal) => {
      const hooks = imageHooks(signal);
      const { rootfs, snapshot } = await snapshotImage(engine, request, hooks).finally(hooks.end);
      detail(
        `agent in ${rootfs.record.agent === 'c' ? 'C: the image has no Python' : 'Python'}, up after ${formatMs(snapshot.boot_ms)}`,
      );
      const { agent, config, key } = rootfs.record;
      tellSnapshot(snapshot, options.flag('json'), { rootfs: rootfs.path, key, agent, config });
      return 0;
    });
  },
};
