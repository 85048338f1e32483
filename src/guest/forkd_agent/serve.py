"""Reads requests from the port and has them done.

The main thread does ping, fork and eval itself, where it reads them: a child's first answer needs no other thread. While it
evaluates, a helper thread reads what else comes: its epoll looks at the port only then, since every answer written to the port
would wake it as well, for nothing. Nobody watches a clock for that: both see the port through exclusive registrations, and the
kernel wakes the second only if nobody waits in the first. What is switched is not the port's registration: one that is removed
is freed after a grace period of RCU, and the kernel would keep its clock ticking for that after every eval, three or four
times, which in a guest that is emulated costs more than the eval. So the helpers' epoll holds another epoll, which holds the
port, and only what is wanted of that one is changed. (The other's wake-ups say what they are for, a port's do not: only so is
nobody woken by what he does not want.) A helper that was woken just as the main thread finished leaves the
request to it, and nudges it: Python allows signal handlers only on the main thread, so evals belong there. The nudge is needed
with two processors: the helper's look at the port takes the buffer off the device's queue, and the device's interrupt,
finding nothing more there, wakes nobody.
"""
import os
import select
import threading
import time
from typing import List, cast

from . import wire
from .actions import Actions, failed
from .output import log
from .port import Port

EXCLUSIVE = getattr(select, 'EPOLLEXCLUSIVE', 1 << 28)
LEVEL = select.EPOLLIN | EXCLUSIVE
# A port whose host hung up is always "ready" (EPOLLHUP): then only changes count, or the agent would spin.
EDGE = LEVEL | select.EPOLLET
IDLE_HELPERS_MAX = 2
# For the main thread to come back to its epoll after an answer.
YIELD_SECONDS = 0.001


class Server:
    def __init__(self, port: Port, actions: Actions, hello: bytes) -> None:
        self._port = port
        self._actions = actions
        self._hello = hello
        self._hello_sent = False
        self._reader = wire.FrameReader()
        self._read_lock = threading.Lock()
        self._main = select.epoll()
        self._beside = select.epoll()
        self._helpers = select.epoll()
        self._edge = False
        self._main_thread = threading.get_ident()
        self._main_busy = False
        self._idle_helpers = 0
        self._count_lock = threading.Lock()
        # The order of registration is the order in which the kernel offers a wake-up.
        self._main.register(port.fd, LEVEL)
        self._beside.register(port.fd, LEVEL)
        self._helpers.register(self._beside.fileno(), 0)
        self._helped = False
        self._register_lock = threading.Lock()
        # An answer that leaves with the next one.
        self._held = b''
        self._holding = False
        self._nudged, self._nudge = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._main.register(self._nudged, select.EPOLLIN)

    def serve(self) -> None:
        """Never returns."""
        self._add_helper()
        self._send_hello()
        while True:
            try:
                self._main_busy = False
                ready = self._main.poll()
                # Not busy yet: a helper that looks now must leave the request to this thread. _do says when it is.
                if any(fd == self._nudged for fd, _ in ready):
                    os.read(self._nudged, 4096)
                self._turn(is_helper=False)
            except BaseException as error:  # Evaluated code may raise anything, in any thread, at any time.
                log(f'serve: {type(error).__name__}: {error}')
                self._holding = False
                self._get_help(False)

    def _send_hello(self) -> None:
        if not self._hello_sent:
            self._hello_sent = self._port.send(wire.frame(wire.HELLO, 0, self._hello))

    def _help(self) -> None:
        while True:
            self._helpers.poll()
            with self._count_lock:
                self._idle_helpers -= 1
            try:
                if self._main_busy:
                    self._turn(is_helper=True)
                else:
                    os.write(self._nudge, b'n')
                    time.sleep(YIELD_SECONDS)
            except BaseException as error:
                log(f'serve: {type(error).__name__}: {error}')
            with self._count_lock:
                if self._idle_helpers >= IDLE_HELPERS_MAX:
                    return
                self._idle_helpers += 1

    def _add_helper(self) -> None:
        with self._count_lock:
            self._idle_helpers += 1
        threading.Thread(target=self._help, name='forkd-helper', daemon=True).start()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _turn(self, is_helper: bool) -> None:
        frames = self._read()
        # A read gives one buffer of the device. What came in the same interrupt must be taken now: nobody else was woken
        # for it, and the eval below may take long. What comes from here on wakes a helper.
        own, watched = (self._helpers, self._beside.fileno()) if is_helper else (self._main, self._port.fd)
        while any(fd == watched for fd, _ in own.poll(0)):
            frames += self._read()
        if len(frames) == 1:
            self._do(frames[0], is_helper)
        elif frames:
            self._do_all(frames, is_helper)

    def _read(self) -> List[wire.Frame]:
        with self._read_lock:
            frames: List[wire.Frame] = []
            if self._reader.large is None:
                data = self._port.read()
                if not data:
                    if data is not None:
                        self._hung_up()
                    return frames
                if self._edge:
                    self._rearm(LEVEL)
                frames = self._reader.feed(data)
            while self._reader.large is not None:
                frame = self._reader.fill(self._port.fd)
                if frame is None:
                    break
                frames.append(frame)
            streams = self._actions.streams
            if streams is not None and streams.active:
                # Here, under the lock: two threads may read, and the bytes of a stream have an order.
                return [frame for frame in frames if not streams.take(*frame)]
            return frames

    def _hung_up(self) -> None:
        self._reader.reset()
        if self._actions.streams is not None:
            self._actions.streams.drop()
        if not self._edge:
            self._rearm(EDGE)

    def _rearm(self, events: int) -> None:
        # An exclusive registration cannot be modified, only made anew.
        with self._register_lock:
            self._edge = events == EDGE
            for epoll in (self._main, self._beside):
                epoll.unregister(self._port.fd)
                epoll.register(self._port.fd, events)
            self._tell_helpers()

    def _get_help(self, wanted: bool) -> None:
        """Lets a helper read the port from here on, or no longer."""
        with self._register_lock:
            if wanted == self._helped:
                return
            self._helped = wanted
            self._tell_helpers()

    def _tell_helpers(self) -> None:
        wanted = (select.EPOLLIN | select.EPOLLET if self._edge else select.EPOLLIN) if self._helped else 0
        self._helpers.modify(self._beside.fileno(), wanted)

    # --- doing -------------------------------------------------------------------------------------------------------

    def _do_all(self, frames: List[wire.Frame], is_helper: bool) -> None:
        """Requests that arrived together: the last is done here, earlier evals on threads of their own, so that none
        waits for another's code. An identity and an eval, what a child hears first, are answered in one write."""
        first_words = len(frames) == 2 and not is_helper and is_fork(frames[0]) and is_eval(frames[1])
        for frame in frames[:-1]:
            if is_eval(frame):
                threading.Thread(target=self._do, args=(frame, False), daemon=True).start()
            else:
                self._holding = first_words
                self._do(frame, is_helper)
                self._holding = False
        self._do(frames[-1], is_helper)

    def _do(self, frame: wire.Frame, is_helper: bool) -> None:
        kind, ident, payload = frame
        if threading.get_ident() == self._main_thread:
            self._main_busy = True
            if is_eval(frame):
                self._get_help(True)
        if is_helper and self._idle_helpers == 0:
            # Main is busy and this thread may become so: someone must remain who reads.
            self._add_helper()
        if is_fork(frame) and kind == wire.REQUEST:
            sealed = self._actions.fork_sealed(cast(bytes, payload))
            if sealed is not None:
                return self._answer(ident, sealed)
        if kind in wire.OF_STREAMS:
            # Of one that is over by now.
            return None
        if kind != wire.REQUEST:
            return self._reply(ident, {'error': f'unknown frame type: {kind}', 'exit_code': 1})
        if payload is None:
            limit = wire.MAX_PAYLOAD
            return self._reply(ident, {'error': f'FrameTooLarge: a request may have {limit} bytes', 'exit_code': 1})
        try:
            request = wire.decode_json(payload)
        except ValueError as error:
            return self._reply(ident, failed(error))
        self._actions.handle(request, lambda answer: self._reply(ident, answer), ident)

    def _reply(self, ident: int, answer: dict) -> None:
        self._answer(ident, wire.encode_json(answer))

    def _answer(self, ident: int, answer: bytes) -> None:
        if threading.get_ident() != self._main_thread:
            self._port.send(wire.frame(wire.REPLY, ident, answer))
            return
        answers = self._held + wire.frame(wire.REPLY, ident, answer)
        if self._holding:
            self._held = answers
            return
        self._held = b''
        # Before the answer leaves: the host's next request may be here before this thread is back at its epoll.
        self._main_busy = False
        self._get_help(False)
        self._port.send(answers)


def is_eval(frame: wire.Frame) -> bool:
    return b'"eval"' in (frame[2] or b'')


def is_fork(frame: wire.Frame) -> bool:
    return b'"fork"' in (frame[2] or b'')
