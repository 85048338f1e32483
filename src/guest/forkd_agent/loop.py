"""One thread that moves the bytes of all streams: it sleeps in epoll, and starts with the first stream.

A child without streams has no such thread and no such descriptors. Everything here but `call` runs in the thread.
"""
import collections
import os
import select
import threading
import time
from typing import Any, Callable, Deque, Dict

from .output import log

# epoll takes no longer one, and whoever waits for a thing that far away may wake up once a day.
WAIT_SECONDS_MAX = 86400.0

Ready = Callable[[int], None]
Call = Callable[[], None]


class Loop:
    def __init__(self) -> None:
        self._calls: Deque[Call] = collections.deque()
        self._ready: Dict[int, Ready] = {}
        self._timers: Dict[Any, float] = {}
        self._due: Dict[Any, Call] = {}
        self._lock = threading.Lock()
        self._started = False
        self._poked = False

    def call(self, function: Call) -> None:
        """From any thread: has it done in the loop's thread, in the order of the calls."""
        self._calls.append(function)
        if not self._started:
            self._start()
        if not self._poked:
            self._poked = True
            os.write(self._poke_write, b'.')

    def _start(self) -> None:
        with self._lock:
            if self._started:
                return
            self._epoll = select.epoll()
            self._poke_read, self._poke_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._epoll.register(self._poke_read, select.EPOLLIN)
            self._started = True
        threading.Thread(target=self._serve, name='forkd-streams', daemon=True).start()

    # --- for what runs in the loop -----------------------------------------------------------------------------------

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Calls `ready` with the events; a second call for one descriptor changes what is waited for."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, when: float, key: Any, due: Call) -> None:
        """Calls `due` once, at that monotonic time; one timer for each key."""
        self._timers[key] = when
        self._due[key] = due

    def cancel(self, key: Any) -> None:
        self._timers.pop(key, None)
        self._due.pop(key, None)

    def _serve(self) -> None:
        while True:
            try:
                self._turn()
            except Exception as error:
                log(f'streams: {type(error).__name__}: {error}')

    def _turn(self) -> None:
        timeout = -1.0
        if self._timers:
            timeout = min(max(0.0, min(self._timers.values()) - time.monotonic()), WAIT_SECONDS_MAX)
        # Who was meant: what is done for one may close another's descriptor, and the next to be opened gets its number.
        for fd, events, ready in [(fd, events, self._ready.get(fd)) for fd, events in self._epoll.poll(timeout)]:
            if fd == self._poke_read:
                os.read(fd, 4096)
                # Before the calls are taken: what comes after this pokes again.
                self._poked = False
                while self._calls:
                    guarded(self._calls.popleft())
            elif ready is not None and ready == self._ready.get(fd) and not guarded(ready, events):
                self.forget(fd)
        now = time.monotonic()
        for key in [key for key, when in self._timers.items() if when <= now]:
            due = self._due[key]
            self.cancel(key)
            guarded(due)


def guarded(function: Callable[..., None], *args: Any) -> bool:
    """One stream's trouble must not end the others. False when there was some."""
    try:
        function(*args)
        return True
    except Exception as error:
        log(f'streams: {type(error).__name__}: {error}')
        return False
