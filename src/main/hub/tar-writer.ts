/** Writes the one shape of tar that tar-reader.ts reads. */

const BLOCK = 512;
/** From here on a size does not fit its 11 octal digits, and is written in binary. */
const OCTAL_MAX = 8 ** 11;

export const header = (name: string, size: number): Buffer => {
  const block = Buffer.alloc(BLOCK);
  if (Buffer.byteLength(name) > 100) throw new Error(`the name ${name} is too long for a pack`);
  block.write(name, 0);
  block.write('0000644\x000000000\x000000000\0', 100);
  if (size < OCTAL_MAX) block.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
  else {
    block[124] = 0x80;
    block.writeBigUInt64BE(BigInt(size), 128);
  }
  block.write('00000000000\0', 136);
  block.write('        0', 148);
  block.write('ustar\x0000', 257);
  const sum = block.reduce((all, byte) => all + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
};

export const padding = (size: number): Buffer => Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK);

export const END = Buffer.alloc(BLOCK * 2);
