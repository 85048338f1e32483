/** What a pack stores elsewhere of a layer: found for it, and put back by whoever unpacks it. */
import { closeSync, fdatasyncSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { DISK_BLOCK_BYTES } from '../../contract/remote-role.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';

const PAGE_BYTES = 4096;
const COPY_PAGES = 256;
const HASH_BYTES = 32;

/** Runs of [page of the layer, page of the disk, count]. */
export const sharedPages = ({ layerFd, diskPath }: TaskInput<'sharedPages'>): TaskOutput<'sharedPages'> => {
  const disk = openSync(diskPath, 'r');
  try {
    return { runs: native.samePages(layerFd, disk) };
  } finally {
    closeSync(disk);
  }
};

export const diskBlocks = ({ path }: TaskInput<'diskBlocks'>): TaskOutput<'diskBlocks'> => {
  const disk = openSync(path, 'r');
  try {
    const count = Math.ceil(fstatSync(disk).size / DISK_BLOCK_BYTES);
    const blocks = Buffer.alloc(count * HASH_BYTES);
    const buffer = Buffer.alloc(COPY_PAGES * PAGE_BYTES);
    for (let block = 0; block < count; ) {
      const bytes = readSync(disk, buffer, 0, buffer.length, block * DISK_BLOCK_BYTES);
      if (bytes === 0) throw new Error('a disk ended early');
      for (let at = 0; at < bytes; at += DISK_BLOCK_BYTES, block++)
        blocks.write(
          native.blake3(buffer.subarray(at, Math.min(at + DISK_BLOCK_BYTES, bytes))),
          block * HASH_BYTES,
          'hex',
        );
    }
    return { blocks };
  } finally {
    closeSync(disk);
  }
};

/** Copies the runs into the layer, and fsyncs it. Throws an Error when one lies outside, or before the one before it. */
export const fillPages = (input: TaskInput<'fillPages'>): TaskOutput<'fillPages'> => {
  const { runs, layerPath, diskPath, moved, movedPath } = input;
  const disk = openSync(diskPath, 'r');
  const layer = openSync(layerPath, 'r+');
  const first = openSync(movedPath, 'r');
  try {
    const pagesOf = (fd: number): number => Math.floor(fstatSync(fd).size / PAGE_BYTES);
    const [layerPages, diskPages] = [pagesOf(layer), pagesOf(disk)];
    const buffer = Buffer.alloc(COPY_PAGES * PAGE_BYTES);
    let taken = 0;
    for (const [offset, bytes] of moved) {
      copy(first, taken, layer, offset, bytes, buffer);
      taken += bytes;
    }
    let end = 0;
    for (let i = 0; i < runs.length; i += 3) {
      const [page, from, count] = [...runs.subarray(i, i + 3)] as [number, number, number];
      if (page < end || count < 1 || page + count > layerPages || from + count > diskPages)
        throw new Error('a run of shared pages is wrong');
      end = page + count;
      copy(disk, from * PAGE_BYTES, layer, page * PAGE_BYTES, count * PAGE_BYTES, buffer);
    }
    fdatasyncSync(layer);
    return {};
  } finally {
    closeSync(first);
    closeSync(layer);
    closeSync(disk);
  }
};

const copy = (from: number, at: number, to: number, into: number, length: number, buffer: Buffer): void => {
  for (let done = 0; done < length; ) {
    const wanted = Math.min(length - done, buffer.length);
    const bytes = readSync(from, buffer, 0, wanted, at + done);
    if (bytes !== wanted) throw new Error('a file ended early');
    for (let written = 0; written < bytes; )
      written += writeSync(to, buffer, written, bytes - written, into + done + written);
    done += bytes;
  }
};
