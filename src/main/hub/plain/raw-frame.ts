/** A zstd frame whose content is stored as it is: its size is known before its content, so that room can be left for it (RFC 8878, section 3.1.1). */

const MAGIC = 0xfd2fb528;
/** Content size in 4 bytes; one segment; no checksum. */
const DESCRIPTOR = 0xa0;
const HEAD_BYTES = 9;
const BLOCK_HEAD_BYTES = 3;
const BLOCK_MAX = 128 * 1024;

export const rawFrame = (content: Buffer): Buffer => {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt32LE(MAGIC, 0);
  head.writeUInt8(DESCRIPTOR, 4);
  head.writeUInt32LE(content.length, 5);
  const parts: Buffer[] = [head];
  for (let at = 0; at < content.length; at += BLOCK_MAX) {
    const block = content.subarray(at, at + BLOCK_MAX);
    const isLast = at + BLOCK_MAX >= content.length;
    const blockHead = Buffer.alloc(BLOCK_HEAD_BYTES);
    blockHead.writeUIntLE(block.length * 8 + (isLast ? 1 : 0), 0, BLOCK_HEAD_BYTES);
    parts.push(blockHead, block);
  }
  return Buffer.concat(parts);
};
