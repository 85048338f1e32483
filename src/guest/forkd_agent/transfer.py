"""Files and directories on their way in or out: each in a thread of its own, since a disk may be slow."""
import io
import os
import stat
import tarfile
import threading
from typing import Any, Dict, List, Optional

from .files import facts, file_mode
from .streams import CHUNK, GRANT, Reply, Stream, Streams

FROM_GUEST = 1
# As much as is read of a file and written to the port at once: one buffer of the device with its header.
BLOCK = CHUNK


class Gone(Exception):
    """The host wants no more of it."""


class Transfer(Stream):
    def __init__(self, streams: Streams, ident: int, request: Dict[str, Any], reply: Reply) -> None:
        super().__init__(streams, ident, request, reply)
        self._action = request['action']
        self._changed = threading.Condition()
        self._parts: List[memoryview] = []
        self._ended = False
        self._gone = False

    def begin(self, request: Dict[str, Any]) -> None:
        if not isinstance(request['path'], str) or not os.path.isabs(request['path']):
            raise ValueError('path must be absolute')
        work = {'read_file': read_file, 'write_file': write_file, 'pack': pack, 'unpack': unpack}[self._action]
        threading.Thread(target=self._run, args=(work, request), name='forkd-files', daemon=True).start()

    def _run(self, work: Any, request: Dict[str, Any]) -> None:
        try:
            self.finish({**work(self, request), 'exit_code': 0})
        except Gone:
            self.finish({'error': 'Gone: the host has ended the transfer', 'exit_code': 1})
        except Exception as error:
            self.finish({'error': f'{type(error).__name__}: {error}', 'exit_code': 1})

    def write(self, data: Any) -> int:
        """To the host, when it has room."""
        view = memoryview(data)
        at = 0
        while at < len(view):
            part = view[at : at + min(BLOCK, self._wait_credit())]
            self.data(FROM_GUEST, part)
            at += len(part)
        return at

    def _wait_credit(self) -> int:
        with self._changed:
            while self.credit <= 0 and not self._gone:
                self._changed.wait()
            if self._gone:
                raise Gone
            return self.credit

    def data(self, channel: int, data: Any) -> None:
        with self._changed:
            self.credit -= len(data)
        self.send_data(channel, data)

    def parts(self) -> List[memoryview]:
        """What came from the host; empty at its end."""
        with self._changed:
            while not self._parts and not self._ended and not self._gone:
                self._changed.wait()
            if self._gone:
                raise Gone
            parts, self._parts = self._parts, []
            return parts

    def on_data(self, channel: int, data: memoryview) -> None:
        with self._changed:
            self._parts.append(data)
            self._changed.notify()

    def on_end(self, channel: int) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def on_credit(self, count: int) -> None:
        with self._changed:
            self.credit += count
            self._changed.notify()

    def on_close(self) -> None:
        with self._changed:
            self._gone = True
            self._changed.notify()


class Incoming(io.RawIOBase):
    """What the host sends, as a file that tarfile reads."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._held: List[memoryview] = []
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._held and not self._ended:
            self._held = self._transfer.parts()
            self._ended = not self._held
        if not self._held:
            return 0
        first = self._held[0]
        count = min(len(first), len(buffer))
        buffer[:count] = first[:count]
        if count < len(first):
            self._held[0] = first[count:]
        else:
            self._held.pop(0)
        self._transfer.consumed(count)
        return count


def read_file(transfer: Transfer, request: Dict[str, Any]) -> Dict[str, Any]:
    with open(request['path'], 'rb', buffering=0) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(f"'{request['path']}' is a directory")
        transfer.opened(facts(os.path.basename(request['path']), found))
        buffer = memoryview(bytearray(BLOCK))
        size = 0
        while True:
            count = file.readinto(buffer)
            if not count:
                return {'size': size}
            transfer.write(buffer[:count])
            size += count


def write_file(transfer: Transfer, request: Dict[str, Any]) -> Dict[str, Any]:
    """Whole or not at all: into a file beside it, which then takes its name."""
    path = os.path.realpath(request['path'])
    if os.path.isdir(path):
        raise IsADirectoryError(f"'{path}' is a directory")
    if request.get('parents'):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    before = stat_of(path)
    mode = file_mode(request.get('mode'), 0o644 if before is None else stat.S_IMODE(before.st_mode))
    beside = f'{path}.forkd-{os.urandom(6).hex()}'
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if before is not None:
            os.fchown(fd, before.st_uid, before.st_gid)
        transfer.opened({})
        size = 0
        while True:
            parts = transfer.parts()
            if not parts:
                break
            for part in parts:
                write_all(fd, part)
                size += len(part)
                transfer.consumed(len(part))
        os.fchmod(fd, mode)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    finally:
        os.close(fd)
    return {'size': size}


def write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def stat_of(path: str) -> Optional[os.stat_result]:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def pack(transfer: Transfer, request: Dict[str, Any]) -> Dict[str, Any]:
    """A directory, or one file, as a tar archive; names begin at `path` itself, as `./...`."""
    path = request['path']
    transfer.opened(facts(os.path.basename(path), os.lstat(path)))
    with tarfile.open(fileobj=transfer, mode='w|', format=tarfile.PAX_FORMAT, bufsize=BLOCK) as archive:
        if os.path.isdir(path):
            # A link to a directory is that directory here: it was named itself.
            archive.add(os.path.realpath(path), arcname='.')
        else:
            archive.add(path, arcname=os.path.basename(path))
    return {}


def unpack(transfer: Transfer, request: Dict[str, Any]) -> Dict[str, Any]:
    """A tar archive into a directory, which is made."""
    path = request['path']
    os.makedirs(path, exist_ok=True)
    transfer.opened({})
    count = 0
    incoming = io.BufferedReader(Incoming(transfer), GRANT)
    with tarfile.open(fileobj=incoming, mode='r|', bufsize=GRANT) as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            if os.path.isabs(name) or name.split('/')[0] == '..':
                raise ValueError(f"'{member.name}' is outside")
            archive.extract(member, path, numeric_owner=True)
            count += 1
    # What pads the archive.
    while transfer.parts():
        pass
    return {'entries': count}
