/** The pid namespace of a jail: what can be seen and ended from inside, and how long it and its first process are there. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Controller, type ControllerError } from '../../src/client/index.js';
import { ForkdError } from '../../src/contract/errors.js';
import { Engine } from '../../src/main/engine.js';
import { makeJail } from '../../src/main/host/jail.js';
import { Warden } from '../../src/main/sandbox/warden.js';
import { VmmFd } from '../../src/main/vmm/driver.js';
import { native } from '../../src/native/binding.js';
import { nameOf, parentOf } from '../../src/main/host/process.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { forkd, startCli } from '../support/cli.js';
import { startDaemon } from '../support/daemon.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, sharedData } from '../support/world.js';
import { Hostile } from './hostile.js';

process.env['XDG_DATA_HOME'] = sharedData();

const pids = suite<{ engine: Engine }>('pid namespaces');

pids.before((context) => {
  context.engine = new Engine({ resident: true });
});
pids.after(({ engine }) => engine.close());

const all = (): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);

const namespaceOf = (pid: number): string | undefined => {
  try {
    return readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return undefined;
  }
};

/** The first process of the namespace that a VM is in. */
const wardenOf = (vm: number): number => {
  const namespace = namespaceOf(vm);
  const found = all().filter((pid) => nameOf(pid) === 'forkd_warden' && namespaceOf(pid) === namespace);
  assert.is(found.length, 1);
  return found[0] as number;
};

/** Without memory: it has ended, or waits for those that the host's first process has yet to reap. */
const isGone = (pid: number): boolean => {
  try {
    return !readFileSync(`/proc/${pid}/status`, 'utf8').includes('VmRSS');
  } catch {
    return true;
  }
};

/** What the kernel knows of those that are still there, to go by when they should not be. */
const left = (pids: number[]): string =>
  pids
    .filter((pid) => !isGone(pid))
    .map((pid) => {
      const of = (name: string) => {
        try {
          return readFileSync(`/proc/${pid}/${name}`, 'utf8').trim();
        } catch (error) {
          return String(error);
        }
      };
      const status = /^(Name|State|PPid|NSpid|SigPnd|ShdPnd|Threads):.*$/gm;
      return `${pid}: ${of('status').match(status)?.join(', ')}; ${of('stack')}`;
    })
    .join('\n');
const childrenOf = (pid: number): number[] => all().filter((one) => parentOf(one) === pid);

/** What somebody who broke out may have left: it has no reason to end by itself, and holds what the first process waits for. */
const intruder = (vm: number): Promise<unknown[]> => {
  const pidfd = native.pidfdOpen(vm);
  const line = native.pidfdGetfd(pidfd, VmmFd.line);
  // nsenter waits outside, and ends as that has.
  const inside = spawn('nsenter', ['--target', `${vm}`, '--pid', '--', 'sleep', '60'], {
    stdio: ['ignore', 'ignore', 'ignore', line],
  });
  for (const fd of [pidfd, line]) native.fdClose(fd);
  return once(inside, 'exit');
};

const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => '',
    (error: unknown) => ForkdError.from(error).code,
  );

pids('who breaks out, and even gets rid of the filter, sees and reaches no process outside', async () => {
  const inside = new Hostile(makeJail({ anyCall: true }));
  try {
    const [self, sibling] = [inside.copy(), inside.copy()];
    const warden = wardenOf(self.pid);
    assert.is(self.inside < 100 && sibling.inside < 100, true, 'numbers of its own');
    const attempt = async (what: number, victim: number) =>
      (await inside.attempt(what, victim)) as { result: number; error: string; text: string };
    for (const outside of [process.pid, self.pid, warden]) {
      assert.is((await attempt(11, outside)).error, 'ESRCH', 'kill');
      assert.is((await attempt(12, outside)).error, 'ESRCH', 'tgkill');
      assert.is((await attempt(15, outside)).error, 'ESRCH', 'pidfd_open');
      assert.is((await attempt(9, outside)).error, 'ESRCH', 'process_vm_readv');
      assert.is((await attempt(10, outside)).error, 'ESRCH', 'ptrace');
      for (const file of [7, 8]) assert.is((await attempt(file, outside)).error, 'ENOENT', '/proc');
    }
    assert.is((await attempt(37, 0)).result, 0, 'its parent is outside');
    assert.is((await attempt(11, 1)).error, 'EPERM', 'the first process is another user');
    assert.is((await attempt(10, 1)).error, 'EPERM');
    // It is the namespace that keeps them apart, not what else is in the way: a sibling can be named.
    assert.ok((await attempt(15, sibling.inside)).result >= 0);
    const { text } = (await inside.attempt(2, 0, self)) as { text: string };
    assert.equal(text.trim().split(' ').sort(), [String(self.inside), 'self', 'thread-self'].sort());
    sibling.kill();
    await sibling.ended;
  } finally {
    await inside.close();
  }
});

pids(
  'even root in the namespace of a real VM sees the VMs of its template, and reaches no other process',
  async ({ engine }) => {
    const template = await engine.warm(BASE_TAG);
    const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
    const [{ vmm }] = sandboxes as [Sandbox];
    const inside = (script: string) => {
      const run = spawnSync('nsenter', [
        '--target',
        `${vmm.pid}`,
        '--pid',
        '--',
        'unshare',
        '--mount',
        'sh',
        '-c',
        script,
      ]);
      return { status: run.status, text: `${run.stdout}${run.stderr}`.trim() };
    };
    const list = inside('mount -t proc proc /proc && cat /proc/[0-9]*/comm');
    assert.is(list.status, 0, list.text);
    const names = list.text.split('\n');
    const vms = names.filter((name) => name.startsWith('qemu-system')).length;
    assert.is(vms, template.lanes.length + sandboxes.length);
    assert.is(names.filter((name) => name === 'forkd_warden').length, 1);
    // What has been started to look.
    assert.ok(names.length - vms - 1 <= 2, list.text);
    const reach = (pid: number) => inside(`kill -0 ${pid}`);
    for (const pid of [process.pid, vmm.pid, wardenOf(vmm.pid)])
      assert.match(reach(pid).text, /No such process/, 'by the numbers of this host');
    assert.is(reach(vmm.inside?.pid ?? 0).status, 0, 'the VM itself, by its own');
    await engine.kill(sandboxes);
  },
);

pids(
  'where the kernel refuses it, VMs share the pids of their engine, which is told; unless that was ruled out',
  async () => {
    // There, and no program.
    const env = { FORKD_WARDEN_PATH: '/etc/passwd' };
    const fork = ['fork', '--tag', BASE_TAG, '-n', '2'];
    const command = ['--', 'echo', 'here'];
    const weaker = await forkd([...fork, ...command], { env });
    assert.is(weaker.code, 0, weaker.stderr);
    assert.match(weaker.stderr, /VMs run in a jail without a pid namespace: .*execve of the init/);
    assert.match(weaker.stdout, /\[1\] here/);
    const refused = await forkd([...fork, '--strict', ...command], { env });
    assert.is(refused.code, 1);
    assert.match(refused.stderr, /strict: this host cannot enforce .*execve of the init/);
  },
);

pids('the first process has nothing, and can do nothing but wait', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const [{ vmm }] = sandboxes as [Sandbox];
  const warden = wardenOf(vmm.pid);
  const status = readFileSync(`/proc/${warden}/status`, 'utf8');
  for (const set of ['CapPrm', 'CapEff', 'CapBnd']) assert.match(status, new RegExp(`^${set}:\\t0+$`, 'm'));
  assert.match(status, /^NoNewPrivs:\t1$/m);
  assert.match(status, /^Seccomp:\t2$/m);
  assert.match(status, new RegExp(`^NSpid:\\t${warden}\\t1$`, 'm'));
  const uidOf = (text: string) => /^Uid:\t(\d+)/m.exec(text)?.[1];
  assert.is.not(uidOf(status), uidOf(readFileSync(`/proc/${vmm.pid}/status`, 'utf8')));
  assert.ok(Number(uidOf(status)) > 0);
  assert.equal(readdirSync(`/proc/${warden}/fd`), ['0']);
  assert.ok(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) < 256, 'KiB');
  await engine.kill(sandboxes);
});

pids(
  'children and branches are in the namespace of their template, outlive it, and the last takes it away',
  async () => {
    const engine = new Engine({ resident: true });
    try {
      const template = await engine.warm(BASE_TAG);
      const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
      const [first, last] = sandboxes as [Sandbox, Sandbox];
      const warden = wardenOf(first.vmm.pid);
      const branch = await engine.branch(first.id);
      const members = [...template.lanes, ...branch.template.lanes].map(({ vm }) => vm.vmm.pid);
      for (const pid of [...members, last.vmm.pid]) assert.is(wardenOf(pid), warden);
      for (const { vm } of template.lanes) process.kill(vm.vmm.pid, 'SIGKILL');
      await engine.retire(branch.template);
      await engine.kill([first]);
      assert.ok(await eventually(() => !template.isAlive));
      assert.is((await engine.eval(last.id, '6 * 7')).result, '42');
      assert.is(wardenOf(last.vmm.pid), warden);
      await engine.kill([last]);
      assert.ok(await eventually(() => isGone(warden)));
      assert.is(last.death().code, 'VMM_DIED');
    } finally {
      await engine.close();
    }
  },
);

pids('who breaks out and leaves a process behind: it ends once no VM is left', async () => {
  const inside = new Hostile();
  const warden = wardenOf(inside.pid);
  await inside.attempt(38);
  const [left = 0] = childrenOf(warden);
  assert.is(namespaceOf(left), namespaceOf(inside.pid));
  await inside.close();
  assert.not(isGone(left));
  // An engine does so as well when it has waited for a while.
  Warden.endRest();
  assert.ok(await eventually(() => isGone(left) && isGone(warden)));
});

pids('ten cold children, each in a namespace of its own, leave no process', async ({ engine }) => {
  const before = childrenOf(process.pid);
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 10, cold: true });
  const wardens = sandboxes.map(({ vmm }) => wardenOf(vmm.pid));
  assert.is(new Set(wardens).size, 10);
  await engine.kill(sandboxes);
  assert.ok(await eventually(() => wardens.every(isGone)));
  // Reaped, too.
  assert.ok(await eventually(() => childrenOf(process.pid).every((pid) => before.includes(pid))));
});

pids('who ends the first process ends all of them, and that is what is told', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 2 });
  const [one, other] = sandboxes as [Sandbox, Sandbox];
  const call = codeOf(engine.exec(one.id, ['sleep', '30'], 60));
  await engine.eval(other.id, '1');
  process.kill(wardenOf(one.vmm.pid), 'SIGKILL');
  assert.is(await call, 'JAIL_ENDED');
  assert.ok(await eventually(() => other.state === 'dead'));
  assert.is(other.death().code, 'JAIL_ENDED');
  // One that is ended by itself is not told to be; and there is a new template.
  const again = await engine.fork({ tag: BASE_TAG, n: 1 });
  const [sandbox] = again.sandboxes as [Sandbox];
  process.kill(sandbox.vmm.pid, 'SIGKILL');
  await sandbox.ended;
  assert.is(sandbox.death().code, 'VMM_DIED');
});

pids('after kill -9 of an engine nothing is left', async () => {
  const world = makeWorld(true);
  const running = startCli(['fork', '--tag', BASE_TAG, '-n', '3', '--settle-secs', '60'], { env: world.env });
  try {
    await running.says('3 restores answered');
    const vms = qemusOf(world.root);
    assert.ok(vms.length >= 4, 'three, and their template');
    const wardens = new Set(vms.map(wardenOf));
    assert.is(wardens.size, 1);
    const intruding = intruder(vms[0] as number);
    const around = () => all().filter((pid) => namespaceOf(pid) === namespaceOf(vms[0] as number));
    assert.ok(await eventually(() => around().length === qemusOf(world.root).length + 2), 'and who has broken in');
    running.kill('SIGKILL');
    await running.ended;
    assert.ok(await eventually(() => [...wardens, ...vms].every(isGone), 10_000), left([...wardens, ...vms]));
    assert.is((await intruding)[1], 'SIGKILL');
    assert.equal(qemusOf(world.root), []);
  } finally {
    running.kill('SIGKILL');
    await running.ended;
    world.close();
  }
});

pids('a sandbox that outlives its daemon keeps its namespace, and the next daemon can tell of its end', async () => {
  const world = makeWorld(true);
  const first = await startDaemon(world, ['--log-level', 'warn']);
  let controller = new Controller({ baseUrl: `unix:${first.socketPath}`, timeoutMs: 60_000 });
  const [made] = await controller.spawnSandboxes({ snapshotTag: BASE_TAG, n: 1 });
  const { id = '', pid = 0 } = { id: made?.id, pid: made?.pid ?? undefined };
  const warden = wardenOf(pid);
  process.kill(first.pid, 'SIGKILL');
  await controller.close();
  assert.ok(await eventually(() => qemusOf(world.root).length === 1));
  const next = await startDaemon(world, ['--log-level', 'warn']);
  try {
    controller = new Controller({ baseUrl: `unix:${next.socketPath}`, timeoutMs: 60_000 });
    assert.is((await controller.evalCode(id, '6 * 7')).result, '42');
    assert.is(wardenOf(pid), warden);
    const told = controller.execCommand(id, ['sleep', '30']).then(
      () => '',
      (error: unknown) => String((error as ControllerError).message),
    );
    await controller.evalCode(id, '1');
    process.kill(warden, 'SIGKILL');
    assert.match(await told, /forkd_warden/);
    await controller.close();
  } finally {
    await next.stop();
    world.close();
  }
});

pids.run();
