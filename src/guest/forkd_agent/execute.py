"""The `exec` action: programs, any number at once, all watched by one thread that sleeps in epoll.

The thread that reads a request starts the program; this thread collects output, exit and timeout, and answers.
"""
import errno
import os
import select
import signal
import subprocess
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import output
from .children import Children, parent_of, processes, read_stat
from .image import Image, cwd_of
from .loop import WAIT_SECONDS_MAX

Reply = Callable[[Dict[str, Any]], None]

# A grandchild in the background may hold the pipes open long after the program ended: the answer does not wait for it.
LINGER_SECONDS = 0.2
# A killed process normally goes at once; one that hangs in the kernel must not keep its caller waiting.
KILL_SECONDS = 2.0
# Marks every process of one exec, so that a timeout also finds daemons that left the session and the process tree.
MARK = 'FORKD_EXEC_ID'


class Running:
    """One program under way."""

    def __init__(self, ident: int, args: List[str], timeout: Optional[float], reply: Reply) -> None:
        self.ident = ident
        self.args = args
        self.timeout = timeout
        self.reply = reply
        self.process: Any = None
        self.watch_fd = -1
        self.chunks: Dict[int, List[bytes]] = {}
        self.sizes: Dict[int, int] = {}
        self.names: Dict[int, str] = {}
        self.texts: Dict[str, str] = {'stdout': '', 'stderr': ''}
        self.stdin_fd = -1
        self.stdin_rest = memoryview(b'')
        self.timed_out = False
        self.exited = False
        self.answered = False
        self.deadline: Optional[float] = None if timeout is None else time.monotonic() + timeout

    def take(self, fd: int, data: bytes) -> None:
        room = output.LIMIT - self.sizes[fd]
        if room > 0:
            self.chunks[fd].append(data[:room])
        self.sizes[fd] += len(data)

    def text(self, fd: int) -> str:
        text = b''.join(self.chunks[fd]).decode('utf-8', 'replace')
        return text + output.truncation_note(self.names[fd]) if self.sizes[fd] > output.LIMIT else text


class Executor:
    def __init__(self, children: Children, image: Image) -> None:
        self._children = children
        self._image = image
        self._epoll = select.epoll()
        self._poke_read, self._poke_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._poke_read, select.EPOLLIN)
        self._by_fd: Dict[int, Running] = {}
        self._running: Dict[int, Running] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._wake_at: Optional[float] = None
        self._reap_at: Optional[float] = None
        self._orphans = False

    def begin(self) -> None:
        """Starts the thread. SIGCHLD tells it of orphans; the programs themselves are watched by pidfd."""
        signal.signal(signal.SIGCHLD, self._on_child)
        threading.Thread(target=self._serve, name='forkd-exec', daemon=True).start()

    def _on_child(self, _signal: int, _frame: Any) -> None:
        self._orphans = True
        self._poke()

    def _poke(self) -> None:
        try:
            os.write(self._poke_write, b'.')
        except BlockingIOError:
            pass  # Full of pokes already.

    # --- starting ----------------------------------------------------------------------------------------------------

    def start(self, request: Dict[str, Any], reply: Reply) -> None:
        args = request['args']
        timeout = request.get('timeout', 30)
        if timeout is not None and not isinstance(timeout, (int, float)):
            raise TypeError(f'timeout must be a number, not {type(timeout).__name__}')
        args = [args] if isinstance(args, str) else list(args)
        stdin = request.get('stdin')
        run = Running(self._next_ident(), args, timeout, reply)
        cwd = request.get('cwd') or cwd_of(self._image)
        env, user = request.get('env'), self._image.user
        if request.get('user') is not None:
            from .users import user_of

            user, home = user_of(request['user'])
            env = {**home, **(env or {})}
        run.process, pipes = spawn(args, env, cwd, user, stdin is not None, run.ident)
        self._watch(run, pipes, stdin)

    def _next_ident(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def _watch(self, run: Running, pipes: 'Pipes', stdin: Optional[str]) -> None:
        with self._lock:
            self._running[run.ident] = run
            for name, fd in (('stdout', pipes.stdout), ('stderr', pipes.stderr)):
                run.names[fd], run.chunks[fd], run.sizes[fd] = name, [], 0
                self._register(run, fd, select.EPOLLIN)
            if stdin is not None:
                run.stdin_rest = memoryview(stdin.encode('utf-8', 'surrogateescape'))
                run.stdin_fd = pipes.stdin
                self._register(run, run.stdin_fd, select.EPOLLOUT)
            if hasattr(os, 'pidfd_open'):
                run.watch_fd = os.pidfd_open(run.process.pid)
                self._register(run, run.watch_fd, select.EPOLLIN)
            late = run.deadline is not None and (self._wake_at is None or run.deadline < self._wake_at)
        if late:
            self._poke()

    def _register(self, run: Running, fd: int, events: int) -> None:
        self._by_fd[fd] = run
        self._epoll.register(fd, events)

    def _close(self, fd: int) -> None:
        del self._by_fd[fd]
        self._epoll.unregister(fd)
        os.close(fd)

    # --- watching ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                self._turn()
            except Exception as error:  # One program's trouble must not end the service for all.
                output.log(f'exec: {type(error).__name__}: {error}')

    def _turn(self) -> None:
        now = time.monotonic()
        with self._lock:
            deadlines = [run.deadline for run in self._running.values() if run.deadline is not None]
            if self._reap_at is not None:
                deadlines.append(self._reap_at)
            self._wake_at = min(deadlines) if deadlines else None
        timeout = -1 if self._wake_at is None else min(max(0.0, self._wake_at - now), WAIT_SECONDS_MAX)
        # Whose it was: what is done for one may close another's descriptor, and the next to be opened gets its number.
        for fd, run in [(fd, self._by_fd.get(fd)) for fd, _ in self._epoll.poll(timeout)]:
            if fd == self._poke_read:
                self._drain_pokes()
            elif run is not None and run is self._by_fd.get(fd):
                self._on_event(run, fd)
        self._check_deadlines()
        if self._orphans or (self._reap_at is not None and time.monotonic() >= self._reap_at):
            self._orphans = False
            self._reap_at = self._children.reap()

    def _drain_pokes(self) -> None:
        try:
            os.read(self._poke_read, 4096)
        except BlockingIOError:
            pass

    def _on_event(self, run: Running, fd: int) -> None:
        if fd == run.watch_fd:
            self._close(fd)
            self._on_exit(run)
        elif fd == run.stdin_fd:
            self._feed(run)
        elif not self._pull(run, fd):
            self._close(fd)
            self._finish_stream(run, fd)
        if run.exited and not run.names and not run.answered:
            self._answer(run)

    def _feed(self, run: Running) -> None:
        try:
            run.stdin_rest = run.stdin_rest[os.write(run.stdin_fd, run.stdin_rest[:65536]) :]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            run.stdin_rest = memoryview(b'')
        if not run.stdin_rest:
            self._close(run.stdin_fd)
            run.stdin_fd = -1

    def _pull(self, run: Running, fd: int) -> bool:
        """Reads once; False at the end of the stream."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return True
        if data and not run.answered:
            run.take(fd, data)
        return bool(data)

    def _finish_stream(self, run: Running, fd: int) -> None:
        if not run.answered:
            run.texts[run.names[fd]] = run.text(fd)
        del run.names[fd]
        run.chunks.pop(fd, None)

    def _on_exit(self, run: Running) -> None:
        run.process.wait()
        self._children.forget(run.process.pid)
        run.exited = True
        if run.names:
            run.deadline = time.monotonic() + LINGER_SECONDS

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        with self._lock:
            # None that another thread is about to watch: it may have ended already, and nothing of it been read.
            runs = list(self._running.values())
        for run in runs:
            if run.watch_fd < 0 and not run.exited and run.process.poll() is not None:
                self._on_exit(run)
                if not run.names:
                    self._answer(run)
                    continue
            if run.deadline is None or now < run.deadline or run.answered:
                continue
            if run.exited or run.timed_out:
                self._answer(run)
            else:
                run.timed_out = True
                run.deadline = now + KILL_SECONDS
                kill_tree(run.process.pid, run.ident)

    # --- answering ---------------------------------------------------------------------------------------------------

    def _answer(self, run: Running) -> None:
        for fd, name in run.names.items():
            while self._has_more(run, fd):
                pass
            run.texts[name] = run.text(fd)
        run.answered = True
        run.chunks.clear()
        with self._lock:
            self._running.pop(run.ident, None)
        if run.stdin_fd >= 0:
            self._close(run.stdin_fd)
            run.stdin_fd = -1
        run.reply(self._reply_of(run))

    def _has_more(self, run: Running, fd: int) -> bool:
        """Reads what is left in a pipe that someone still holds. Later output is read and dropped: closing the pipe
        would kill a service that the program left in the background."""
        before = run.sizes[fd]
        return self._pull(run, fd) and run.sizes[fd] > before

    def _reply_of(self, run: Running) -> Dict[str, Any]:
        code = run.process.returncode
        reply: Dict[str, Any] = {**run.texts, 'exit_code': -signal.SIGKILL if code is None else code}
        if run.timed_out:
            reply['timed_out'] = True
            reply['error'] = f"TimeoutExpired: Command '{run.args}' timed out after {run.timeout} seconds"
        return reply


class Pipes(NamedTuple):
    """Our ends. Without input there is no stdin pipe: the program reads /dev/null."""

    stdin: int
    stdout: int
    stderr: int


def spawn(
    args: List[str], env: Optional[Dict[str, str]], cwd: str, user: Dict[str, Any], stdin: bool, ident: Any
) -> Tuple[Any, Pipes]:
    """In a session of its own, so that a timeout can end the whole group."""
    ours: List[int] = []
    theirs: List[int] = []
    feed, feed_child = -1, subprocess.DEVNULL
    try:
        out, out_child = pipe(ours, theirs)
        err, err_child = pipe(ours, theirs)
        if stdin:
            feed_child, feed = pipe(theirs, ours)
        process = subprocess.Popen(
            args,
            stdin=feed_child,
            stdout=out_child,
            stderr=err_child,
            env={**os.environ, **(env or {}), MARK: str(ident)},
            cwd=cwd,
            start_new_session=True,
            **user,
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    for fd in ours:
        os.set_blocking(fd, False)
    return process, Pipes(feed, out, err)


def pipe(readers: List[int], writers: List[int]) -> Tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    readers.append(reader)
    writers.append(writer)
    return reader, writer


def kill_tree(leader: int, ident: Any) -> None:
    """Kills the program's process group, its session, its descendants, and whatever still carries its mark. Repeated,
    because a process may fork while the list is read."""
    for _ in range(5):
        victims = _victims(leader, ident)
        try:
            os.killpg(leader, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not victims:
            return


def _victims(leader: int, ident: Any) -> List[int]:
    parents = {pid: parent_of(pid) for pid in processes() if pid > 1}
    return [pid for pid in parents if pid != leader and _belongs(pid, leader, ident, parents)]


def _belongs(pid: int, leader: int, ident: Any, parents: Dict[int, Optional[int]]) -> bool:
    stat = read_stat(pid)
    if stat is None or stat[0] == 'Z':
        return False
    if int(stat[2]) == leader or int(stat[3]) == leader:
        return True
    ancestor = parents.get(pid)
    while ancestor and ancestor > 1:
        if ancestor == leader:
            return True
        ancestor = parents.get(ancestor)
    return _has_mark(pid, ident)


def _has_mark(pid: int, ident: Any) -> bool:
    try:
        with open(f'/proc/{pid}/environ', 'rb') as file:
            return f'{MARK}={ident}'.encode() in file.read().split(b'\0')
    except OSError:
        return False
