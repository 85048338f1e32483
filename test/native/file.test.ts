import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { native } from '../../src/native/binding.js';

const test = suite<{ folder: string }>('native file');

test.before((context) => {
  context.folder = mkdtempSync(join(tmpdir(), 'forkd-native-'));
});
test.after(({ folder }) => rmSync(folder, { recursive: true }));

/** Every failed system call says the same three things, as Node's own do. */
function failsWith(call: () => unknown, code: keyof typeof constants.errno, syscall: string): void {
  try {
    call();
  } catch (error) {
    const { code: actualCode, syscall: actualSyscall, errno } = error as NodeJS.ErrnoException;
    assert.ok(error instanceof Error);
    assert.equal({ code: actualCode, syscall: actualSyscall, errno }, { code, syscall, errno: -constants.errno[code] });
    return;
  }
  assert.unreachable(`${syscall} did not fail`);
}

test('errors have code, syscall and errno', ({ folder }) => {
  const closed = 1_000_000;
  failsWith(() => native.fdResize(closed, 1), 'EBADF', 'ftruncate');
  failsWith(() => native.memfdSeal(closed, ['seal']), 'EBADF', 'fcntl');
  failsWith(() => native.fdWrite(closed, Uint8Array.of(1), 0), 'EBADF', 'pwrite');
  failsWith(() => native.fdRead(closed, new Uint8Array(1), 0), 'EBADF', 'pread');
  failsWith(() => native.memfdPunch(closed, 0, 1), 'EBADF', 'fallocate');
  failsWith(() => native.fdSize(closed), 'EBADF', 'fstat');
  failsWith(() => native.fdSync(closed), 'EBADF', 'fsync');
  failsWith(() => native.fdAllocate(closed, 1), 'EBADF', 'fallocate');
  failsWith(() => native.fdClose(closed), 'EBADF', 'close');
  failsWith(() => native.fdDup(closed), 'EBADF', 'fcntl');
  failsWith(() => native.flockTry(closed, 'shared'), 'EBADF', 'flock');
  failsWith(() => native.rename2(join(folder, 'none'), join(folder, 'b'), 'noreplace'), 'ENOENT', 'renameat2');
  failsWith(() => native.diskSpace(join(folder, 'none')), 'ENOENT', 'statvfs');
  failsWith(() => native.memfdCreate('x'.repeat(300)), 'EINVAL', 'memfd_create');
  failsWith(() => native.sendFds(closed, Uint8Array.of(1), [], 0), 'EBADF', 'sendmsg');
  failsWith(() => native.recvFds(closed, 1, 0, 0), 'EBADF', 'recvmsg');
  failsWith(() => native.pidfdOpen(0x3fffffff), 'ESRCH', 'pidfd_open');
  failsWith(() => native.pidfdSignal(closed, 0), 'EBADF', 'pidfd_send_signal');
  failsWith(() => native.pidfdWatch(closed, () => {}), 'EBADF', 'fcntl');
});

test('wrong arguments are refused by name, and never reach the system', () => {
  const refused = (call: () => unknown, name: string) =>
    assert.throws(
      call,
      (error: NodeJS.ErrnoException) =>
        error instanceof TypeError && error.code === 'ERR_INVALID_ARG_VALUE' && error.message.startsWith(`${name}: `),
    );
  refused(() => native.fdResize(1.5, 0), 'fd');
  refused(() => native.fdResize(-1, 0), 'fd');
  refused(() => native.fdResize(3, Number.NaN), 'bytes');
  refused(() => native.fdResize(3, 2 ** 53), 'bytes');
  refused(() => native.fdWrite(3, 'text' as never, 0), 'data');
  refused(() => native.memfdCreate('a\0b'), 'name');
  refused(() => native.memfdCreate(undefined as never), 'name');
  refused(() => native.chunkClaim(new Int32Array(2), 2), 'index');
  refused(() => native.chunkClaim(new Uint8Array(8) as never, 0), 'map');
  refused(() => native.sendFds(3, new Uint8Array(0), [3], 0), 'data');
  refused(() => native.spawn({ file: '/bin/true', args: [], env: [], fds: [] }), 'args');
  const twice: [number, number][] = [
    [0, 1],
    [2, 1],
  ];
  refused(() => native.spawn({ file: '/bin/true', args: ['true'], env: [], fds: twice }), 'fds');
  refused(() => native.spawn(undefined as never), 'options');
});

test('an exception from a getter goes through', () => {
  const thrown = new Error('from the getter');
  const options = {
    get file(): string {
      throw thrown;
    },
    args: ['true'],
    env: [],
    fds: [],
  };
  assert.throws(
    () => native.spawn(options),
    (error: unknown) => error === thrown,
  );
});

test('a lock held elsewhere is not waited for', ({ folder }) => {
  const path = join(folder, 'lock');
  const [first, second] = [openSync(path, 'w'), openSync(path, 'r')];
  assert.is(native.flockTry(first, 'shared'), true);
  assert.is(native.flockTry(second, 'shared'), true);
  assert.is(native.flockTry(second, 'exclusive'), false);
  native.fdClose(first);
  assert.is(native.flockTry(second, 'exclusive'), true);
  native.fdClose(second);
});

test('rename2 does not replace, or swaps', ({ folder }) => {
  const [a, b] = [join(folder, 'a'), join(folder, 'b')];
  writeFileSync(a, 'A');
  writeFileSync(b, 'B');
  failsWith(() => native.rename2(a, b, 'noreplace'), 'EEXIST', 'renameat2');
  native.rename2(a, b, 'exchange');
  assert.equal([readFileSync(a, 'utf8'), readFileSync(b, 'utf8')], ['B', 'A']);
  rmSync(b);
  native.rename2(a, b, 'noreplace');
  assert.is(readFileSync(b, 'utf8'), 'B');
});

test('disk space is plausible, and a file can be synced', ({ folder }) => {
  const { free, total } = native.diskSpace(folder);
  assert.ok(free > 0 && free <= total);
  const fd = openSync(join(folder, 'sync'), 'w');
  native.fdSync(fd);
  native.fdClose(fd);
});

test.run();
