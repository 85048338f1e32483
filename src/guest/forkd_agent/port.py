"""The virtio-serial port that leads to the host."""
import os
import select
import threading
from typing import Optional

PORT_NAME = 'forkd.agent.0'
PORTS = '/sys/class/virtio-ports'


def find_port() -> Optional[str]:
    """The device of the port named PORT_NAME, with the /dev/virtio-ports link that udev would make."""
    try:
        entries = os.listdir(PORTS)
    except FileNotFoundError:
        return None
    for entry in entries:
        with open(f'{PORTS}/{entry}/name') as file:
            name = file.read().strip()
        if not name:
            continue
        os.makedirs('/dev/virtio-ports', exist_ok=True)
        link = f'/dev/virtio-ports/{name}'
        if not os.path.islink(link):
            os.symlink(f'../{entry}', link)
        if name == PORT_NAME:
            return link
    return None


class Port:
    """Frames out, bytes in. Never blocks on a host that is not there."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._writable = select.poll()
        self._writable.register(self.fd, select.POLLOUT)

    def send(self, frames: bytes) -> bool:
        """Writes whole frames, all of them; False when the host hung up (they are then lost: nobody waits for them)."""
        with self._lock:
            try:
                written = os.write(self.fd, frames)
            except BlockingIOError:
                written = 0
            return written == len(frames) or self._send_rest(memoryview(frames)[written:])

    def _send_rest(self, rest: memoryview) -> bool:
        while rest:
            try:
                rest = rest[os.write(self.fd, rest) :]
            except BlockingIOError:
                if any(event & select.POLLHUP for _, event in self._writable.poll()):
                    return False
        return True

    def read(self) -> Optional[bytes]:
        """Bytes that are there; None if none are; empty when the host is not connected."""
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return None
