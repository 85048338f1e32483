import { ForkdError } from '../../contract/errors.js';
import { runImage } from '../../main/from-image.js';
import type { Command } from '../command.js';
import { imageHooks, imageOptions, readImageRequest } from '../image-options.js';
import { printRaw } from '../render.js';
import { volumeOption, volumesOf } from '../volume-options.js';
import { withEngine } from '../with-engine.js';

const DEFAULT_TIMEOUT_SECS = 600;

export const run: Command = {
  name: 'run',
  usage: 'run --image <IMAGE> [options] [-- CMD ARGS]',
  description: "Run a command in a fresh VM of a container image; exits with the command's exit code",
  options: [
    ['--image <IMAGE>', 'Its name in a registry, an archive, an OCI layout, or a root file system'],
    ...imageOptions,
    volumeOption,
    ['--timeout-secs <N>', `Longest run, seconds (default ${DEFAULT_TIMEOUT_SECS})`],
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
  ],
  examples: [
    'forkd run --image debian:12 -- cat /etc/os-release',
    "forkd run --image ./image.tar      # the image's ENTRYPOINT and CMD",
    'forkd run --image debian:12 --volume data.ext4:/data:ro -- ls /data',
  ],
  run: (options) => {
    const timeoutSecs = options.count('timeout-secs') ?? DEFAULT_TIMEOUT_SECS;
    const request = {
      ...readImageRequest(options, options.required('image')),
      volumes: volumesOf(options),
      args: options.rest,
      timeoutSecs,
    };
    return withEngine(async (engine, signal) => {
      const hooks = imageHooks(signal);
      const reply = await runImage(engine, request, hooks).finally(hooks.end);
      printRaw(reply.stdout ?? '');
      process.stderr.write(reply.stderr ?? '');
      if (reply.timed_out) throw new ForkdError('EXEC_TIMEOUT', { seconds: timeoutSecs });
      if (reply.error !== undefined) throw new ForkdError('AGENT_ERROR', { error: reply.error });
      return reply.exit_code & 0xff;
    });
  },
};
