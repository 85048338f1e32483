"""Changes of files, told as they happen: inotify(7), one line of JSON for each.

Lives in the loop. What the host has no room for waits here, then in the kernel's queue; when that is full, the host is told that it
has missed something.
"""
import ctypes
import os
import select
import struct
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

from . import wire
from .files import facts
from .streams import CHUNK, Reply, Stream, Streams

FROM_GUEST = 1
READ_BYTES = 64 * 1024

# The halves of a move are queued one after the other, by the same thread, which may be interrupted between them.
PAIR_SECONDS = 0.05

# linux/inotify.h
HEAD = struct.Struct('iIII')
MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
OVERFLOW, IGNORED, IS_DIR = 0x4000, 0x8000, 0x40000000
ONLY_DIR, DONT_FOLLOW, EXCLUDE_UNLINKED = 0x1000000, 0x2000000, 0x4000000
WANTED = (
    MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | EXCLUDE_UNLINKED
)
NAMES = {CREATE: 'created', MODIFY: 'modified', CLOSE_WRITE: 'written', DELETE: 'deleted', ATTRIB: 'attributes'}

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, path: str = 'inotify') -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


class Watch(Stream):
    def __init__(self, streams: Streams, ident: int, request: Dict[str, Any], reply: Reply) -> None:
        super().__init__(streams, ident, request, reply)
        self._loop = streams.loop
        self._fd = -1
        self._root = ''
        self._root_wd = -1
        self._is_dir = False
        self._recursive = False
        self._paths: Dict[int, str] = {}
        # A name that something was moved away from: where to comes next, if it is in sight.
        self._moved: Optional[Tuple[int, str, bool]] = None
        self._out = bytearray()
        self._last = b''
        self._ending = False
        # Until then the descriptor is the other thread's.
        self._prepared = False
        self._closed = False

    def begin(self, request: Dict[str, Any]) -> None:
        path = request['path']
        if not isinstance(path, str) or not os.path.isabs(path):
            raise ValueError('path must be absolute')
        self._root = os.path.normpath(path)
        self._recursive = bool(request.get('recursive'))
        found = facts(os.path.basename(self._root) or '/', os.stat(self._root))
        # A thread: there may be many directories, and other streams must not wait for them.
        threading.Thread(target=self._prepare, args=(found,), name='forkd-watch', daemon=True).start()

    def _prepare(self, found: Dict[str, Any]) -> None:
        try:
            self._fd = checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            self._root_wd = self._add(self._root, 0)
            self._is_dir = found['type'] == 'dir'
            if self._recursive and self._is_dir:
                self._add_below(self._root, told=False)
        except Exception as error:
            answer = {'error': f'{type(error).__name__}: {error}', 'exit_code': 1}
            return self._loop.call(lambda: self._start(found, answer))
        self._loop.call(lambda: self._start(found, None))

    def _start(self, found: Dict[str, Any], failure: Optional[Dict[str, Any]]) -> None:
        self._prepared = True
        if self._closed:
            # The host wanted no more of it before it was ready.
            self._release()
        elif failure is not None:
            self._close(failure)
        else:
            self.opened(found)
            self._flush()

    def _add(self, path: str, flags: int) -> int:
        wd = checked(libc.inotify_add_watch(self._fd, os.fsencode(path), WANTED | flags), path)
        self._paths[wd] = path
        return wd

    def _add_below(self, top: str, told: bool) -> None:
        """Every directory in it. What was in a new one before it was watched is told as created; it may be told twice."""
        for path, folders, names in os.walk(top):
            for name in sorted(folders + names):
                below = os.path.join(path, name)
                if told:
                    self._tell('created', below, name in folders and not os.path.islink(below))
            for name in folders:
                below = os.path.join(path, name)
                try:
                    if not os.path.islink(below):
                        self._add(below, ONLY_DIR | DONT_FOLLOW)
                except (FileNotFoundError, NotADirectoryError):
                    pass  # Gone since.

    # --- in the loop -------------------------------------------------------------------------------------------------

    def _ready(self, _events: int) -> None:
        self._read()
        if self._moved is not None:
            self._loop.at(time.monotonic() + PAIR_SECONDS, self, self._unpaired)
        self._flush()

    def _unpaired(self) -> None:
        self._moved_away()
        self._flush()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            wd, mask, cookie, length = HEAD.unpack_from(data, at)
            at += HEAD.size
            name = os.fsdecode(data[at : at + length].rstrip(b'\0'))
            at += length
            try:
                self._event(wd, mask, cookie, name)
            except OSError:
                # No more directories can be watched.
                self._tell('overflow', self._root, True)

    def _event(self, wd: int, mask: int, cookie: int, name: str) -> None:
        if mask & OVERFLOW:
            return self._tell('overflow', self._root, True)
        folder = self._paths.get(wd)
        if folder is None:
            return None
        is_dir = bool(mask & IS_DIR)
        path = os.path.join(folder, name) if name else folder
        if mask & MOVED_TO and self._moved is not None and self._moved[0] == cookie:
            _, before, _ = self._moved
            self._moved = None
            return self._moved_to(before, path, is_dir)
        self._moved_away()
        if mask & IGNORED:
            del self._paths[wd]
            self._ending = self._ending or wd == self._root_wd
        elif mask & (DELETE_SELF | MOVE_SELF):
            # Of what is below, the directory above tells.
            if wd == self._root_wd:
                self._tell('deleted', path, self._is_dir)
                self._ending = True
        elif mask & MOVED_FROM:
            self._moved = (cookie, path, is_dir)
        elif mask & (CREATE | MOVED_TO):
            self._tell('created', path, is_dir)
            if is_dir and self._recursive:
                self._add(path, ONLY_DIR | DONT_FOLLOW)
                self._add_below(path, told=True)
        else:
            for bit, event in NAMES.items():
                if mask & bit:
                    self._tell(event, path, is_dir)
        return None

    def _moved_to(self, before: str, path: str, is_dir: bool) -> None:
        self._tell('moved', path, is_dir, before)
        for wd in self._below(before):
            self._paths[wd] = path + self._paths[wd][len(before) :]

    def _moved_away(self) -> None:
        """Out of sight."""
        moved, self._moved = self._moved, None
        if moved is not None:
            _, path, is_dir = moved
            self._tell('deleted', path, is_dir)
            for wd in self._below(path):
                libc.inotify_rm_watch(self._fd, wd)

    def _below(self, path: str) -> List[int]:
        return [wd for wd, one in self._paths.items() if one == path or one.startswith(path + '/')]

    def _tell(self, event: str, path: str, is_dir: bool, before: Optional[str] = None) -> None:
        found: Dict[str, Any] = {'event': event, 'path': path, 'is_dir': is_dir}
        if before is not None:
            found['from'] = before
        line = wire.encode_json(found) + b'\n'
        # A program that writes in small pieces is told of once, until something else happens.
        if line != self._last or not self._out:
            self._out += line
        self._last = line

    def _flush(self) -> None:
        if self._closed:
            return
        while self._out and self.credit > 0:
            part = bytes(self._out[: min(CHUNK, self.credit)])
            del self._out[: len(part)]
            self.data(FROM_GUEST, part)
        if self._out:
            return self._loop.forget(self._fd)
        if self._ending:
            return self._close({'exit_code': 0})
        return self._loop.watch(self._fd, select.EPOLLIN, self._ready)

    def _close(self, answer: Dict[str, Any]) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.cancel(self)
        if self._prepared:
            self._release()
        self.finish(answer)

    def _release(self) -> None:
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)

    def _more(self, count: int) -> None:
        self.credit += count
        if self._prepared:
            self._flush()

    def on_data(self, channel: int, data: memoryview) -> None:
        """It has no input."""

    def on_end(self, channel: int) -> None:
        pass

    def on_credit(self, count: int) -> None:
        self._loop.call(lambda: self._more(count))

    def on_close(self) -> None:
        self._loop.call(lambda: self._close({'exit_code': 0}))
