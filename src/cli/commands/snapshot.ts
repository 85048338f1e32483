import { DEFAULT_BOOT_WAIT_SECS, DEFAULT_MEMORY_MIB, DEFAULT_VCPUS } from '../../main/make-snapshot.js';
import { formatBytes, formatMs } from '../../contract/units.js';
import { daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { tellSnapshot } from '../made-snapshot.js';
import { detail, step } from '../progress.js';
import { StepProgress } from '../setup.js';
import { volumeOption, volumesOf } from '../volume-options.js';
import { withEngine } from '../with-engine.js';
import { warmOf } from '../image-options.js';
import { branchSandbox } from './snapshot-branch.js';

export const snapshot: Command = {
  name: 'snapshot',
  description: 'Boot a parent VM, warm it, and save it under a tag',
  options: [
    ['--tag <TAG>', 'Name of the snapshot'],
    ['--kernel <PATH>', 'Kernel (env FORKD_KERNEL; default: the embedded Debian cloud kernel)'],
    ['--initrd <PATH>', 'Initramfs (default: the embedded one, which brings the agent)'],
    ['--rootfs <PATH>', 'Root file system image (env FORKD_ROOTFS; default: the embedded Python + numpy)'],
    [
      '--rw',
      'Accepted for compatibility: every root is writable, through an overlay in guest RAM; the image never changes',
    ],
    ['--net', 'Give the guest a network card, for `fork --net`: it leads nowhere until then (root)'],
    [
      '--tap <NAME>',
      'Give the guest a network card on this host tap, which is made if it is not there (env FORKD_TAP; default: none)',
    ],
    [
      '--boot-wait-secs <N>',
      `Longest wait for the agent, seconds (default ${DEFAULT_BOOT_WAIT_SECS}); it is asked, not slept for`,
    ],
    ['--mem-size-mib <N>', `Guest memory, MiB (default ${DEFAULT_MEMORY_MIB})`],
    ['--vcpus <N>', `Virtual CPUs (default ${DEFAULT_VCPUS})`],
    volumeOption,
    ['--warm <CMD>', 'Run this in the parent before it is saved, without a shell; it must end with 0'],
    ['--warm-eval <CODE>', 'Python that the warm interpreter runs before it is saved, e.g. "import pandas"'],
    ['--require <kvm|tcg>', 'Refuse any other isolation'],
    ['--force', 'Replace an existing tag'],
    ['--keep-workdir', 'Keep the work directory with the console log'],
    ['--json', 'Print the result as one JSON object'],
    ['--from-sandbox <ID>', 'Snapshot a running sandbox (needs the daemon)'],
    ['--diff', 'With --from-sandbox: store only what changed'],
    ['--live', 'With --from-sandbox: do not pause while copying'],
    ['--no-wait', 'With --live: return at once'],
    ...daemonOptions,
  ],
  examples: [
    'forkd snapshot --tag base',
    'forkd snapshot --tag ml --mem-size-mib 1024 --warm-eval "import numpy.linalg"',
    'forkd snapshot --from-sandbox sb-6743b1c2-9f31c2aa --tag trained --diff',
  ],
  run: (options) => {
    const sandbox = options.string('from-sandbox');
    if (sandbox !== undefined) return branchSandbox(sandbox, options);
    for (const name of ['diff', 'live']) {
      if (options.flag(name)) throw options.wrong(`--${name}`, 'needs --from-sandbox');
    }
    if (options.parsed['wait'] === false) throw options.wrong('--no-wait', 'needs --from-sandbox');
    const require = options.requireIsolation();
    const optional = {
      kernel: options.string('kernel', { env: 'FORKD_KERNEL' }),
      initrd: options.string('initrd'),
      rootfs: options.string('rootfs', { env: 'FORKD_ROOTFS' }),
      tap: options.string('tap', { env: 'FORKD_TAP' }),
      bootWaitSecs: options.count('boot-wait-secs'),
      memoryMib: options.count('mem-size-mib'),
      vcpus: options.count('vcpus'),
      warmExec: warmOf(options),
      warmEval: options.string('warm-eval'),
      require,
    };
    const request = {
      tag: options.required('tag'),
      volumes: volumesOf(options),
      net: options.flag('net'),
      force: options.flag('force'),
      keepWorkDir: options.flag('keep-workdir'),
      ...(Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)) as Record<
        string,
        never
      >),
    };
    return withEngine(async (engine, signal) => {
      const progress = new StepProgress();
      const made = await engine
        .snapshot(request, { signal, onStep: step, onProgress: progress.update })
        .finally(() => progress.end());
      const { manifest, state_ms, memory_ms, written_bytes } = made;
      detail(
        `device state ${formatBytes(manifest.vmstate_bytes)} in ${formatMs(state_ms)}, memory ${formatBytes(written_bytes)} in ${formatMs(memory_ms)}`,
      );
      tellSnapshot(made, options.flag('json'), { state_ms, memory_ms, written_bytes });
      return 0;
    });
  },
};
