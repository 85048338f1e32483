#!/usr/bin/env python3
"""Measures the hot-fork shim alone, without the engine: boots a guest image under QEMU, warms it, freezes it, forks it.

    tools/hotfork-bench.py --image DIR --shim hotfork.so [--n 1 --n 100] [--trials 10] [--branch] [--json]

DIR holds vmlinuz, initrd.img and rootfs.ext4 (or rootfs.img). Figures are medians over the trials, in milliseconds.
"""
import argparse
import base64
import ctypes
import json
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time

MAGIC, VERSION = 0x4648, 1
FREEZE, FORK, RELEASE, BRANCH, STATUS = 1, 2, 3, 4, 5
HELLO, FROZEN, CHILD, DONE, RELEASED, STATE, REFUSED = range(128, 135)
GIVEN, PAIR_STREAM, PAIR_SEQPACKET, PIPE_WRITE, NULL, CLOSE, KEEP = range(7)
KINDS = 'unknown eventfd signalfd socket pipe file memfd device tun tty directory epoll'.split()
REPLACE = 3
FORK_FROZEN = 1


class Control:
    """One shim's control socket."""

    def __init__(self, sock):
        self.sock, self.last_id = sock, 0

    def send(self, kind, body=b'', fds=()):
        self.last_id += 1
        packet = struct.pack('<HBBI', MAGIC, VERSION, kind, self.last_id) + body
        if fds:
            socket.send_fds(self.sock, [packet], list(fds))
        else:
            self.sock.send(packet)

    def receive(self, *wanted):
        data, fds, _, _ = socket.recv_fds(self.sock, 16384, 200)
        if not data:
            raise SystemExit('control socket closed')
        kind, body = data[3], data[8:]
        if kind == REFUSED:
            code, number, made = struct.unpack_from('<IiI', body)
            raise SystemExit(f'refused: code {code} number {number} after {made} children: {body[12:].decode()}')
        assert kind in wanted, (kind, wanted)
        return kind, body, fds


class Agent:
    """Frames to and from the guest agent."""

    def __init__(self, sock):
        self.sock, self.buffer, self.id = sock, b'', 0

    @staticmethod
    def frame(number, request):
        payload = json.dumps(request).encode()
        return struct.pack('<HBBII', 0x4b46, 1, 0, number, len(payload)) + payload

    def take(self):
        """The next whole frame in the buffer, or None."""
        if len(self.buffer) < 12:
            return None
        magic, kind, _, number, length = struct.unpack_from('<HBBII', self.buffer)
        assert magic == 0x4b46, self.buffer[:64]
        if len(self.buffer) < 12 + length:
            return None
        payload = self.buffer[12:12 + length]
        self.buffer = self.buffer[12 + length:]
        return kind, number, json.loads(payload)

    def wait(self):
        while True:
            frame = self.take()
            if frame:
                return frame
            self.sock.settimeout(60)
            data = self.sock.recv(65536)
            if not data:
                raise SystemExit('agent socket closed')
            self.buffer += data

    def begin_life(self, index):
        """What a child is told, sent as a child is: both requests at once. Any other way takes other paths in the guest."""
        self.sock.send(self.frame(1, fork_request(index)) + self.frame(2, EVAL))
        fork, value = self.wait()[2], self.wait()[2]
        assert fork['exit_code'] == 0, fork
        assert value['result'] == '[0.0, 0.0, 0.0, 0.0, 0.0]', value

    def call(self, **request):
        self.id += 1
        self.sock.sendall(self.frame(self.id, request))
        return self.wait()[2]


def fork_request(index):
    return {'action': 'fork', 'entropy': base64.b64encode(os.urandom(64)).decode(), 'clock_ns': str(time.time_ns()),
            'hostname': f'child-{index}', 'machine_id': os.urandom(16).hex(), 'index': index}


EVAL = {'action': 'eval', 'code': 'numpy.zeros(5).tolist()'}


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Machine:
    """A QEMU process. With `state`, one that starts from a saved device state and a memory image, else one that boots."""

    def __init__(self, options, memory, state=None):
        self.options = options
        control, control_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent, agent_child = socket.socketpair()
        qmp, qmp_child = socket.socketpair()
        null = os.open('/dev/null', os.O_RDWR)
        console = os.open(options.console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        image = options.image
        root = next(f'{image}/{n}' for n in ('rootfs.ext4', 'rootfs.img', 'rootfs.squashfs') if os.path.exists(f'{image}/{n}'))
        command = [
            options.qemu, '-M', options.machine + ',memory-backend=ram', '-accel', options.accel, '-cpu', options.cpu,
            '-m', f'{options.memory}M', '-smp', str(options.smp), '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
            '-object', f'memory-backend-file,id=ram,size={options.memory}M,mem-path=/proc/self/fd/{memory},share={"off" if state else "on"}',
            '-blockdev', f'driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={root},file.aio=threads,file.locking=off',
            '-device', 'virtio-blk-device,drive=root',
            '-device', 'virtio-serial-device', '-chardev', f'socket,id=agent,fd={agent_child.fileno()}',
            '-device', 'virtserialport,chardev=agent,name=forkd.agent.0',
            '-chardev', f'file,id=console,path=/proc/self/fd/{console},append=on', '-serial', 'chardev:console',
            '-chardev', f'socket,id=qmp,fd={qmp_child.fileno()}', '-mon', 'chardev=qmp,mode=control',
        ]
        if state:
            command += ['-incoming', 'defer']
        else:
            command += ['-kernel', f'{image}/vmlinuz', '-initrd', f'{image}/initrd.img', '-append', options.append]
        environment = dict(os.environ)
        if state:
            environment.update(LD_PRELOAD=options.shim, FORKD_HOTFORK_FD=str(control_child.fileno()))
            environment.update(setting.split('=', 1) for setting in options.env)
        passed = [control_child.fileno(), agent_child.fileno(), qmp_child.fileno(), memory, console]
        self.process = subprocess.Popen(command, pass_fds=passed, env=environment, stdin=null, stdout=null, stderr=null if options.quiet else None,
                                        preexec_fn=die_with_parent)
        self.roles = {control_child.fileno(): 'control', agent_child.fileno(): 'agent', qmp_child.fileno(): 'qmp'}
        for sock in (control_child, agent_child, qmp_child):
            sock.close()
        os.close(null)
        os.close(console)
        self.control, self.agent, self.qmp = Control(control), Agent(agent), qmp
        self.qmp_lines = qmp.makefile('r')
        self.pid = self.process.pid
        if state:
            self.control.receive(HELLO)
        self.qmp_lines.readline()
        self.execute('qmp_capabilities')

    def execute(self, command, fd=None, **arguments):
        text = (json.dumps({'execute': command, 'arguments': arguments}) + '\n').encode()
        if fd is None:
            self.qmp.sendall(text)
        else:
            socket.send_fds(self.qmp, [text], [fd])
        while True:
            reply = json.loads(self.qmp_lines.readline())
            if 'error' in reply:
                raise SystemExit(f'{command}: {reply}')
            if 'return' in reply:
                return reply['return']

    def migrate(self, command, fd):
        """Saves to or loads from a file, device state alone: memory stays in its memfd."""
        self.execute('migrate-set-capabilities', capabilities=[{'capability': 'x-ignore-shared', 'state': True}])
        self.execute('getfd', fdname='state', fd=fd)
        self.execute(command, uri='fd:state')
        while (status := self.execute('query-migrate').get('status')) != 'completed':
            assert status not in ('failed', 'cancelled'), status
            time.sleep(0.005)

    def kill(self):
        self.process.kill()
        self.process.wait()


def make_template(options):
    """Boots, saves, and starts again from the saved state: guest memory is then clean pages of a shared file, as in production."""
    memory = os.memfd_create('ram')
    os.ftruncate(memory, options.memory << 20)
    started = time.monotonic()
    parent = Machine(options, memory)
    parent.agent.wait()
    for _ in range(5):
        parent.agent.call(**EVAL)
    booted = time.monotonic()
    parent.execute('stop')
    state = os.memfd_create('state')
    parent.migrate('migrate', state)
    parent.kill()
    os.lseek(state, 0, os.SEEK_SET)
    template = Template(options, memory, state)
    template.migrate('migrate-incoming', state)
    template.execute('cont')
    template.agent.call(**EVAL)
    print(f'boot {booted - started:.2f} s, restore {time.monotonic() - booted:.2f} s, pid {template.pid}', file=sys.stderr)
    return template


class Template(Machine):
    def warm(self):
        """Through the path that a child takes: park, identity, eval."""
        for i in range(self.options.warm):
            self.control.send(FREEZE, struct.pack('<I', 0))
            self.control.receive(FROZEN)
            self.control.send(RELEASE)
            self.control.receive(RELEASED)
            self.agent.begin_life(i)
            time.sleep(self.options.warm_pause)
        if self.options.trim:
            self.freeze(1)
            self.release()
            for i in range(self.options.trim):
                self.agent.begin_life(i)
                time.sleep(self.options.trim_pause)

    def freeze(self, flags=0):
        self.control.send(FREEZE, struct.pack('<I', flags))
        _, body, _ = self.control.receive(FROZEN)
        self.park_us, self.freeze_us, self.threads, count = struct.unpack_from('<IIII', body)
        self.table = [struct.unpack_from('<iBBHI', body, 16 + 12 * i) for i in range(count)]
        return self.entries()

    def release(self):
        self.control.send(RELEASE)
        self.control.receive(RELEASED)

    def entries(self):
        """What children get in place of what they cannot share."""
        out = []
        for fd, kind, disposition, _, _ in self.table:
            if disposition != REPLACE:
                continue
            role = self.roles.get(fd)
            how = {'control': PAIR_SEQPACKET, 'agent': PAIR_STREAM, 'qmp': PAIR_STREAM if self.options.child_qmp else NULL}.get(role, NULL)
            out.append((fd, how, role))
        return out


def fork_body(flags, count, entries, first=1):
    return struct.pack('<IIII', flags, count, first, len(entries)) + b''.join(struct.pack('<iI', fd, how) for fd, how, _ in entries)


class Child:
    def __init__(self, body, fds, entries, started):
        self.index, self.pid, self.fork_us, self.pause_us = struct.unpack_from('<IIII', body)
        self.pidfd = fds[0]
        self.born = time.monotonic() - started
        peers = [role for _, how, role in entries if how in (PAIR_STREAM, PAIR_SEQPACKET, PIPE_WRITE)]
        self.fds = dict(zip(peers, fds[1:]))
        self.agent = Agent(socket.socket(fileno=self.fds['agent']))
        self.replies = []
        self.ready = None

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.agent.sock.close()
        for role, fd in self.fds.items():
            if role != 'agent':
                os.close(fd)
        os.close(self.pidfd)


def fan_out(template, entries, count, flags=0, window=0):
    """
    From the request until the last child has taken its identity and answered an eval. With a window, no more than so many
    children are under way at once: each then runs nearly to completion, where a hundred would preempt each other.
    """
    epoll = select.epoll()
    control = template.control
    epoll.register(control.sock, select.EPOLLIN)
    children, waiting, forked = {}, count, None
    batch = window or count
    asked = 0
    started = time.monotonic()

    def ask(more):
        nonlocal asked
        more = min(more, count - asked)
        if more > 0:
            control.send(FORK, fork_body(flags, more, entries, asked + 1))
            asked += more

    ask(batch)
    while waiting or forked is None:
        for fd, _ in epoll.poll(30) or sys.exit(f'{waiting} of {count} children did not answer'):
            if fd == control.sock.fileno():
                kind, body, fds = control.receive(CHILD, DONE)
                if kind == DONE:
                    if len(children) == count:
                        forked = time.monotonic() - started
                    continue
                child = Child(body, fds, entries, started)
                child.agent.sock.send(Agent.frame(1, fork_request(child.index)) + Agent.frame(2, EVAL))
                children[child.agent.sock.fileno()] = child
                epoll.register(child.agent.sock, select.EPOLLIN)
                continue
            child = children[fd]
            data = child.agent.sock.recv(65536)
            if not data:
                sys.exit(f'child {child.index} (pid {child.pid}) died')
            child.agent.buffer += data
            while (frame := child.agent.take()) is not None:
                child.replies.append(frame[2])
            if len(child.replies) == 2 and child.ready is None:
                child.ready = time.monotonic() - started
                waiting -= 1
                ask(1)
    ready = time.monotonic() - started
    for child in children.values():
        assert child.replies[1].get('result') == '[0.0, 0.0, 0.0, 0.0, 0.0]', child.replies
        assert 'error' not in child.replies[0], child.replies
    return list(children.values()), ready, forked


def smaps(pid, key):
    with open(f'/proc/{pid}/smaps_rollup') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ':'))


def cpu_ms(pid):
    with open(f'/proc/{pid}/schedstat') as file:
        leader = int(file.read().split()[0])
    total = 0
    for tid in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{tid}/schedstat') as file:
            total += int(file.read().split()[0])
    return max(total, leader) / 1e6


def median(values):
    return round(statistics.median(values), 3)


def measure(template, count, trials, options):
    entries = template.freeze(options.freeze_flags)
    result = {'n': count, 'trials': trials, 'park_us': template.park_us, 'freeze_us': template.freeze_us,
              'threads': template.threads}
    ready, forked, fork_us, child_ms, pss, cpu = [], [], [], [], [], []
    before = cpu_ms(template.pid)
    perf = None
    if options.perf:
        # Events are inherited over fork: this covers the template and all children, and nobody else on the machine.
        perf = subprocess.Popen(['perf', 'record', '-q', '-F', '20000', '-g', '-p', str(template.pid), '-o', options.perf])
        time.sleep(1)
    for _ in range(trials):
        children, ready_s, forked_s = fan_out(template, entries, count, options.fork_flags, options.window)
        ready.append(ready_s * 1e3)
        forked.append(forked_s * 1e3)
        fork_us += [child.fork_us for child in children]
        child_ms += [(child.ready - child.born) * 1e3 for child in children]
        cpu += [cpu_ms(child.pid) for child in children]
        pss.append(smaps(children[-1].pid, 'Pss'))
        if options.idle and _ == trials - 1:
            time.sleep(1)
            first = [cpu_ms(child.pid) for child in children]
            time.sleep(options.idle)
            result['idle_cpu_percent'] = round(sum(cpu_ms(c.pid) - f for c, f in zip(children, first)) / count / options.idle / 10, 4)
        for child in children:
            child.end()
    if perf:
        perf.send_signal(signal.SIGINT)
        perf.wait()
    result.update(ready_ms=median(ready), ready_min_ms=round(min(ready), 3), forked_ms=median(forked), fork_us=median(fork_us),
                  child_ready_ms=median(child_ms), cpu_ms_per_child=median(cpu), pss_kib=median(pss),
                  template_cpu_ms_per_child=round((cpu_ms(template.pid) - before) / count / trials, 3))
    template.release()
    return result


def measure_branch(template, trials, options):
    """A running source: how long it stands still, and until its frozen copy's child has answered."""
    pause, total = [], []
    entries = template.freeze()
    template.release()
    for _ in range(trials):
        assert template.agent.call(**EVAL)['exit_code'] == 0
        time.sleep(0.02)
        started = time.monotonic()
        template.control.send(BRANCH, fork_body(FORK_FROZEN, 1, entries))
        _, body, fds = template.control.receive(CHILD)
        copy = Child(body, fds, entries, started)
        template.control.receive(DONE)
        total.append((time.monotonic() - started) * 1e3)
        pause.append(copy.pause_us / 1e3)
        assert template.agent.call(**EVAL)['exit_code'] == 0
        copy_control = Control(socket.socket(fileno=copy.fds['control']))
        copy_control.sock.setblocking(True)
        copy_control.send(RELEASE)
        copy_control.receive(RELEASED)
        assert copy.agent.call(**fork_request(1))['exit_code'] == 0
        assert copy.agent.call(**EVAL)['result'] == '[0.0, 0.0, 0.0, 0.0, 0.0]'
        copy_control.sock.detach()
        copy.end()
    return {'branch_pause_ms': median(pause), 'branch_pause_max_ms': round(max(pause), 3), 'branch_total_ms': median(total)}


def tsc_khz():
    """The emulated counter runs at the host's rate; telling the guest spares it a calibration that fails on a loaded host."""
    with open('/proc/cpuinfo') as file:
        mhz = next(float(line.split(':')[1]) for line in file if line.startswith('cpu MHz'))
    return f' tsc_early_khz={int(mhz * 1000)}'


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--image', required=True)
    parser.add_argument('--shim', required=True)
    parser.add_argument('--qemu', default='qemu-system-x86_64')
    parser.add_argument('--machine', default='microvm,acpi=on,pit=on,rtc=on,isa-serial=on')
    parser.add_argument('--accel', default='tcg,thread=multi')
    parser.add_argument('--cpu', default='max')
    parser.add_argument('--memory', type=int, default=512)
    parser.add_argument('--smp', type=int, default=1)
    parser.add_argument('--append', default='console=ttyS0 quiet reboot=t panic=-1 random.trust_cpu=on tsc=reliable no_timer_check mitigations=off' + tsc_khz())
    parser.add_argument('--env', action='append', default=[])
    parser.add_argument('--n', type=int, action='append')
    parser.add_argument('--trials', type=int, default=10)
    parser.add_argument('--warm', type=int, default=30)
    parser.add_argument('--warm-pause', type=float, default=0.02)
    parser.add_argument('--trim', type=int, default=0, help='trim, then warm so many times more')
    parser.add_argument('--trim-pause', type=float, default=0.15)
    parser.add_argument('--freeze-flags', type=int, default=0)
    parser.add_argument('--child-qmp', action='store_true')
    parser.add_argument('--perf', help='record a profile of the fan-outs into this file')
    parser.add_argument('--actions', action='store_true', help='CPU time of the agent\'s answers in the warm template itself')
    parser.add_argument('--realtime', action='store_true', help='SCHED_RR while measuring')
    parser.add_argument('--fork-flags', type=int, default=0)
    parser.add_argument('--window', type=int, default=0, help='children under way at once; 0: all')
    parser.add_argument('--branch', action='store_true')
    parser.add_argument('--idle', type=float, default=0)
    parser.add_argument('--console', default='/tmp/hotfork-console.txt')
    parser.add_argument('--quiet', action='store_true')
    parser.add_argument('--hold', action='store_true', help='after warming, print the pid and wait for Enter')
    parser.add_argument('--keep', type=float, default=0, help='keep one child alive for so many seconds, and print its pid')
    parser.add_argument('--freeze-pause', type=float, default=0, help='stay frozen so long before a child asks its clock')
    options = parser.parse_args()
    template = make_template(options)
    try:
        template.warm()
        if options.realtime:
            # On a machine shared with other work the figures would tell of that. Children inherit the policy.
            for tid in [0, *map(int, os.listdir(f'/proc/{template.pid}/task'))]:
                os.sched_setscheduler(tid, os.SCHED_RR, os.sched_param(10))
        if options.freeze_pause:
            print(json.dumps(check_clock(template, options)))
        if options.actions:
            print(json.dumps(measure_actions(template)), flush=True)
        for count in options.n or []:
            print(json.dumps(measure(template, count, options.trials, options)), flush=True)
        if options.branch:
            print(json.dumps(measure_branch(template, options.trials, options)), flush=True)
        if options.keep:
            entries = template.freeze(options.freeze_flags)
            children, _, _ = fan_out(template, entries, 1)
            print('child', children[0].pid, 'template', template.pid, flush=True)
            time.sleep(options.keep)
            children[0].end()
        if options.hold:
            input()
    finally:
        template.kill()


def measure_actions(template):
    """What the guest's own work costs where nothing is cold: the floor below which no fork can bring a child."""
    out = {}
    requests = {'ping': {'action': 'ping'}, 'eval': EVAL, 'fork': fork_request(1)}
    for name, request in requests.items():
        before, started = cpu_ms(template.pid), time.monotonic()
        for _ in range(100):
            template.agent.call(**request)
        out[name] = {'cpu_ms': round((cpu_ms(template.pid) - before) / 100, 3), 'ms': round((time.monotonic() - started) * 10, 3)}
    before = cpu_ms(template.pid)
    time.sleep(3)
    out['idle_cpu_percent'] = round((cpu_ms(template.pid) - before) / 30, 3)
    return out


def check_clock(template, options):
    """The guest's clock must not see how long its monitor was frozen."""
    code = "__import__('time').monotonic()"
    before, wall = float(template.agent.call(action='eval', code=code)['result']), time.monotonic()
    entries = template.freeze()
    time.sleep(options.freeze_pause)
    children, _, _ = fan_out(template, entries, 1)
    after = float(children[0].agent.call(action='eval', code=code)['result'])
    children[0].end()
    template.release()
    source = float(template.agent.call(action='eval', code=code)['result'])
    return {'frozen_s': options.freeze_pause, 'host_s': round(time.monotonic() - wall, 3), 'child_saw_s': round(after - before, 4),
            'source_saw_s': round(source - before, 4)}


if __name__ == '__main__':
    main()
