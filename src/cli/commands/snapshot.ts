import { DEFAULT_BOOT_WAIT_SECS, DEFAULT_MEMORY_MIB, DEFAULT_VCPUS, parseVolume } from '../../main/make-snapshot.js';
import { ForkdError } from '../../contract/errors.js';
import { formatBytes, formatMs } from '../../contract/units.js';
import type { Command } from '../command.js';
import { detail, line, step } from '../progress.js';
import { StepProgress } from '../setup.js';
import { printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

export const snapshot: Command = {
  name: 'snapshot',
  description: 'Boot a parent VM, warm it, and save it under a tag',
  options: [
    ['--tag <TAG>', 'Name of the snapshot'],
    ['--kernel <PATH>', 'Kernel (env FORKD_KERNEL; default: the embedded Debian cloud kernel)'],
    ['--initrd <PATH>', 'Initramfs (default: the embedded one, which brings the agent)'],
    ['--rootfs <PATH>', 'Root file system image with python3 (env FORKD_ROOTFS; default: the embedded Python + numpy)'],
    [
      '--rw',
      'Accepted for compatibility: every root is writable, through an overlay in guest RAM; the image never changes',
    ],
    ['--tap <NAME>', 'Give the guest a network card on this host tap (env FORKD_TAP; default: none)'],
    [
      '--boot-wait-secs <N>',
      `Longest wait for the agent, seconds (default ${DEFAULT_BOOT_WAIT_SECS}); it is asked, not slept for`,
    ],
    ['--mem-size-mib <N>', `Guest memory, MiB (default ${DEFAULT_MEMORY_MIB})`],
    ['--vcpus <N>', `Virtual CPUs (default ${DEFAULT_VCPUS})`],
    ['--volume <HOST:GUEST[:ro|:rw]>', 'Attach a disk image; repeatable; writes stay in each child'],
    ['--warm-eval <CODE>', 'Python that the warm interpreter runs before it is saved, e.g. "import pandas"'],
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
    ['--force', 'Replace an existing tag'],
    ['--keep-workdir', 'Keep the work directory with the console log'],
    ['--json', 'Print the result as one JSON object'],
    ['--from-sandbox <ID>', 'Snapshot a running sandbox (needs the daemon)'],
    ['--diff', 'With --from-sandbox: store only what changed'],
    ['--live', 'With --from-sandbox: do not pause while copying'],
    ['--no-wait', 'With --live: return at once'],
  ],
  examples: [
    'forkd snapshot --tag base',
    'forkd snapshot --tag ml --mem-size-mib 1024 --warm-eval "import numpy.linalg"',
  ],
  run: (options) => {
    if (options.string('from-sandbox') !== undefined) throw new ForkdError('DAEMON_NEEDED', { what: '--from-sandbox' });
    for (const name of ['diff', 'live']) {
      if (options.flag(name)) throw options.wrong(`--${name}`, 'needs --from-sandbox');
    }
    const require = options.requireIsolation();
    const optional = {
      kernel: options.string('kernel', { env: 'FORKD_KERNEL' }),
      initrd: options.string('initrd'),
      rootfs: options.string('rootfs', { env: 'FORKD_ROOTFS' }),
      tap: options.string('tap', { env: 'FORKD_TAP' }),
      bootWaitSecs: options.count('boot-wait-secs'),
      memoryMib: options.count('mem-size-mib'),
      vcpus: options.count('vcpus'),
      warmEval: options.string('warm-eval'),
      require,
    };
    const request = {
      tag: options.required('tag'),
      volumes: options.strings('volume').map(parseVolume),
      force: options.flag('force'),
      keepWorkDir: options.flag('keep-workdir'),
      ...(Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)) as Record<
        string,
        never
      >),
    };
    return withEngine(async (engine, signal) => {
      const progress = new StepProgress();
      const { manifest, dir, boot_ms, state_ms, memory_ms, written_bytes } = await engine
        .snapshot(request, { signal, onStep: step, onProgress: progress.update })
        .finally(() => progress.end());
      detail(
        `device state ${formatBytes(manifest.vmstate_bytes)} in ${formatMs(state_ms)}, memory ${formatBytes(written_bytes)} in ${formatMs(memory_ms)}`,
      );
      line(`✓ snapshot '${manifest.tag}' (${manifest.isolation}) in ${dir}`);
      line(`  fork it: forkd fork --tag ${manifest.tag} -n 10`);
      if (options.flag('json'))
        printJson({
          tag: manifest.tag,
          dir,
          isolation: manifest.isolation,
          boot_ms,
          state_ms,
          memory_ms,
          written_bytes,
        });
      return 0;
    });
  },
};
