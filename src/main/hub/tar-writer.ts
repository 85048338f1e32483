/** Writes the one shape of tar that tar-reader.ts reads, piece by piece into memory that the caller has. */
import { read as readCallback } from 'node:fs';
import { promisify } from 'node:util';

const BLOCK = 512;
/** From here on a size does not fit its 11 octal digits, and is written in binary. */
const OCTAL_MAX = 8 ** 11;

const readFile = promisify(readCallback);

export interface Cut {
  /** Of zstd; undefined is the usual one. */
  level: number | undefined;
}

/** What an archive is made of, in order. */
export type Piece =
  | Buffer
  /** What follows does not share a frame with what is before it, since a reader may want only one of them, and is compressed so hard. */
  | Cut
  | {
      fd: number;
      size: number;
      /** Where it begins in the file. */
      from?: number;
      /** Sees every part once it is in memory, with its offset in the file, and may change it. */
      onPart?: (part: Buffer, offset: number) => void;
      /** All of it was read. */
      onEnd?: () => void;
    };

type FilePiece = Exclude<Piece, Buffer | Cut>;

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

export class Pieces {
  readonly #pieces: Piece[];
  #at = 0;
  /** Of what the last `read` brought. */
  level: number | undefined;

  constructor(pieces: Piece[]) {
    this.#pieces = pieces.filter((piece) => !Buffer.isBuffer(piece) || piece.length > 0);
  }

  /** Fills `into` as far as there is something left before the next cut; returns the bytes. Throws what reading throws, and what `onPart` and `onEnd` throw. */
  async read(into: Buffer): Promise<number> {
    let filled = 0;
    for (let piece = this.#pieces[0]; piece && filled < into.length; piece = this.#pieces[0]) {
      if ('level' in piece) {
        if (filled > 0) break;
        this.level = piece.level;
        this.#pieces.shift();
        continue;
      }
      const size = Buffer.isBuffer(piece) ? piece.length : piece.size;
      const target = into.subarray(filled, filled + size - this.#at);
      if (Buffer.isBuffer(piece)) piece.copy(target, 0, this.#at);
      else await this.#fill(piece, target);
      filled += target.length;
      this.#at += target.length;
      if (this.#at < size) continue;
      if (!Buffer.isBuffer(piece)) piece.onEnd?.();
      this.#pieces.shift();
      this.#at = 0;
    }
    return filled;
  }

  async #fill({ fd, from = 0, onPart }: FilePiece, target: Buffer): Promise<void> {
    const at = from + this.#at;
    for (let done = 0; done < target.length; ) {
      const { bytesRead } = await readFile(fd, target, done, target.length - done, at + done);
      if (bytesRead === 0) throw new Error('a file ended early');
      done += bytesRead;
    }
    onPart?.(target, at);
  }
}
