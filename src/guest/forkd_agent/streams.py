"""Streams: requests that move bytes, in both directions at once, until their reply.

Each direction of each stream has a window: who sends may have so many bytes under way that the other side has not taken yet.
So a program that floods waits in its own pipe, and neither the port nor the host's memory fills up with what nobody reads.
The frames are drawn in docs/reference/agent-protocol.md.
"""
import threading
from typing import Any, Callable, Dict, List, Optional

from . import wire
from .children import Children
from .image import Image
from .loop import Loop
from .port import Port

Reply = Callable[[Dict[str, Any]], None]

# Bytes that the host may send ahead in one stream; a part of the protocol.
INPUT_WINDOW = 256 * 1024
# So many bytes taken are granted again at once.
GRANT = INPUT_WINDOW // 4
# When a request names none.
OUTPUT_WINDOW = 256 * 1024
# Payload of one frame: with its header it is one buffer of the device (32 KiB, drivers/char/virtio_console.c).
CHUNK = 32 * 1024 - wire.HEADER.size - 1


class Stream:
    """The agent's side of one. What is below `finish` is called by the thread that reads the port and must not block."""

    def __init__(self, streams: 'Streams', ident: int, request: Dict[str, Any], reply: Reply) -> None:
        window = request.get('window', OUTPUT_WINDOW)
        if not isinstance(window, int) or window < 1:
            raise ValueError('window must be a positive whole number')
        self._streams = streams
        self._ident = ident
        self._reply: Optional[Reply] = reply
        self._owed = 0
        # Bytes that the host takes at the moment.
        self.credit = window
        # False once the host is gone, or was that of the machine of which this one is a copy.
        self.heard = True
        self.muted = False

    def opened(self, facts: Dict[str, Any]) -> None:
        self._send(wire.OPENED, wire.encode_json(facts))

    def data(self, channel: int, data: Any) -> None:
        """At most CHUNK bytes, and at most `credit`."""
        if not self.muted:
            self.credit -= len(data)
            self.send_data(channel, data)

    def send_data(self, channel: int, data: Any) -> None:
        if self.heard:
            head = wire.HEADER.pack(wire.MAGIC, wire.DATA, 0, self._ident, len(data) + 1)
            self._streams.port.send(b'%b%c%b' % (head, channel, data))

    def mute(self) -> None:
        """The host takes no more data, but the reply."""
        self.muted = True
        self.credit = 1 << 62

    def end(self, channel: int) -> None:
        self._send(wire.END, bytes((channel,)))

    def consumed(self, count: int) -> None:
        """So much of what the host sent is out of the way."""
        self._owed += count
        if self._owed >= GRANT:
            self._send(wire.CREDIT, self._owed.to_bytes(4, 'little'))
            self._owed = 0

    def finish(self, answer: Dict[str, Any]) -> None:
        """The reply, once; later ones are dropped."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        self._streams.forget(self._ident)
        if self.heard:
            reply(answer)

    def _send(self, kind: int, payload: bytes) -> None:
        if self.heard:
            self._streams.port.send(wire.frame(kind, self._ident, payload))

    def on_data(self, channel: int, data: memoryview) -> None:
        raise NotImplementedError

    def on_end(self, channel: int) -> None:
        raise NotImplementedError

    def on_credit(self, count: int) -> None:
        raise NotImplementedError

    def on_control(self, request: Dict[str, Any]) -> None:
        """Raises what the answer tells."""
        raise ValueError('this stream takes no such control')

    def on_close(self) -> None:
        """The host wants no more of it."""
        raise NotImplementedError


class Streams:
    def __init__(self, port: Port, children: Children, image: Image) -> None:
        self.port = port
        self.loop = Loop()
        self.children = children
        self.image = image
        self._open: Dict[int, Stream] = {}
        self._lock = threading.Lock()
        self._programs: Any = None

    @property
    def programs(self) -> Any:
        if self._programs is None:
            from .programs import Programs

            # Two threads may ask first at once.
            with self._lock:
                self._programs = self._programs or Programs(self)
        return self._programs

    def start(self, action: str, request: Dict[str, Any], reply: Reply, ident: int) -> Optional[Dict[str, Any]]:
        """The answer, or None: then it comes later."""
        if action == 'control':
            return self._control(request)
        if action == 'runs':
            return self.programs.list()
        if action in PLAIN:
            from . import files

            work = lambda: reply(files.answer(action, request))
            threading.Thread(target=work, name='forkd-files', daemon=True).start()
            return None
        if ident == 0:
            raise ValueError(f'{action} needs the framed port')
        if action == 'run' and request.get('detach'):
            return self.programs.run_detached(request)
        stream = self._make(action, request, reply, ident)
        with self._lock:
            self._open[ident] = stream
        try:
            stream.begin(request)
        except BaseException:
            self.forget(ident)
            raise
        return None

    def _make(self, action: str, request: Dict[str, Any], reply: Reply, ident: int) -> Any:
        if action in ('run', 'attach'):
            return self.programs.stream(action, ident, request, reply)
        if action == 'connect':
            from .connect import Connection

            return Connection(self, ident, request, reply)
        if action == 'watch':
            from .watch import Watch

            return Watch(self, ident, request, reply)
        from .transfer import Transfer

        return Transfer(self, ident, request, reply)

    def forget(self, ident: int) -> None:
        with self._lock:
            self._open.pop(ident, None)

    @property
    def active(self) -> bool:
        return bool(self._open)

    def drop(self) -> None:
        """Nobody hears any of them from now on: the host hung up, or this machine is a copy of the one they belonged to."""
        with self._lock:
            streams: List[Stream] = list(self._open.values())
            self._open.clear()
        for stream in streams:
            stream.heard = False
            stream.on_close()

    def take(self, kind: int, ident: int, payload: Any) -> bool:
        """A frame of a stream, in the order of the port. False when it is none of ours. One whose stream is over is nobody's."""
        if kind not in wire.OF_STREAMS:
            return False
        stream = self._open.get(ident)
        if stream is None or not payload:
            return True
        if kind == wire.DATA:
            stream.on_data(payload[0], memoryview(payload)[1:])
        elif kind == wire.CREDIT:
            stream.on_credit(int.from_bytes(payload[:4], 'little'))
        else:
            stream.on_end(payload[0])
        return True

    def _control(self, request: Dict[str, Any]) -> Dict[str, Any]:
        if 'run' in request:
            self.programs.control(request)
            return {'exit_code': 0}
        stream = self._open.get(request['stream'])
        if stream is None:
            raise LookupError('no such stream, or it is over')
        if request.get('close'):
            stream.on_close()
        else:
            stream.on_control(request)
        return {'exit_code': 0}


# Answered without a stream, in a thread: a disk may be slow.
PLAIN = ('stat', 'list', 'remove', 'make_dir')
ACTIONS = frozenset(('run', 'attach', 'runs', 'control', 'connect', 'read_file', 'write_file', 'pack', 'unpack', 'watch', *PLAIN))
