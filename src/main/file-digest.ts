/** BLAKE3 of whole files: what disks are known by, in snapshots, packs and images. */
import { closeSync, openSync } from 'node:fs';
import { native } from '../native/binding.js';
import { whileAtWork } from './native-threads.js';

export interface FileHash {
  /** Hex, as b3sum(1) prints it. */
  blake3: string;
  bytes: number;
}

/** Throws what opening and reading throw. */
export const fileDigest = async (path: string): Promise<FileHash> => {
  const fd = openSync(path, 'r');
  try {
    return await whileAtWork(() => native.fdBlake3(fd));
  } finally {
    closeSync(fd);
  }
};
