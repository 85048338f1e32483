/** Boots one real guest and speaks the framed protocol to its agent. QEMU is the client of our socket. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encodeFrame, encodeRequest, type Frame, FrameDecoder, parsePayload } from '../../src/contract/frames.js';
import { FrameType } from '../../src/contract/guest.js';
import type { GuestImage } from '../../src/main/image/index.js';
import { kernelArgs } from '../../src/main/vmm/kernel-args.js';

/** Under emulation on a host that runs other tests at the same time. */
const BOOT_TIMEOUT_MS = 120_000;
const REPLY_TIMEOUT_MS = 30_000;

// biome-ignore lint/suspicious/noExplicitAny: replies are looked at, not modelled.
export type Reply = Record<string, any>;

export interface GuestVm {
  hello: Reply;
  bootMs: number;
  call(request: object, timeoutMs?: number): Promise<Reply>;
  /** Sends bytes as they are; the replies of ids in `ids` are awaited. */
  raw(bytes: Uint8Array, ids: number[], timeoutMs?: number): Promise<Reply[]>;
  /** Breaks the connection; QEMU connects again after a second. */
  hangUp(): Promise<void>;
  console(): string;
  cpuSeconds(): number;
  stop(): Promise<void>;
}

/** Frequency of the time stamp counter, as far as /proc tells it: see docs/internals/guest.md. */
const hostTscKhz = (): number =>
  Math.round(Number(/cpu MHz\s*: ([\d.]+)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]) * 1000);

const qemuArgs = (image: GuestImage, dir: string, volumes: string[]): string[] => {
  const mounts = volumes.length === 0 ? [] : ['forkd.mounts=vdb:/volume,vdc:/fixed:ro,bad,vdz:/missing'];
  const append = [...kernelArgs('tcg', hostTscKhz()), ...mounts].join(' ');
  const disks = [image.rootfs, ...volumes].flatMap((file, index) => [
    ...['-drive', `file=${file},if=none,id=disk${index},format=raw,readonly=on`],
    ...['-device', `virtio-blk-device,drive=disk${index}`],
  ]);
  return [
    ...[
      '-M',
      'microvm,acpi=on,pit=off,rtc=on,isa-serial=on',
      '-accel',
      'tcg,thread=multi',
      '-cpu',
      'max',
      '-m',
      '512M',
      '-smp',
      '1',
    ],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-kernel', image.kernel, '-initrd', image.initrd, '-append', append],
    // Slot order decides the names: microvm numbers its transports downwards, so the last device is vda.
    ...disks,
    ...['-device', 'virtio-serial-device', '-chardev', `socket,id=agent,path=${join(dir, 'agent.sock')},reconnect=1`],
    ...['-device', 'virtserialport,chardev=agent,name=forkd.agent.0'],
    ...['-chardev', `file,id=console,path=${join(dir, 'console')}`, '-serial', 'chardev:console'],
  ];
};

class Agent {
  #socket: Socket | undefined;
  #decoder = new FrameDecoder();
  readonly #waiting = new Map<number, (frame: Frame) => void>();
  #count = 1000;

  attach(socket: Socket): void {
    this.#socket = socket;
    this.#decoder = new FrameDecoder();
    socket.on('error', () => undefined);
    socket.on('data', (data) => {
      for (const frame of this.#decoder.push(data)) {
        this.#waiting.get(frame.id)?.(frame);
        this.#waiting.delete(frame.id);
      }
    });
  }

  wait(id: number, timeoutMs: number): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no reply to request ${id} within ${timeoutMs} ms`)), timeoutMs);
      this.#waiting.set(id, (frame) => {
        clearTimeout(timer);
        resolve(parsePayload(frame));
      });
    });
  }

  send(bytes: Uint8Array): void {
    this.#socket?.write(bytes);
  }

  call(request: object, timeoutMs = REPLY_TIMEOUT_MS): Promise<Reply> {
    const id = this.#count++;
    const reply = this.wait(id, timeoutMs);
    this.send(encodeRequest(id, request));
    return reply;
  }

  drop(): void {
    this.#socket?.destroy();
  }
}

export const bootGuest = async (image: GuestImage, volumes: string[] = []): Promise<GuestVm> => {
  const dir = mkdtempSync(join(tmpdir(), 'forkd-guest-test-'));
  const agent = new Agent();
  const server = createServer((socket) => agent.attach(socket)).listen(join(dir, 'agent.sock'));
  await once(server, 'listening');
  const consoleText = () => readFileSync(join(dir, 'console'), 'utf8');
  const started = performance.now();
  const qemu: ChildProcess = spawn('qemu-system-x86_64', qemuArgs(image, dir, volumes), {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  process.on('exit', () => qemu.kill('SIGKILL'));
  const stop = async () => {
    const gone = qemu.exitCode === null ? once(qemu, 'exit') : undefined;
    qemu.kill('SIGKILL');
    await gone;
    server.close();
    rmSync(dir, { recursive: true, force: true });
  };
  const hello = await agent.wait(0, BOOT_TIMEOUT_MS).catch(async (error: Error) => {
    const text = consoleText();
    await stop();
    throw new Error(`${error.message}; console: ${text.slice(-2000)}`);
  });
  return {
    hello,
    bootMs: performance.now() - started,
    call: (request, timeoutMs) => agent.call(request, timeoutMs),
    raw: (bytes, ids, timeoutMs = REPLY_TIMEOUT_MS) => {
      const replies = Promise.all(ids.map((id) => agent.wait(id, timeoutMs)));
      agent.send(bytes);
      return replies;
    },
    hangUp: async () => {
      agent.drop();
      await once(server, 'connection');
    },
    console: consoleText,
    cpuSeconds: () => {
      const fields = readFileSync(`/proc/${qemu.pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
      return (Number(fields[11]) + Number(fields[12])) / 100;
    },
    stop,
  };
};

export const request = (id: number, body: object): Uint8Array => encodeFrame(FrameType.request, id, body);

/** What tells an agent to become a child of its own. */
export const forkRequest = (over: object = {}) => ({
  action: 'fork',
  entropy: randomBytes(64).toString('base64'),
  clock_ns: `${BigInt(Date.now()) * 1_000_000n}`,
  hostname: 'child-7',
  machine_id: randomBytes(16).toString('hex'),
  index: 7,
  ...over,
});
