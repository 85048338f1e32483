/** A guest image in the cache: everything a VM needs to boot, and what it was made of. */
export interface GuestImage {
  /** Directory that holds the files; its name is the digest. */
  dir: string;
  digest: string;
  kernel: string;
  initrd: string;
  rootfs: string;
  record: ImageRecord;
}

/** The content of image.json. */
export interface ImageRecord {
  format: 1;
  digest: string;
  /** Digest over the guest sources and the builder: what can be known without asking apt. */
  sourceDigest: string;
  builtAt: string;
  agentGeneration: number;
  kernelVersion: string;
  pythonVersion: string;
  rootfsType: 'ext4';
  files: Record<'kernel' | 'initrd' | 'rootfs', ImageFile>;
  /** Debian package name to version. */
  packages: Record<string, string>;
}

export interface ImageFile {
  name: string;
  bytes: number;
  sha256: string;
}

export type Progress = (step: string, fraction: number) => void;
