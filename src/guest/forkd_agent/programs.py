"""Programs whose output is heard while they run: with input, with a terminal, in the background, and attached to again."""
import collections
import fcntl
import functools
import os
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

from . import execute
from .ends import Sink, Source
from .image import cwd_of
from .streams import CHUNK, Reply, Stream, Streams

STDIN, STDOUT, STDERR = 0, 1, 2
# The newest output of a program that nobody listens to.
TAIL_BYTES = 256 * 1024
# Programs in the background that have ended, kept until somebody attaches; of more, the oldest go.
ENDED_MAX = 64


class Program:
    """One program. All of it lives in the loop's thread, once `begin` was called there."""

    def __init__(self, owner: 'Programs', number: int, request: Dict[str, Any], spawned: 'Spawned') -> None:
        self.number = number
        self.args: List[str] = spawned.args
        self.pid: int = spawned.process.pid
        self.mark = spawned.mark
        self.detached = bool(request.get('detach'))
        self.began = time.time()
        self.exit_code: Optional[int] = None
        self._owner = owner
        self._loop = owner.streams.loop
        self._process = spawned.process
        self._terminal = spawned.terminal
        self._lock = threading.Lock()
        self._timeout: Optional[float] = request.get('timeout')
        self._timed_out = False
        self._tail: Deque[Tuple[int, bytes]] = collections.deque()
        self._tail_bytes = 0
        self._stream: Optional[Stream] = None
        self._sources = {
            channel: Source(self._loop, fd, self._room, functools.partial(self._give, channel))
            for channel, fd in spawned.outputs.items()
        }
        self._sink = Sink(self._loop, spawned.stdin, self._consumed) if spawned.stdin >= 0 else None
        self._pidfd = os.pidfd_open(self.pid)

    def begin(self) -> None:
        self._loop.watch(self._pidfd, select.EPOLLIN, self._exited)
        if self._timeout is not None:
            self._loop.at(time.monotonic() + self._timeout, ('timeout', self.number), self._late)
        self._listen()

    # --- who listens -------------------------------------------------------------------------------------------------

    def attach(self, stream: Stream) -> None:
        before, self._stream = self._stream, stream
        if before is not None:
            before.finish({'error': 'Replaced: another attach took its place', 'exit_code': 1})
        stream.opened({'run': self.number, 'pid': self.pid, 'tty': self._terminal >= 0})
        self.pump()

    def leave(self, stream: Stream) -> None:
        """The host wants no more of it: it ends, if it was to run only for this host."""
        if self._stream is not stream:
            return
        if not self.detached and stream.heard:
            # It hears how the program ended, and no more output.
            stream.mute()
            self.kill()
            return self.pump()
        self._stream = None
        # Nobody is told: it is the listener who has gone.
        stream.heard = False
        stream.finish({})
        self._listen()

    def pump(self) -> None:
        """Sends what was kept, then what comes. After each grant of the host."""
        stream = self._stream
        while stream is not None and self._tail and stream.credit > 0:
            channel, data = self._tail.popleft()
            part = data[: stream.credit]
            if len(part) < len(data):
                self._tail.appendleft((channel, data[len(part) :]))
            self._tail_bytes -= len(part)
            stream.data(channel, part)
        if self._tail and stream is not None:
            return
        self._listen()
        if self.exit_code is not None:
            self._tell()

    def _listen(self) -> None:
        for source in self._sources.values():
            source.resume()

    def _room(self) -> int:
        if self._stream is None:
            return CHUNK
        return 0 if self._tail else min(CHUNK, self._stream.credit)

    def _give(self, channel: int, data: bytes) -> None:
        if data and self._stream is not None:
            self._stream.data(channel, data)
        elif data and self.detached:
            self._keep(channel, data)
        source = self._sources[channel]
        if data and source.left != 0:
            return
        del self._sources[channel]
        if data:
            self._let_go(source)
        if not self._sources and self._process.returncode is not None:
            self._end()

    def _keep(self, channel: int, data: bytes) -> None:
        self._tail.append((channel, data))
        self._tail_bytes += len(data)
        while self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft()[1])

    # --- input and control -------------------------------------------------------------------------------------------

    def feed(self, data: memoryview) -> None:
        if self._sink is None:
            self._consumed(len(data))
        else:
            self._sink.take(data)

    def end_input(self) -> None:
        if self._sink is None:
            return
        if self._terminal >= 0:
            # What a user types to say so.
            self._sink.take(memoryview(b'\x04'))
        else:
            self._sink.finish(self._sink.close)

    def _consumed(self, count: int) -> None:
        if self._stream is not None:
            self._stream.consumed(count)

    def control(self, request: Dict[str, Any]) -> None:
        """In any thread: it only makes system calls. Raises what the answer tells."""
        with self._lock:
            if self.exit_code is not None:
                raise ProcessLookupError('the program has ended')
            if 'signal' in request:
                os.killpg(self.pid, signal_number(request['signal']))
            elif 'rows' not in request:
                raise ValueError('control needs signal, or rows and cols')
            elif self._terminal < 0:
                raise ValueError('the program has no terminal')
            else:
                set_size(self._terminal, request)

    def kill(self) -> None:
        if self.exit_code is None:
            execute.kill_tree(self.pid, self.mark)

    # --- its end -----------------------------------------------------------------------------------------------------

    def _late(self) -> None:
        self._timed_out = True
        self.kill()
        self._loop.at(time.monotonic() + execute.KILL_SECONDS, ('timeout', self.number), self._hung)

    def _hung(self) -> None:
        """It hangs in the kernel: its caller need not."""
        self.exit_code = -int(signal.SIGKILL)
        self._tail.clear()
        self._tell()

    def _exited(self, _events: int) -> None:
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._owner.streams.children.forget(self.pid)
        self._loop.cancel(('timeout', self.number))
        if self._sources:
            self._loop.at(time.monotonic() + execute.LINGER_SECONDS, ('linger', self.number), self._lingered)
        else:
            self._end()

    def _lingered(self) -> None:
        """Somebody in the background still holds the output: what is in there now is the last that counts."""
        for channel, source in list(self._sources.items()):
            source.left = waiting_bytes(source.fd)
            if source.left == 0:
                del self._sources[channel]
                self._let_go(source)
        if not self._sources:
            self._end()

    def _let_go(self, source: Source) -> None:
        if self._terminal >= 0:
            source.close()
        else:
            source.drain()

    def _end(self) -> None:
        self._loop.cancel(('linger', self.number))
        with self._lock:
            self.exit_code = self._process.returncode
            terminal, self._terminal = self._terminal, -1
        if self._sink is not None:
            self._sink.close()
        if terminal >= 0:
            os.close(terminal)
        if not self.detached:
            self._owner.remove(self)
        self._owner.prune()
        self._tell()

    def _tell(self) -> None:
        """To whoever listens, when it has heard all."""
        stream = self._stream
        if stream is None or self._tail:
            return
        self._stream = None
        answer: Dict[str, Any] = {'exit_code': self.exit_code}
        if self._timed_out:
            answer['timed_out'] = True
            answer['error'] = f"TimeoutExpired: Command '{self.args}' timed out after {self._timeout} seconds"
        self._owner.remove(self)
        stream.finish(answer)

    def facts(self) -> Dict[str, Any]:
        return {
            'run': self.number,
            'pid': self.pid,
            'args': self.args,
            'tty': self._terminal >= 0,
            'attached': self._stream is not None,
            'began_unix': self.began,
            'exit_code': self.exit_code,
        }


class RunStream(Stream):
    """Between a program and the host."""

    program: Program

    def __init__(self, programs: 'Programs', action: str, ident: int, request: Dict[str, Any], reply: Reply) -> None:
        super().__init__(programs.streams, ident, request, reply)
        self._programs = programs
        self._loop = programs.streams.loop
        self._action = action

    def begin(self, request: Dict[str, Any]) -> None:
        if self._action == 'attach':
            self.program = self._programs.find(request['run'])
            self._loop.call(lambda: self.program.attach(self))
        else:
            self.program = self._programs.spawn(request)
            self._loop.call(self._listen_from_the_first)

    def _listen_from_the_first(self) -> None:
        self.program.attach(self)
        self.program.begin()

    def on_data(self, channel: int, data: memoryview) -> None:
        self._loop.call(lambda: self.program.feed(data))

    def on_end(self, channel: int) -> None:
        self._loop.call(lambda: self.program.end_input())

    def on_credit(self, count: int) -> None:
        self._loop.call(lambda: self._more(count))

    def _more(self, count: int) -> None:
        self.credit += count
        self.program.pump()

    def on_control(self, request: Dict[str, Any]) -> None:
        self.program.control(request)

    def on_close(self) -> None:
        self._loop.call(lambda: self.program.leave(self))


class Programs:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self._all: Dict[int, Program] = {}
        self._count = 0
        self._lock = threading.Lock()

    def stream(self, action: str, ident: int, request: Dict[str, Any], reply: Reply) -> RunStream:
        return RunStream(self, action, ident, request, reply)

    def spawn(self, request: Dict[str, Any]) -> Program:
        """It runs, and nothing of it is read before its `begin`."""
        with self._lock:
            self._count += 1
            number = self._count
        spawned = spawn(request, f'run-{number}', self.streams.image)
        try:
            program = Program(self, number, request, spawned)
        except BaseException:
            # No descriptor is left by which it could be watched.
            spawned.give_up()
            self.streams.children.forget(spawned.process.pid)
            raise
        self._all[number] = program
        return program

    def run_detached(self, request: Dict[str, Any]) -> Dict[str, Any]:
        program = self.spawn(request)
        self.streams.loop.call(program.begin)
        return {'run': program.number, 'pid': program.pid, 'exit_code': 0}

    def find(self, number: Any) -> Program:
        program = self._all.get(number)
        if program is None:
            raise LookupError(f'no program {number} in the background')
        return program

    def list(self) -> Dict[str, Any]:
        return {'runs': [one.facts() for one in list(self._all.values()) if one.detached], 'exit_code': 0}

    def control(self, request: Dict[str, Any]) -> None:
        self.find(request['run']).control(request)

    def remove(self, program: Program) -> None:
        self._all.pop(program.number, None)

    def prune(self) -> None:
        # A copy: other threads add to it meanwhile.
        ended = [one for one in list(self._all.values()) if one.exit_code is not None]
        for one in ended[: max(0, len(ended) - ENDED_MAX)]:
            self.remove(one)


class Spawned:
    def __init__(self, args: List[str], process: Any, mark: str) -> None:
        self.args = args
        self.process = process
        self.mark = mark
        self.outputs: Dict[int, int] = {}
        self.stdin = -1
        self.terminal = -1

    def give_up(self) -> None:
        # First: whoever looks through /proc needs a descriptor.
        for fd in (*self.outputs.values(), self.stdin, self.terminal):
            if fd >= 0:
                os.close(fd)
        execute.kill_tree(self.process.pid, self.mark)
        self.process.wait()


def spawn(request: Dict[str, Any], mark: str, image: Any) -> Spawned:
    args = request['args']
    args = [args] if isinstance(args, str) else list(args)
    env: Dict[str, str] = dict(request.get('env') or {})
    user = dict(image.user)
    if request.get('user') is not None:
        from .users import user_of

        user, home = user_of(request['user'])
        env = {**home, **env}
    cwd = request.get('cwd') or cwd_of(image)
    if request.get('tty'):
        return spawn_on_terminal(args, request, env, cwd, user, mark)
    process, pipes = execute.spawn(args, env, cwd, user, bool(request.get('stdin')), mark)
    spawned = Spawned(args, process, mark)
    spawned.outputs = {STDOUT: pipes.stdout, STDERR: pipes.stderr}
    spawned.stdin = pipes.stdin
    return spawned


def spawn_on_terminal(
    args: List[str], request: Dict[str, Any], env: Dict[str, str], cwd: str, user: Dict[str, Any], mark: str
) -> Spawned:
    master, slave = os.openpty()
    ours = [master]
    try:
        # One descriptor for each direction: each is watched by itself.
        ours += [os.dup(master)]
        ours += [os.dup(master)]
        set_size(master, request)
        if 'user' in user:
            os.fchown(slave, user['user'], -1)
        process = subprocess.Popen(
            args,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, 'TERM': 'xterm-256color', **env, execute.MARK: mark},
            cwd=cwd,
            start_new_session=True,
            # Runs between fork and exec: a system call and nothing else, since other threads may hold any lock.
            preexec_fn=TAKE_TERMINAL,
            **user,
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        os.close(slave)
    spawned = Spawned(args, process, mark)
    spawned.terminal, spawned.outputs[STDOUT], spawned.stdin = ours
    return spawned


TAKE_TERMINAL: Callable[[], Any] = functools.partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)


def set_size(terminal: int, request: Dict[str, Any]) -> None:
    size = struct.pack('HHHH', int(request.get('rows') or 24), int(request.get('cols') or 80), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def waiting_bytes(fd: int) -> int:
    return struct.unpack('i', fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]


def signal_number(given: Any) -> int:
    if isinstance(given, int):
        return int(signal.Signals(given))
    name = str(given).upper()
    return int(signal.Signals[name if name.startswith('SIG') else f'SIG{name}'])
