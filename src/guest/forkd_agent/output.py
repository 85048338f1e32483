"""sys.stdout and sys.stderr of evaluated code: each eval gets its own text back, even with several at once."""
import io
import os
import sys
import threading
from typing import Dict, List, Optional


def output_limit() -> int:
    """Bytes kept of one stream. 64 MiB, less in a small guest: JSON may need six characters for one byte, twice."""
    try:
        with open('/proc/meminfo') as file:
            total = int(file.readline().split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        total = 512 * 1024 * 1024
    return min(64 * 1024 * 1024, total // 32)


LIMIT = output_limit()


def truncation_note(stream: str) -> str:
    return f'\n[forkd: {stream} truncated at {LIMIT} bytes]\n'


class Captured:
    """Text written during one eval. Buffers appear with the first write: most evals print nothing."""

    __slots__ = ('_buffers',)

    def __init__(self) -> None:
        self._buffers: Dict[str, io.StringIO] = {}

    def write(self, stream: str, text: str) -> None:
        buffer = self._buffers.get(stream)
        if buffer is None:
            # In one step: threads of one eval may both be the first.
            buffer = self._buffers.setdefault(stream, io.StringIO())
        room = LIMIT - buffer.tell()
        if room > len(text):
            buffer.write(text)
        elif room > 0:
            buffer.write(text[:room] + truncation_note(stream))

    def text(self, stream: str) -> str:
        buffer = self._buffers.get(stream)
        return '' if buffer is None else buffer.getvalue()


_current = threading.local()
_active: List[Captured] = []


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, owner: 'Stream') -> None:
        self._owner = owner

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self._owner.write(bytes(data).decode('utf-8', 'replace'))
        return len(data)


class Stream(io.TextIOBase):
    """Goes to the eval of the calling thread; from a thread that evaluated code started, to the newest eval running;
    else to the console."""

    encoding = 'utf-8'
    errors = 'replace'

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        self._fd = fd
        self.buffer = _Bytes(self)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f'write() argument must be str, not {type(text).__name__}')
        captured = getattr(_current, 'captured', None) or newest()
        if captured is None:
            console(self._fd, text)
        else:
            captured.write(self._name, text)
        return len(text)

    def fileno(self) -> int:
        return self._fd


def newest() -> Optional[Captured]:
    # A slice: it may end just now, in another thread.
    for captured in _active[-1:]:
        return captured
    return None


def console(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode('utf-8', 'replace'))
    except OSError:
        pass  # A console that is gone is no reason to fail the writer.


def log(text: str) -> None:
    console(2, f'forkd-agent: {text}\n')


def install() -> None:
    sys.stdout = sys.__stdout__ = Stream('stdout', 1)
    sys.stderr = sys.__stderr__ = Stream('stderr', 2)


def begin() -> Captured:
    captured = Captured()
    _current.captured = captured
    _active.append(captured)
    return captured


def end(captured: Captured) -> None:
    _current.captured = None
    _active.remove(captured)
