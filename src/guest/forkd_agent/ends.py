"""The two ends of a stream that are descriptors: bytes out of one, and bytes into one. They live in the loop."""
import collections
import os
import select
from typing import Any, Callable, Deque, Optional

from .loop import Loop


class Source:
    """Reads a descriptor while the host has room for it."""

    def __init__(self, loop: Loop, fd: int, room: Callable[[], int], give: Callable[[bytes], None]) -> None:
        """`give` gets the bytes, and b'' at the end: the descriptor is closed then."""
        os.set_blocking(fd, False)
        self.fd = fd
        self._loop = loop
        self._room = room
        self._give = give
        self._paused = True
        # Bytes that are still wanted; None for all.
        self.left: Optional[int] = None

    def resume(self) -> None:
        if self._paused and self.fd >= 0:
            self._paused = False
            self._loop.watch(self.fd, select.EPOLLIN, self._ready)

    def close(self) -> None:
        if self.fd < 0:
            return
        self._loop.forget(self.fd)
        os.close(self.fd)
        self.fd = -1

    def drain(self) -> None:
        """Reads and drops what comes from now on: closing it would kill a service that was left in the background."""
        self._room, self._give = (lambda: 65536), (lambda data: None)
        self.left = None
        self.resume()

    def _ready(self, _events: int) -> None:
        room = self._room() if self.left is None else min(self._room(), self.left)
        if room <= 0:
            self._paused = True
            self._loop.forget(self.fd)
            return
        try:
            data = os.read(self.fd, room)
        except BlockingIOError:
            return
        except OSError:
            # A terminal whose last user is gone says EIO, a broken connection ECONNRESET.
            data = b''
        if self.left is not None:
            self.left -= len(data)
        if not data:
            self.close()
        self._give(data)


class Sink:
    """Writes what the host sends, as fast as the descriptor takes it."""

    def __init__(self, loop: Loop, fd: int, consumed: Callable[[int], None]) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._loop = loop
        self._consumed = consumed
        self._queue: Deque[Any] = collections.deque()
        self._ending: Optional[Callable[[], None]] = None

    def take(self, data: memoryview) -> None:
        if self.fd < 0:
            # Nobody reads it any more: the host need not wait for it.
            self._consumed(len(data))
            return
        self._queue.append(data)
        if len(self._queue) == 1:
            self._write(0)

    def finish(self, ended: Callable[[], None]) -> None:
        """Calls `ended` when everything is written."""
        self._ending = ended
        if not self._queue:
            self._end()

    def close(self) -> None:
        if self.fd < 0:
            return
        self._loop.forget(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._drop()

    def _write(self, _events: int) -> None:
        while self._queue:
            data = self._queue[0]
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                self._loop.watch(self.fd, select.EPOLLOUT, self._write)
                return
            except OSError:
                self.close()
                return self._end()
            if written < len(data):
                self._queue[0] = data[written:]
            else:
                self._queue.popleft()
            self._consumed(written)
        self._loop.forget(self.fd)
        self._end()

    def _drop(self) -> None:
        while self._queue:
            self._consumed(len(self._queue.popleft()))

    def _end(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending()
