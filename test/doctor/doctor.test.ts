import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { forkd } from '../support/cli.js';

interface Check {
  name: string;
  status: 'pass' | 'warn' | 'fail' | 'skip';
  detail: string;
  hint?: string;
  fix?: string;
}
type Report = { checks: Check[] } & Record<Check['status'], number>;

interface Context {
  root: string;
  env: Record<string, string>;
}

const test = suite<Context>('forkd doctor');

test.before.each((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'doctor-test-'));
  mkdirSync(join(context.root, 'tmp'));
  context.env = {
    HOME: context.root,
    TMPDIR: join(context.root, 'tmp'),
    XDG_DATA_HOME: join(context.root, 'data'),
    FORKD_RUN_CACHE: join(context.root, 'cache'),
    // Nobody listens there.
    FORKD_URL: 'http://127.0.0.1:9',
    FORKD_TOKEN: '',
    FORKD_KERNEL: '',
  };
});
test.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));

const doctor = async (
  env: Record<string, string>,
): Promise<{ code: number | null; report: Report; find: (name: string) => Check }> => {
  const { code, stdout, stderr } = await forkd(['doctor', '--json'], { env });
  assert.is(stdout.split('\n').length, 2, `one line of JSON was expected: ${stdout}${stderr}`);
  const report = JSON.parse(stdout) as Report;
  const find = (name: string) => report.checks.find((check) => check.name === name) as Check;
  return { code, report, find };
};

/** The names of the reference's doctor, which its users look for. */
const REFERENCE = [
  'platform',
  'hw virt',
  'kvm',
  'cgroup v2',
  'ip_forward',
  'tap device',
  'per-child netns',
  'firecracker',
  'firecracker version',
  'kernel image',
  'snapshot dir',
  'snapshot dir space',
  'docker',
  'daemon',
  'uffd_wp',
  'memfd_create',
  'ksm',
  'damon',
  'hugepages',
];

test('--json: every check has a name of its own, a status and a detail, and the counts are theirs', async ({ env }) => {
  const { code, report } = await doctor(env);
  const { checks } = report;
  const names = checks.map(({ name }) => name);
  assert.is(new Set(names).size, names.length);
  assert.equal(
    REFERENCE.filter((name) => !names.includes(name)),
    [],
  );
  for (const { name, detail } of checks) assert.ok(detail.length > 0, name);
  for (const status of ['pass', 'warn', 'fail', 'skip'] as const) {
    assert.is(report[status], checks.filter((check) => check.status === status).length, status);
  }
  assert.is(code, report.fail > 0 ? 1 : 0);
});

test('the page lists the checks, in their order', async ({ env }) => {
  const page = readFileSync(join(import.meta.dirname, '../../../docs/reference/doctor.md'), 'utf8');
  const documented = [...page.matchAll(/^\| (.+?) \| .+ \| .+ \|$/gm)].map(([, name]) => name).slice(1);
  const { report } = await doctor(env);
  assert.equal(
    documented,
    report.checks.map(({ name }) => name),
  );
});

test('without QEMU it fails, says how to install it, and that --fix can', async ({ root, env }) => {
  const bin = join(root, 'bin');
  mkdirSync(bin);
  const { code, find } = await doctor({ ...env, PATH: bin });
  assert.is(code, 1);
  const qemu = find('qemu');
  assert.is(qemu.status, 'fail');
  assert.match(qemu.hint ?? '', 'apt-get install -y --no-install-recommends qemu-system-x86');
  assert.match(qemu.fix ?? '', 'qemu-system-x86');
  assert.is(find('qemu version').status, 'skip');
});

const fakeQemu = (root: string, version: string, machines: string): string => {
  const bin = join(root, 'bin');
  mkdirSync(bin);
  const script = `#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version ${version} (Debian)';; *) echo '${machines}';; esac\n`;
  writeFileSync(join(bin, 'qemu-system-x86_64'), script, { mode: 0o755 });
  return `${bin}:/usr/bin:/bin`;
};

test('a QEMU that is too old, or has not the machine type, fails', async ({ root, env }) => {
  const { code, find } = await doctor({ ...env, PATH: fakeQemu(root, '7.1.9', 'q35   a PC') });
  assert.is(code, 1);
  assert.equal(
    [find('qemu').status, find('qemu version').status, find('qemu machine').status],
    ['pass', 'fail', 'fail'],
  );
});

test('QEMU 7.2 and 10.0 are new enough', async ({ root, env }) => {
  for (const version of ['7.2.22', '10.0.2']) {
    const { find } = await doctor({ ...env, PATH: fakeQemu(root, version, 'microvm   microvm (i386)') });
    assert.equal(
      [find('qemu version').status, find('qemu version').detail, find('qemu machine').status],
      ['pass', version, 'pass'],
    );
    rmSync(join(root, 'bin'), { recursive: true });
  }
});

test('a data directory that cannot be made fails, and so does a temp directory that is missing', async ({
  root,
  env,
}) => {
  writeFileSync(join(root, 'file'), '');
  const { code, find } = await doctor({ ...env, XDG_DATA_HOME: join(root, 'file'), TMPDIR: join(root, 'missing') });
  assert.is(code, 1);
  assert.equal([find('data dir').status, find('temp dir').status], ['fail', 'fail']);
});

test('leftovers are counted and point to cleanup', async ({ env }) => {
  mkdirSync(join(env['TMPDIR'] as string, 'forkd-pull-1'));
  const check = (await doctor(env)).find('leftovers');
  assert.is(check.status, 'warn');
  assert.match(check.hint ?? '', 'forkd cleanup');
});

test('the text ends with the counts, and a hint stands under its check', async ({ root, env }) => {
  const { code, stdout } = await forkd(['doctor'], { env: { ...env, PATH: root } });
  assert.is(code, 1);
  assert.match(stdout, /^✗ qemu +qemu-system-x86_64 is not on PATH\n +→ apt-get install/m);
  assert.match(stdout, /\n\npass=\d+ warn=\d+ fail=\d+ skip=\d+\n$/);
});

/** Listens there while it is used, whatever comes of it: a server that is left open would keep this process from ending. */
const withServer = async (
  answer: RequestListener,
  where: string | undefined,
  use: (server: Server) => Promise<void>,
): Promise<void> => {
  const server = createServer(answer);
  if (where === undefined) server.listen(0, '127.0.0.1');
  else server.listen(where);
  await once(server, 'listening');
  try {
    await use(server);
  } finally {
    server.closeAllConnections();
    server.close();
  }
};

const withDaemon = (answer: RequestListener, use: (url: string) => Promise<void>): Promise<void> =>
  withServer(answer, undefined, (server) => use(`http://127.0.0.1:${(server.address() as AddressInfo).port}`));

test('the daemon: absent is no failure, a wrong token is one, and silence ends', async ({ root, env }) => {
  assert.is((await doctor(env)).find('daemon').status, 'skip');
  const seen: string[] = [];
  const guarded: RequestListener = (request, response) => {
    seen.push(`${request.method} ${request.url}`);
    response.writeHead(request.headers.authorization === 'Bearer secret' ? 200 : 401).end('[]');
  };
  await withDaemon(guarded, async (url) => {
    const refused = await doctor({ ...env, FORKD_URL: url });
    assert.equal([refused.find('daemon').status, refused.code], ['fail', 1]);
    const welcome = await doctor({ ...env, FORKD_URL: `${url}/`, FORKD_TOKEN: 'secret' });
    assert.is(welcome.find('daemon').status, 'pass');
  });
  const socket = join(root, 'daemon.sock');
  const answer: RequestListener = (_, response) => void response.end('[]');
  await withServer(answer, socket, async () => {
    assert.is((await doctor({ ...env, FORKD_URL: '', FORKD_SOCKET: socket })).find('daemon').status, 'pass');
  });
  assert.equal(seen, ['GET /v1/snapshots', 'GET /v1/snapshots']);
  await withDaemon(
    () => undefined,
    async (url) => {
      const began = Date.now();
      assert.is((await doctor({ ...env, FORKD_URL: url })).find('daemon').status, 'warn');
      assert.ok(Date.now() - began < 10_000, 'a silent daemon held doctor up');
    },
  );
});

test('--fix asks first: no answer changes nothing', async ({ root, env }) => {
  const bin = join(root, 'bin');
  mkdirSync(bin);
  const { code, stderr } = await forkd(['doctor', '--fix'], { env: { ...env, PATH: bin } });
  assert.is(code, 1);
  assert.match(stderr, 'apt-get install -y --no-install-recommends qemu-system-x86');
  assert.match(stderr, '[y/N]');
  assert.match(stderr, 'nothing was changed');
});

test.run();
