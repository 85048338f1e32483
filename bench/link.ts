/**
 * A slow link for benchmarks, as a process of its own: a web server with one file behind a wire of so many bits a second, whatever the number of
 * connections, that takes so long each way. `node link.js FILE MBITS DELAY_MS` prints its port.
 */
import { createReadStream, fstatSync, openSync, statSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

const [, , path = '', mbits = '100', delayMs = '20'] = process.argv;
const BYTES_PER_MS = (Number(mbits) * 1e6) / 8 / 1000;
const DELAY_MS = Number(delayMs);
/** The wire is busy until then, in this process's milliseconds: one for each direction. */
const busyUntil = { down: 0, up: 0 };
/** Bytes that wait at the wire of one connection: more is not read. */
const QUEUE_BYTES = 256 * 1024;
const SLICE_BYTES = 16 * 1024;

const etag = `"${statSync(path).mtimeMs}"`;

const server = createHttpServer((request, response) => {
  const fd = openSync(path, 'r');
  const { size } = fstatSync(fd);
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? [];
  const begin = Number(from ?? 0);
  const end = Math.min(to ? Number(to) + 1 : size, size);
  const range = from === undefined ? {} : { 'content-range': `bytes ${begin}-${end - 1}/${size}` };
  response.writeHead(from === undefined ? 200 : 206, {
    'content-length': end - begin,
    'accept-ranges': 'bytes',
    etag,
    ...range,
  });
  createReadStream('', { fd, start: begin, end: end - 1 }).pipe(response);
});

/** From one socket to the other, as the wire allows, in order. */
const carry = (from: Socket, to: Socket, direction: 'down' | 'up'): void => {
  /** Undefined is the end. */
  const wire: { due: number; slice: Buffer | undefined }[] = [];
  let queued = 0;
  const deliver = (): void => {
    while (wire[0] && wire[0].due <= performance.now()) {
      const { slice } = wire.shift() as (typeof wire)[number];
      if (slice === undefined) to.end();
      else to.write(slice);
      queued -= slice?.length ?? 0;
    }
    if (queued <= QUEUE_BYTES) from.resume();
    if (wire[0]) setTimeout(deliver, wire[0].due - performance.now());
  };
  const send = (slice: Buffer | undefined): void => {
    const bytes = slice?.length ?? 0;
    busyUntil[direction] = Math.max(busyUntil[direction], performance.now()) + bytes / BYTES_PER_MS;
    queued += bytes;
    wire.push({ due: busyUntil[direction] + DELAY_MS, slice });
    if (wire.length === 1) setTimeout(deliver, DELAY_MS);
  };
  from.on('data', (data: Buffer) => {
    for (let at = 0; at < data.length; at += SLICE_BYTES) send(data.subarray(at, at + SLICE_BYTES));
    if (queued > QUEUE_BYTES) from.pause();
  });
  from.on('end', () => send(undefined));
  from.on('error', () => to.destroy());
  to.on('close', () => from.destroy());
};

server.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  const wire = createServer((near) => {
    near.pause();
    // A connection takes a way there and back before its first byte.
    setTimeout(() => {
      const far = connect(port, '127.0.0.1');
      carry(near, far, 'up');
      carry(far, near, 'down');
      near.resume();
    }, 2 * DELAY_MS);
  });
  wire.listen(0, '127.0.0.1', () => process.stdout.write(`${(wire.address() as AddressInfo).port}\n`));
});
