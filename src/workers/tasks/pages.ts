/** The pages that a layer shares with a disk: found for a pack, and put back by whoever unpacks it. */
import { closeSync, fdatasyncSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';

const PAGE_BYTES = 4096;
const COPY_PAGES = 256;

/** Runs of [page of the layer, page of the disk, count]. */
export const sharedPages = ({ layerFd, diskPath }: TaskInput<'sharedPages'>): TaskOutput<'sharedPages'> => {
  const disk = openSync(diskPath, 'r');
  try {
    return { runs: native.samePages(layerFd, disk) };
  } finally {
    closeSync(disk);
  }
};

/** Copies the runs from the disk into the layer, and fsyncs it. Throws an Error when one lies outside, or before the one before it. */
export const fillPages = ({ runs, layerPath, diskPath }: TaskInput<'fillPages'>): TaskOutput<'fillPages'> => {
  const disk = openSync(diskPath, 'r');
  const layer = openSync(layerPath, 'r+');
  try {
    const pagesOf = (fd: number): number => Math.floor(fstatSync(fd).size / PAGE_BYTES);
    const [layerPages, diskPages] = [pagesOf(layer), pagesOf(disk)];
    const buffer = Buffer.alloc(COPY_PAGES * PAGE_BYTES);
    let end = 0;
    for (let i = 0; i < runs.length; i += 3) {
      const [page, from, count] = [...runs.subarray(i, i + 3)] as [number, number, number];
      if (page < end || count < 1 || page + count > layerPages || from + count > diskPages)
        throw new Error('a run of shared pages is wrong');
      end = page + count;
      copyPages(disk, from, layer, page, count, buffer);
    }
    fdatasyncSync(layer);
    return {};
  } finally {
    closeSync(layer);
    closeSync(disk);
  }
};

const copyPages = (from: number, fromPage: number, to: number, toPage: number, count: number, buffer: Buffer): void => {
  for (let done = 0; done < count; ) {
    const pages = Math.min(count - done, COPY_PAGES);
    const bytes = readSync(from, buffer, 0, pages * PAGE_BYTES, (fromPage + done) * PAGE_BYTES);
    if (bytes !== pages * PAGE_BYTES) throw new Error('a disk ended early');
    for (let at = 0; at < bytes; ) at += writeSync(to, buffer, at, bytes - at, (toPage + done) * PAGE_BYTES + at);
    done += pages;
  }
};
