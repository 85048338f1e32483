/**
 * The QEMU driver: pure translation of a spec into a command line. docs/internals/vmm.md says why each part is there.
 */
import { GUEST_MAC } from '../../contract/network.js';
import type { VmmStart } from '../../contract/task.js';
import { fencePath } from '../../native/binding.js';
import {
  type BootSpec,
  type Hardware,
  type StartOptions,
  type TemplateStartOptions,
  VmmFd,
  type VmmDriver,
} from './driver.js';

/**
 * Machine type and its options: device state fits only the very same. ACPI, because the distribution's kernel finds the
 * virtio devices by it. No PIT: the firmware starts it, and an idle QEMU would wake 36 times a second for it; the guest
 * is told how fast its time stamp counter runs and needs none (kernel-args.ts).
 */
const MACHINE = 'microvm,acpi=on,pit=off,pic=on,rtc=on,isa-serial=on';

/** Translated code kept by an emulated VM, MiB. The guest's hot code is about a quarter of it; a larger buffer only costs page tables. */
const TCG_BUFFER_MIB = 64;

/**
 * QEMU's heap on huge pages: its page tables are what a fork copies. Functions of libraries bound at its start: else each child
 * binds the same few anew, which means a search through the tables of 60 libraries, a page fault each.
 */
const TEMPLATE_ENV = ['GLIBC_TUNABLES=glibc.malloc.hugetlb=1', 'LD_BIND_NOW=1'];

/** Waits for device state instead of booting. */
const INCOMING = [['-incoming', 'defer']];

export class QemuDriver implements VmmDriver {
  readonly machine = MACHINE;

  constructor(
    readonly file: string,
    readonly version: string,
  ) {}

  boot(spec: BootSpec, options: StartOptions, shim?: string): VmmStart {
    const mounts = spec.volumes.map((v, i) => `vd${letter(i + 1)}:${v.guest_path}:${v.read_only ? 'ro' : 'rw'}`);
    const append = [...spec.kernelArgs, ...(mounts.length > 0 ? [`forkd.mounts=${mounts.join(',')}`] : [])];
    const start = this.#start(spec, options, true, [
      // Until `cont`: it goes to jail before the guest runs.
      ['-S'],
      ['-kernel', spec.kernel],
      ['-initrd', spec.initrd],
      ['-append', append.join(' ')],
    ]);
    return withShim(start, shim);
  }

  restore(hardware: Hardware, options: StartOptions, shim?: string): VmmStart {
    return withShim(this.#start(hardware, options, false, INCOMING), shim);
  }

  template(hardware: Hardware, options: TemplateStartOptions, shim: string): VmmStart {
    // The shim makes the shared mapping a private one (hotfork/ram.c): QEMU then leaves RAM out of what it saves.
    const start = this.#start(hardware, options, true, INCOMING);
    const shimEnv = [`FORKD_HOTFORK_FD=${VmmFd.control}`, `FORKD_HOTFORK_RAM=${VmmFd.memory}`];
    if (options.lazy) shimEnv.push(`FORKD_HOTFORK_UFFD=${VmmFd.faults}`);
    const { arrivals } = options;
    if (arrivals) shimEnv.push(`FORKD_HOTFORK_ARRIVALS=${VmmFd.arrivals},${VmmFd.asks}`);
    const more: [number, number][] = arrivals
      ? [
          [arrivals.statesFd, VmmFd.arrivals],
          [arrivals.asksFd, VmmFd.asks],
        ]
      : [];
    return {
      ...start,
      preload: [shim],
      fds: [...start.fds, ...more],
      env: [...start.env, ...TEMPLATE_ENV, ...shimEnv],
    };
  }

  #start(
    hardware: Hardware & Pick<BootSpec, 'builds'>,
    options: StartOptions,
    shared: boolean,
    more: string[][],
  ): VmmStart {
    const { memfd, consolePath, name, netnsPath, tap, cgroupProcs = [] } = options;
    const { builds } = hardware;
    const size = `${hardware.memoryMib}M`;
    const held: [number, number][] = [];
    /** A file that the engine holds open is inherited: inside a user namespace of its own a VM may not look into the engine. */
    const inherited = (path: string): string => {
      const fd = HELD.exec(path)?.[1];
      if (fd === undefined) return path;
      const target = VmmFd.disks + held.length;
      held.push([Number(fd), target]);
      return `/proc/self/fd/${target}`;
    };
    const args = [
      [this.file],
      ['-nodefaults'],
      ['-no-user-config'],
      ['-no-reboot'],
      ['-display', 'none'],
      ['-machine', `${MACHINE},memory-backend=ram`],
      ['-accel', hardware.isolation === 'kvm' ? 'kvm' : `tcg,thread=multi,tb-size=${TCG_BUFFER_MIB}`],
      ['-cpu', hardware.cpuModel],
      ['-smp', String(hardware.vcpus)],
      ['-m', size],
      // The RAM is our memfd.
      [
        '-object',
        `memory-backend-file,id=ram,size=${size},mem-path=/proc/self/fd/${VmmFd.memory},share=${shared ? 'on' : 'off'}`,
      ],
      ['-chardev', `socket,id=qmp,fd=${VmmFd.qmp}`],
      ['-mon', 'chardev=qmp,mode=control'],
      ['-chardev', `file,id=console,path=${quote(consolePath)},append=on`],
      ['-serial', 'chardev:console'],
      ['-device', `virtio-serial-device,max_ports=${hardware.serialPorts}`],
      ['-chardev', `socket,id=agent,fd=${VmmFd.agent}`],
      ['-device', 'virtserialport,chardev=agent,name=forkd.agent.0'],
      ...disk('root', inherited(hardware.rootfs), builds !== undefined),
      ...hardware.volumes.flatMap((volume, i) => disk(`vol${i}`, inherited(volume.host_path))),
      ...(hardware.card
        ? [
            [
              '-netdev',
              typeof tap === 'string'
                ? `tap,id=net0,ifname=${quote(tap)},script=no,downscript=no`
                : `tap,id=net0,fd=${VmmFd.tap}`,
            ],
            ['-device', `virtio-net-device,netdev=net0,mac=${GUEST_MAC}`],
          ]
        : []),
      ...(builds
        ? [
            ['-netdev', 'user,id=net0'],
            ['-device', `virtio-net-device,netdev=net0,mac=${GUEST_MAC}`],
          ]
        : []),
      ...more,
    ];
    return {
      file: this.file,
      args: args.flat(),
      env: [`PATH=/usr/bin:/bin`, ...(builds ? [`FORKD_FENCE=${builds.loopback.join(',')}`] : [])],
      ...(builds ? { preload: [fencePath] } : {}),
      fds: [[memfd, VmmFd.memory], ...held, ...(typeof tap === 'number' ? [[tap, VmmFd.tap] as [number, number]] : [])],
      qmpTarget: VmmFd.qmp,
      agentTarget: VmmFd.agent,
      consolePath,
      name,
      cgroupProcs,
      ...(netnsPath ? { netnsPath } : {}),
    };
  }
}

const withShim = (start: VmmStart, shim: string | undefined): VmmStart =>
  shim === undefined
    ? start
    : { ...start, preload: [...(start.preload ?? []), shim], env: [...start.env, `FORKD_HOTFORK_FD=${VmmFd.control}`] };

const HELD = new RegExp(`^/proc/${process.pid}/fd/(\\d+)$`);

/** Every disk, but one that is being made, is shared by all children and read only; a guest writes to an overlay in its own RAM, which forks with it. */
const disk = (id: string, path: string, writable = false): string[][] => [
  [
    '-blockdev',
    `driver=raw,node-name=${id},read-only=${writable ? 'off' : 'on'},file.driver=file,file.filename=${quote(path)},file.aio=threads,file.locking=off`,
  ],
  ['-device', `virtio-blk-device,drive=${id}`],
];

/** In QEMU's option syntax a comma inside a value is doubled. */
const quote = (value: string): string => value.replaceAll(',', ',,');

const letter = (i: number): string => String.fromCharCode(97 + i);
