"""Reaps orphans: PID 1 inherits every process whose parent ended.

A child that this process started on purpose (exec, or user code with subprocess, os.fork, multiprocessing) has someone
who will wait for it, and reaping it would steal the exit status. So births are recorded where Python makes them, and only
children that were not born here are reaped. A C library may start and wait for a child too (system(3)): a stranger is
left alone for a moment before it counts as an orphan.
"""
import os
import threading
import time
from typing import Any, Callable, Dict, Iterable, Optional, Set

GRACE_SECONDS = 1.0
# Processes that user code started and never waited for stay recorded; beyond this many, those gone are dropped.
PRUNE_ABOVE = 256


class Children:
    def __init__(self) -> None:
        self._own: Set[int] = set()
        self._strangers: Dict[int, float] = {}
        # Reentrant, and released by a forked copy as well: the copy leaves the same `with`.
        self._births = threading.RLock()

    def watch_births(self) -> None:
        """Wraps the ways by which Python makes a process. Must run before subprocess is imported."""
        import _posixsubprocess

        setattr(_posixsubprocess, 'fork_exec', self._recording(_posixsubprocess.fork_exec))
        for name in ('fork', 'posix_spawn', 'posix_spawnp'):
            if hasattr(os, name):
                setattr(os, name, self._recording(getattr(os, name)))
        os.forkpty = self._recording(os.forkpty, lambda result: result[0])

    def _recording(self, make: Callable[..., Any], pid_of: Callable[[Any], int] = lambda result: result) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            # The reaper takes the same lock, so it cannot see a child before it is recorded.
            with self._births:
                result = make(*args, **kwargs)
                pid = pid_of(result)
                if pid:
                    self._own.add(pid)
            return result

        recorded.__name__ = recorded.__qualname__ = make.__name__
        recorded.__doc__ = make.__doc__
        return recorded

    def forget(self, pid: int) -> None:
        self._own.discard(pid)

    def reap(self) -> Optional[float]:
        """Reaps orphans that have ended. Returns when to look again (monotonic time), or None."""
        try:
            first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            first = None
        if first is None:
            self._strangers.clear()
            return None
        with self._births:
            self._prune()
            return self._reap_strangers(_zombies())

    def _reap_strangers(self, zombies: Iterable[int]) -> Optional[float]:
        now = time.monotonic()
        seen: Dict[int, float] = {}
        for pid in zombies:
            if pid in self._own:
                continue
            since = self._strangers.get(pid, now)
            if now - since < GRACE_SECONDS:
                seen[pid] = since
                continue
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass
        self._strangers = seen
        return min(seen.values()) + GRACE_SECONDS if seen else None

    def _prune(self) -> None:
        if len(self._own) > PRUNE_ABOVE:
            # A copy: other threads forget some meanwhile.
            self._own.difference_update([pid for pid in list(self._own) if parent_of(pid) != os.getpid()])


def _zombies() -> Iterable[int]:
    me = os.getpid()
    for pid in processes():
        stat = read_stat(pid)
        if stat is not None and stat[0] == 'Z' and int(stat[1]) == me:
            yield pid


def processes() -> Iterable[int]:
    return [int(name) for name in os.listdir('/proc') if name.isdigit()]


def read_stat(pid: int) -> Optional[list]:
    """The fields of /proc/PID/stat after the command: state, ppid, pgrp, session ..."""
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            text = file.read()
    except OSError:
        return None
    return text[text.rindex(b')') + 2 :].decode().split()


def parent_of(pid: int) -> Optional[int]:
    stat = read_stat(pid)
    return None if stat is None else int(stat[1])
