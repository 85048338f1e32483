// `tools/inspect FILE [--json] [--verify] [--entries]`: what a layer file (memory.layer) holds.
//
// A second reader of docs/reference/snapshot-format.md, written from that page: header and index are parsed here and not by
// the addon, so that a mistake in one of the two shows. Only BLAKE3 is the addon's, and zstd that of zstd-napi.
//   --verify   reads every frame, decompresses it and compares its hash
//   --entries  lists the index
// Exit code 0: the file is sound as far as it was read. 1: it is not, and the first reason is on stderr. 2: wrong usage.
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const PAGE_BYTES = 4096;
const CHUNK_BYTES = 16384;
const HEADER_BYTES = 4096;
const ENTRY_BYTES = 56;
const CODECS = ['raw', 'zstd'];
const usage = 'usage: tools/inspect FILE [--json] [--verify] [--entries]';

class Damaged extends Error {}
const check = (sound, reason) => {
  if (!sound) throw new Damaged(reason);
};

const require = createRequire(import.meta.url);
const addon = process.env.FORKD_NATIVE_PATH ?? join(import.meta.dirname, '../build/Release/forkd_native.node');
const { blake3 } = require(addon);

const bitsOf = (mask) => {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++;
  return count;
};

/** Numbers in the format are 64 bits wide; no sound one needs more than 53. */
const u64 = (buffer, at) => Number(buffer.readBigUInt64LE(at));

const readAt = (fd, bytes, offset) => {
  const buffer = Buffer.alloc(bytes);
  let done = 0;
  while (done < bytes) {
    const got = readSync(fd, buffer, done, bytes - done, offset + done);
    check(got > 0, 'truncated');
    done += got;
  }
  return buffer;
};

const parseHeader = (fd, fileBytes) => {
  check(fileBytes >= HEADER_BYTES, 'truncated, or not a layer file');
  const block = readAt(fd, HEADER_BYTES, 0);
  check(block.toString('latin1', 0, 8) === 'FORKDLYR', 'not a layer file');
  const header = {
    version: block.readUInt32LE(8),
    chunkBytes: block.readUInt32LE(12),
    imageBytes: u64(block, 16),
    indexOffset: u64(block, 24),
    entryCount: u64(block, 32),
    dataBytes: u64(block, 40),
    parentRoot: block.toString('hex', 48, 80),
    root: block.toString('hex', 80, 112),
  };
  check(header.version === 2, `layer version ${header.version} is not known`);
  check(header.chunkBytes === CHUNK_BYTES, `chunk size is not ${CHUNK_BYTES}`);
  check(header.imageBytes > 0 && header.imageBytes % PAGE_BYTES === 0, 'image size is not in whole pages');
  check(header.imageBytes <= 2 ** 38, 'image is larger than 256 GiB');
  check(
    block.subarray(112).every((byte) => byte === 0),
    'header padding is not zero',
  );
  const chunks = Math.ceil(header.imageBytes / CHUNK_BYTES);
  check(header.entryCount <= chunks, 'more entries than the image has chunks');
  check(header.indexOffset === HEADER_BYTES + header.dataBytes, 'index does not follow the data');
  const expected = header.indexOffset + header.entryCount * ENTRY_BYTES;
  check(fileBytes === expected, `file has ${fileBytes} bytes instead of ${expected}`);
  return { ...header, chunks, covered: block.subarray(0, 80) };
};

const parseEntry = (index, i) => {
  const at = i * ENTRY_BYTES;
  return {
    chunk: index.readUInt32LE(at),
    dataMask: index.readUInt16LE(at + 4),
    zeroMask: index.readUInt16LE(at + 6),
    offset: u64(index, at + 8),
    storedBytes: index.readUInt32LE(at + 16),
    codec: index.readUInt32LE(at + 20),
    hash: index.toString('hex', at + 24, at + ENTRY_BYTES),
  };
};

const checkEntry = (header, entry, previous) => {
  const { chunk, dataMask, zeroMask, offset, storedBytes, codec } = entry;
  check(chunk < header.chunks, 'is past the end of the image');
  check(!previous || previous.chunk < chunk, 'is not in the order of chunks');
  const pages = Math.min(CHUNK_BYTES / PAGE_BYTES, (header.imageBytes - chunk * CHUNK_BYTES) / PAGE_BYTES);
  check((dataMask | zeroMask) !== 0, 'owns no page');
  check((dataMask | zeroMask) >> pages === 0, 'owns pages past the end of the image');
  check((dataMask & zeroMask) === 0, 'has pages that are both data and zero');
  if (dataMask === 0) {
    check(offset === 0 && storedBytes === 0 && codec === 0 && /^0*$/.test(entry.hash), 'has a frame without pages');
    return;
  }
  const packed = bitsOf(dataMask) * PAGE_BYTES;
  check(codec < CODECS.length, 'has an unknown codec');
  check(
    codec === 0 ? storedBytes === packed : storedBytes > 0 && storedBytes < packed,
    'has a frame of the wrong size',
  );
  check(offset >= HEADER_BYTES && offset + storedBytes <= header.indexOffset, 'points outside the data');
};

const parseIndex = (fd, header) => {
  const index = readAt(fd, header.entryCount * ENTRY_BYTES, header.indexOffset);
  check(blake3(Buffer.concat([header.covered, index])) === header.root, 'root hash does not match');
  const entries = [];
  for (let i = 0; i < header.entryCount; i++) {
    const entry = parseEntry(index, i);
    try {
      checkEntry(header, entry, entries[i - 1]);
    } catch (error) {
      throw new Damaged(`entry ${i} ${error.message}`);
    }
    entries.push(entry);
  }
  return entries;
};

const verifyFrame = (fd, entry) => {
  const stored = readAt(fd, entry.storedBytes, entry.offset);
  const bytes = bitsOf(entry.dataMask) * PAGE_BYTES;
  let packed = stored;
  if (entry.codec === 1) {
    try {
      packed = require('zstd-napi').decompress(stored);
    } catch {
      throw new Damaged(`chunk ${entry.chunk}: compressed frame is damaged`);
    }
  }
  check(packed.length === bytes && blake3(packed) === entry.hash, `chunk ${entry.chunk}: hash mismatch`);
};

const summarise = (header, entries, fileBytes) => {
  const frames = new Map();
  const totals = { data_pages: 0, zero_pages: 0, shared_frames: 0, compressed_frames: 0 };
  for (const entry of entries) {
    totals.data_pages += bitsOf(entry.dataMask);
    totals.zero_pages += bitsOf(entry.zeroMask);
    if (entry.dataMask === 0) continue;
    if (frames.has(entry.offset)) totals.shared_frames++;
    else {
      frames.set(entry.offset, entry);
      if (entry.codec === 1) totals.compressed_frames++;
    }
  }
  return {
    version: header.version,
    root: header.root,
    parent_root: /^0*$/.test(header.parentRoot) ? null : header.parentRoot,
    image_bytes: header.imageBytes,
    chunk_bytes: header.chunkBytes,
    chunks: header.chunks,
    entries: entries.length,
    file_bytes: fileBytes,
    data_bytes: header.dataBytes,
    ...totals,
    unique_frames: frames.size,
    // What the frames hold, and what they take: equal ones once.
    frame_pages_bytes: [...frames.values()].reduce((sum, entry) => sum + bitsOf(entry.dataMask) * PAGE_BYTES, 0),
  };
};

const mib = (bytes) => `${(bytes / 1024 / 1024).toFixed(1)} MiB`;

const print = (path, report) => {
  const lines = [
    ['file', `${path}, ${mib(report.file_bytes)}, version ${report.version}`],
    ['root', report.root],
    ['parent', report.parent_root ?? 'none: this is a base'],
    ['image', `${mib(report.image_bytes)}, ${report.chunks} chunks of ${report.chunk_bytes / 1024} KiB`],
    ['owns', `${report.entries} chunks: ${report.data_pages} pages with data, ${report.zero_pages} made zero`],
    [
      'frames',
      `${report.unique_frames} (${report.compressed_frames} compressed), used ${report.shared_frames} times more; ${mib(report.frame_pages_bytes)} in ${mib(report.data_bytes)}`,
    ],
  ];
  if (report.verified_frames !== undefined) lines.push(['verified', `${report.verified_frames} frames`]);
  for (const [name, text] of lines) console.log(`${name.padEnd(9)} ${text}`);
  if (!report.index) return;
  console.log('\n   chunk  data zero  codec  stored     offset  hash');
  for (const entry of report.index) {
    const columns = [
      String(entry.chunk).padStart(8),
      entry.data_mask.padStart(5),
      entry.zero_mask,
      entry.codec.padStart(6),
      String(entry.stored_bytes).padStart(7),
      String(entry.offset).padStart(10),
      `${entry.hash.slice(0, 16)}`,
    ];
    console.log(columns.join(' '));
  }
};

const hex16 = (mask) => mask.toString(16).padStart(4, '0');

const inspect = (path, { verify, entries: list }) => {
  const fd = openSync(path, 'r');
  try {
    const stat = fstatSync(fd);
    check(stat.isFile(), 'not a file');
    const header = parseHeader(fd, stat.size);
    const entries = parseIndex(fd, header);
    const report = summarise(header, entries, stat.size);
    if (verify) {
      const withData = entries.filter((entry) => entry.dataMask !== 0);
      // Every entry, not every frame: two that share one must also agree on its hash.
      for (const entry of withData) verifyFrame(fd, entry);
      report.verified_frames = withData.length;
    }
    if (list) {
      report.index = entries.map((entry) => ({
        chunk: entry.chunk,
        data_mask: hex16(entry.dataMask),
        zero_mask: hex16(entry.zeroMask),
        codec: entry.dataMask === 0 ? 'none' : CODECS[entry.codec],
        stored_bytes: entry.storedBytes,
        offset: entry.offset,
        hash: entry.hash,
      }));
    }
    return report;
  } finally {
    closeSync(fd);
  }
};

const parse = () => {
  const options = { json: { type: 'boolean' }, verify: { type: 'boolean' }, entries: { type: 'boolean' } };
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    if (positionals.length === 1) return { values, path: positionals[0] };
  } catch (error) {
    console.error(error.message);
  }
  console.error(usage);
  process.exit(2);
};

const { values, path } = parse();
try {
  const report = inspect(path, values);
  if (values.json) console.log(JSON.stringify(report, null, 2));
  else print(path, report);
} catch (error) {
  if (!(error instanceof Damaged) && !error.code) throw error;
  console.error(`${path}: ${error.message}`);
  process.exitCode = 1;
}
