/** What the engine needs of a virtual machine monitor. qemu.ts is the one implementation. */
import type { Isolation, Volume } from '../../contract/snapshot.js';
import type { VmmStart } from '../../contract/task.js';

/** Everything that shapes a guest's hardware. A restore must give the same, or the device state does not fit. */
export interface Hardware {
  isolation: Isolation;
  memoryMib: number;
  vcpus: number;
  cpuModel: string;
  serialPorts: number;
  /** Paths, or `/proc/PID/fd/N` of files held open by the engine. */
  rootfs: string;
  volumes: Volume[];
  /** It has a network card. */
  card: boolean;
}

export interface BootSpec extends Hardware {
  kernel: string;
  initrd: string;
  /** It may write to its root disk, and reaches the network through QEMU: a VM that makes a disk, never one that is saved. */
  builds?: {
    /** What it may reach of this host's loopback, `ADDRESS:PORT` each; the rest of it is out of its reach. */
    loopback: string[];
  };
  /** Added to the kernel command line. */
  kernelArgs: string[];
}

export interface StartOptions {
  name: string;
  consolePath: string;
  /** The memfd that is the guest's RAM. */
  memfd: number;
  netnsPath?: string;
  /** What the network card is connected to: an open tap, or one of the namespace by its name. */
  tap?: number | string;
  cgroupProcs?: string[];
}

export interface TemplateStartOptions extends StartOptions {
  /** The memory is not all there: the VMM hands it to a fault server, on the socket that it inherits as `VmmFd.faults`. */
  lazy: boolean;
  /** The root disk is not all there either: descriptors that tell of it (native/hotfork/arrivals.h). */
  arrivals?: { statesFd: number; asksFd: number };
}

export interface VmmDriver {
  readonly machine: string;
  readonly version: string;
  /** A parent: RAM shared with the memfd, so that what the guest writes can be saved from it. */
  boot(spec: BootSpec, options: StartOptions, shim?: string): VmmStart;
  /** A child: RAM mapped private, so that what it writes is its own. It waits for device state on `stateTarget`. With the shim it can be sent to jail. */
  restore(hardware: Hardware, options: StartOptions, shim?: string): VmmStart;
  /** A child under the hot-fork shim, whose control socket is inherited as `VmmFd.control`. */
  template(hardware: Hardware, options: TemplateStartOptions, shim: string): VmmStart;
}

/** Descriptor numbers inside the VMM. */
export const VmmFd = {
  memory: 3,
  qmp: 4,
  agent: 5,
  state: 6,
  control: 7,
  faults: 8,
  tether: 9,
  arrivals: 10,
  asks: 11,
  tap: 12,
  line: 13,
  /** And the volumes after it. */
  disks: 20,
} as const;
