"""TCP 8888: the reference's protocol. One JSON line in, one JSON line out, then the connection is closed."""
import socket
import threading
import time
from typing import Any, Dict, List, Optional

from . import wire
from .actions import Actions, failed
from .output import log

PORT = 8888
BACKLOG = 128
# Discards what a client sent after its request: closing with unread bytes would reset the connection under our answer.
DRAIN_SECONDS = 1.0


class TcpServer:
    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def begin(self) -> None:
        listener = listen()
        if listener is not None:
            threading.Thread(target=self._accept, args=(listener,), name='forkd-tcp', daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except Exception as error:
                log(f'tcp: {type(error).__name__}: {error}')
                time.sleep(0.1)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                line = read_line(connection)
                if line:
                    connection.sendall(wire.encode_json(self._answer(line)) + b'\n')
                    drain(connection)
            except OSError:
                pass  # The client went away; nobody is left to tell.

    def _answer(self, line: bytes) -> Dict[str, Any]:
        try:
            request = wire.decode_json(line)
        except ValueError as error:
            return failed(error)
        answers: List[Dict[str, Any]] = []
        answered = threading.Event()

        def reply(answer: Dict[str, Any]) -> None:
            answers.append(answer)
            answered.set()

        self._actions.handle(request, reply)
        answered.wait()
        return answers[0]


def listen() -> Optional[socket.socket]:
    for _ in range(30):
        try:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(('0.0.0.0', PORT))
            listener.listen(BACKLOG)
            return listener
        except OSError as error:
            failure = error
            time.sleep(0.2)
    log(f'no TCP service: {failure}')
    return None


def read_line(connection: socket.socket) -> bytes:
    """Up to the first newline, or up to the end if the client half-closes without one."""
    parts: List[bytes] = []
    size = 0
    while size <= wire.MAX_PAYLOAD:
        data = connection.recv(65536)
        end = data.find(b'\n')
        if end >= 0 or not data:
            parts.append(data[: max(end, 0)])
            break
        parts.append(data)
        size += len(data)
    return b''.join(parts).strip()


def drain(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(DRAIN_SECONDS)
    while connection.recv(65536):
        pass
