"""Connections to services inside the guest, carried by a stream: no network card is needed for them."""
import os
import select
import socket
import time
from typing import Any, Dict

from .ends import Sink, Source
from .streams import CHUNK, Reply, Stream, Streams

FROM_GUEST = 1
# Until the next try at a Unix socket whose queue is full: no event tells when it has room.
RETRY_SECONDS = 0.02


class Connection(Stream):
    """Ends when both directions have ended, or with an error."""

    def __init__(self, streams: Streams, ident: int, request: Dict[str, Any], reply: Reply) -> None:
        super().__init__(streams, ident, request, reply)
        self._loop = streams.loop
        self._socket: Any = None
        self._source: Any = None
        self._sink: Any = None
        self._done = 0

    def begin(self, request: Dict[str, Any]) -> None:
        path = request.get('path')
        if path is not None:
            self._address, family = path, socket.AF_UNIX
        else:
            host = request.get('host') or '127.0.0.1'
            self._address, family = (host, int(request['port'])), socket.AF_INET6 if ':' in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._loop.call(self._connect)

    def _connect(self) -> None:
        try:
            self._socket.connect(self._address)
        except BlockingIOError:
            if self._socket.family == socket.AF_UNIX:
                return self._loop.at(time.monotonic() + RETRY_SECONDS, self, self._connect)
            return self._loop.watch(self._socket.fileno(), select.EPOLLOUT, self._connected)
        except OSError as error:
            return self._fail(error)
        self._connected(0)

    def _connected(self, _events: int) -> None:
        fd = self._socket.fileno()
        self._loop.forget(fd)
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            return self._fail(OSError(number, os.strerror(number)))
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # One descriptor for each direction: each is watched by itself.
        self._sink = Sink(self._loop, os.dup(fd), self.consumed)
        self._source = Source(self._loop, os.dup(fd), lambda: min(CHUNK, self.credit), self._give)
        self.opened({})
        self._source.resume()

    def _give(self, data: bytes) -> None:
        if data:
            return self.data(FROM_GUEST, data)
        self.end(FROM_GUEST)
        self._half()

    def _half(self) -> None:
        self._done += 1
        if self._done == 2:
            self._close({'exit_code': 0})

    def _fail(self, error: OSError) -> None:
        self._close({'error': f'{type(error).__name__}: {error}', 'exit_code': 1})

    def _close(self, answer: Dict[str, Any]) -> None:
        for one in (self._source, self._sink):
            if one is not None:
                one.close()
        self._loop.cancel(self)
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        self.finish(answer)

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # The other side is gone already.
        self._half()

    def on_data(self, channel: int, data: memoryview) -> None:
        self._loop.call(lambda: self._sink.take(data))

    def on_end(self, channel: int) -> None:
        self._loop.call(lambda: self._sink.finish(self._shut))

    def on_credit(self, count: int) -> None:
        self._loop.call(lambda: self._more(count))

    def _more(self, count: int) -> None:
        self.credit += count
        if self._source is not None:
            self._source.resume()

    def on_close(self) -> None:
        self._loop.call(lambda: self._close({'exit_code': 0}))
