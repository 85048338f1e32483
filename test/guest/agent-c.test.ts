/** The agent in C, in a guest without Python: one boot for the whole suite. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { buildDefaultImage } from '../../src/main/image/index.js';
import { buildRootfs } from '../../src/main/oci/rootfs.js';
import { busyboxImage } from '../support/busybox.js';
import { ociArchive } from '../support/oci.js';
import { bootGuest, forkRequest, type GuestVm, type Reply, request } from './vm.js';

const test = suite('guest agent in C');
let vm: GuestVm;
let dir: string;

const HOOK =
  '#!/bin/sh\necho "$(id -u) $FORKD_INDEX $FORKD_HOSTNAME $A" >> /srv/hook\ns=$(cat /srv/status)\necho 0 > /srv/status\nexit $s\n';

/** Takes a whole openssh otherwise: `-q -t KIND -N '' -f FILE`. */
const KEYGEN = '#!/bin/sh\necho "$3 $(head -c 16 /dev/urandom | od -An -tx1)" > "$7"\necho public > "$7.pub"\n';

test.before(async () => {
  const image = await buildDefaultImage({
    cacheDir: join(process.env.FORKD_RUN_CACHE ?? '/var/cache/forkd', 'images'),
  });
  dir = mkdtempSync(join(tmpdir(), 'agent-c-'));
  const config = { Env: ['A=1', 'PATH=/bin', 'L=a\\b\nc'], WorkingDir: '/srv', User: 'app' };
  const built = await busyboxImage(image.initrd, config, [
    { name: 'etc/forkd/fork.d/10-hook', body: HOOK, mode: 0o755 },
    { name: 'etc/forkd/fork.d/README', body: 'no program' },
    { name: 'srv/status', body: '0', uid: 1000 },
    // As openssh-server would have it.
    { name: 'etc/ssh/', type: 'directory' },
    { name: 'etc/ssh/sshd_config', body: '' },
    ...['rsa', 'ed25519'].map((kind) => ({ name: `etc/ssh/ssh_host_${kind}_key`, body: 'of the image' })),
    { name: 'bin/ssh-keygen', body: KEYGEN, mode: 0o755 },
    { name: 'srv/secret', body: 's', mode: 0o600 },
  ]);
  writeFileSync(join(dir, 'image.tar'), await ociArchive(built));
  const rootfs = await buildRootfs(join(dir, 'cache'), { image: join(dir, 'image.tar') });
  assert.is(rootfs.record.agent, 'c');
  vm = await bootGuest({ ...image, rootfs: rootfs.path });
});

test.after(async () => {
  await vm?.stop();
  if (dir) rmSync(dir, { recursive: true, force: true });
});

const exec = (args: unknown, extra: object = {}): Promise<Reply> => vm.call({ action: 'exec', args, ...extra });
const sh = (script: string, extra: object = {}, timeoutMs?: number): Promise<Reply> =>
  vm.call({ action: 'exec', args: ['sh', '-c', script], ...extra }, timeoutMs);
test('hello, ping, and what it does not do', async () => {
  assert.equal([vm.hello.generation, vm.hello.python, vm.hello.numpy_version], [2, '', 'not-installed']);
  assert.ok(vm.hello.uptime_ms > 0);
  assert.equal(await vm.call({ action: 'ping' }), {
    pong: true,
    numpy_version: 'not-installed',
    pid: 1,
    agent_lang: 'c',
    warmup_ready: false,
    generation: 2,
    released: true,
  });
  assert.match((await vm.call({ action: 'eval', code: '1' })).error, /^EvalUnsupported: /);
  assert.match((await vm.call({ action: 'dance' })).error, /^unknown action: dance$/);
  assert.match((await vm.call([1])).error, /^AttributeError: /);
});

test('exec is as the image says: environment, directory, user', async () => {
  const { stdout, stderr, exit_code } = await sh('id; pwd; echo "$A|$L|$HOME|$PATH"; echo oops >&2; exit 7');
  assert.is(stdout, 'uid=1000(app) gid=1001(app) groups=7(extra)\n/srv\n1|a\\b\nc|/home/app|/bin\n');
  assert.equal([stderr, exit_code], ['oops\n', 7]);
  const given = await sh('pwd; echo "$A $B"; cat', { cwd: '/etc', env: { A: '2', B: 'ü"\\' }, stdin: 'in\0put' });
  assert.is(given.stdout, '/etc\n2 ü"\\\nin\0put');
  assert.is((await sh('cat /srv/secret')).exit_code, 1, 'not as root');
  assert.is((await sh('kill -9 $$')).exit_code, -9);
  assert.is((await exec('pwd')).stdout, '/srv\n', 'one text is one program');
  assert.is((await sh('wc -c', { stdin: 'x'.repeat(3_000_000) })).stdout, '3000000\n', 'more than a pipe holds');
});

test('what cannot be run says why', async () => {
  const error = async (args: unknown, extra: object = {}): Promise<string> => (await exec(args, extra)).error;
  assert.match(await error(['/nonexist']), /^FileNotFoundError: .*'\/nonexist'/);
  assert.match(await error(['nonexist']), /^FileNotFoundError: .*'nonexist'/);
  assert.match(await error(['/etc/passwd']), /^PermissionError: /);
  assert.match(await error(['pwd'], { cwd: '/nowhere' }), /^FileNotFoundError: .*'\/nowhere'/);
  assert.match(await error([]), /^IndexError: /);
  assert.match(await error(undefined), /^KeyError: 'args'/);
  assert.match(await error([1]), /^TypeError: /);
  assert.match(await error(['a\0b']), /^ValueError: /);
  assert.match(await error(['pwd'], { timeout: 'soon' }), /^TypeError: /);
});

test('as another user, by the files of the image', async () => {
  assert.is((await sh('id -un; id -gn; echo $HOME', { user: 'root' })).stdout, 'root\nroot\n/root\n');
  assert.is((await sh('id -u; id -g', { user: '12:34' })).stdout, '12\n34\n');
  assert.is((await sh('id; echo $HOME', { user: 'app:7' })).stdout.split(' groups')[0], 'uid=1000(app) gid=7(extra)');
  assert.match((await exec(['id'], { user: 'nosuch' })).error, /^LookupError: .*'nosuch'/);
});

test('files: stat, list, make, remove; and why not', async () => {
  const ask = (action: string, path: string, more: object = {}) => vm.call({ action, path, ...more });
  const { entry } = await ask('stat', '/srv/secret');
  assert.equal([entry.name, entry.type, entry.size, entry.mode, entry.uid], ['secret', 'file', 1, 0o600, 0]);
  assert.ok(Math.abs(entry.mtime_unix) < 1e11);
  await sh('ln -s secret /tmp/link; ln -s nowhere /tmp/dangling', { user: 'root' });
  const link = (await ask('stat', '/tmp/link')).entry;
  assert.equal([link.type, link.target, link.leads_to], ['link', 'secret', null]);
  assert.is((await ask('make_dir', '/tmp/a/b', {})).error.split(':')[0], 'FileNotFoundError');
  assert.equal(await ask('make_dir', '/tmp/a/b', { parents: true, mode: 0o700 }), { exit_code: 0 });
  assert.equal(await ask('make_dir', '/tmp/a/b', { parents: true }), { exit_code: 0 });
  assert.match((await ask('make_dir', '/tmp/a/b')).error, /^FileExistsError/);
  await exec(['sh', '-c', 'echo > /tmp/a/b/"$(printf "\\377")"'], { user: 'root' });
  assert.equal(
    (await ask('list', '/tmp')).entries.map(({ name, type }: Reply) => [name, type]),
    [
      ['a', 'dir'],
      ['dangling', 'link'],
      ['link', 'link'],
    ],
  );
  // A name that is no UTF-8 can be given back as it came.
  const [odd] = (await ask('list', '/tmp/a/b')).entries;
  assert.is((await ask('remove', `/tmp/a/b/${odd.name}`)).exit_code, 0);
  assert.match((await ask('remove', '/tmp/a')).error, /^OSError: .*not empty/);
  assert.equal(await ask('remove', '/tmp/a', { recursive: true }), { exit_code: 0 });
  assert.match((await ask('stat', '/tmp/a')).error, /^FileNotFoundError: .*'\/tmp\/a'/);
  assert.match((await ask('list', 'srv')).error, /^ValueError: path must be absolute/);
  assert.match((await ask('list', '/srv/secret')).error, /^NotADirectoryError/);
});

test('output that is no text, and too much of it', async () => {
  const { stdout } = await exec(['sh', '-c', 'printf "\\377\\001ok\\303\\274\\n\\355\\240\\200"']);
  assert.is(stdout, '\ufffd\u0001okü\n\ufffd\ufffd\ufffd');
  const { stdout: long, exit_code } = await sh(`yes ${'y'.repeat(1000)} | head -c 20000000`, {}, 100_000);
  assert.is(exit_code, 0);
  assert.match(long.slice(-60), /\n\[forkd: stdout truncated at \d+ bytes\]\n$/);
  assert.ok(long.length < 17 * 2 ** 20 && long.length > 14 * 2 ** 20, `${long.length}`);
});

test('a timeout ends everything that was started; a service in the background does not delay', async () => {
  const script = 'echo begun; sleep 101 & setsid sleep 102 & exec sleep 103';
  const reply = await sh(script, { timeout: 0.5 });
  assert.equal([reply.stdout, reply.timed_out, reply.exit_code], ['begun\n', true, -9]);
  assert.match(reply.error, /^TimeoutExpired: .*0\.5 seconds/);
  assert.not.match((await exec(['ps'])).stdout, /sleep 10/);
  const service = await sh('sleep 104 & echo up', { timeout: null });
  assert.equal([service.stdout, service.exit_code], ['up\n', 0]);
  assert.match((await exec(['ps'])).stdout, /sleep 104/);
});

test('many at once are answered as they end', async () => {
  const slow = sh('sleep 1; echo slow');
  const quick = await Promise.all(Array.from({ length: 20 }, (_, i) => exec(['echo', `${i}`])));
  assert.equal(
    quick.map(({ stdout }) => stdout),
    Array.from({ length: 20 }, (_, i) => `${i}\n`),
  );
  assert.is((await slow).stdout, 'slow\n');
});

test('frames: damage is skipped, a host that hangs up and comes back is served', async () => {
  const damaged = Buffer.concat([
    Buffer.from('FKgarbage FK\x01\x01'),
    request(5, { action: 'ping' }),
    Buffer.from('F'),
    request(6, { action: 'ping' }),
  ]);
  const [first, second] = await vm.raw(damaged, [5, 6]);
  assert.ok(first?.pong && second?.pong);
  const [broken] = await vm.raw(Buffer.from('464b010007000000030000007b2261', 'hex'), [7]);
  assert.match(broken?.error, /^JSONDecodeError/);
  await vm.hangUp();
  assert.ok((await vm.call({ action: 'ping' })).pong);
});

test('seal, fork, hooks, clock', async () => {
  assert.ok((await vm.call({ action: 'seal' })).sealed);
  assert.match((await exec(['pwd'])).error, /^NotReleased/);
  assert.not((await vm.call({ action: 'ping' })).released);

  const ask = forkRequest({ env: { FROM_FORK: 'yes' } });
  const { receipt, exit_code } = await vm.call(ask);
  assert.is(exit_code, 0);
  assert.equal(receipt.done, ['kernel_rng', 'clock', 'hostname', 'machine_id', 'boot_id', 'env', 'hooks']);
  assert.equal(receipt.failed, {});
  const { stdout } = await sh(
    'hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id /srv/hook; echo $FROM_FORK',
  );
  assert.equal(stdout.split('\n'), [
    ...['child-7', 'child-7', (ask as { machine_id?: string }).machine_id, receipt.boot_id],
    ...['0 7 child-7 1', 'yes', ''],
  ]);

  const keys = async () => (await sh('cd /etc/ssh; ls; cat ssh_host_ed25519_key')).stdout.split('\n');
  const first = await keys();
  assert.equal(first.slice(0, 3), ['ssh_host_ed25519_key', 'ssh_host_ed25519_key.pub', 'sshd_config']);
  assert.match(first[3] ?? '', /^ed25519 {2}[0-9a-f ]+$/);
  await vm.call(forkRequest());
  assert.is.not((await keys())[3], first[3], 'each copy has its own');

  await vm.call({ action: 'seal' });
  for (const [over, step] of [
    [{ entropy: 'c2hvcnQ=' }, 'kernel_rng'],
    [{ machine_id: 'x' }, 'machine_id'],
    [{ clock_ns: 'noon' }, 'clock'],
  ] as const) {
    const refused = await vm.call(forkRequest(over));
    assert.equal(Object.keys(refused.receipt.failed), [step]);
    assert.match(refused.error, /^IdentityFailed/);
  }
  assert.match((await exec(['pwd'])).error, /^NotReleased/, 'a copy without its identity stays sealed');
  assert.is((await vm.call(forkRequest())).exit_code, 0);
  await sh('echo 3 > /srv/status');
  assert.match((await vm.call(forkRequest())).receipt.failed.hooks, /10-hook .*3/);
  await vm.call(forkRequest());
  assert.equal(await vm.call({ action: 'clock', clock_ns: '1000000000000000000' }), { exit_code: 0 });
  assert.is((await exec(['date', '-u', '+%F'])).stdout, '2001-09-09\n');
});

test.run();
