"""The machine's steps of a `fork` in machine code (src/guest/take/take.c), where this Python can load it."""
import os
from typing import Any, List, Optional

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'take.so')
SEEDS = 48
BOOT_ID = 36


class Native:
    def __init__(self, library: Any, ctypes: Any, random_fd: int, files: List[int], words: Optional[int]) -> None:
        class Terms(ctypes.Structure):
            _fields_ = [('random_fd', ctypes.c_int32), ('file_fds', ctypes.c_int32 * 4), ('words', ctypes.c_uint64)]

        library.forkd_take_terms(ctypes.byref(Terms(random_fd, (ctypes.c_int32 * 4)(*files), words or 0)))
        self._words = words
        self._taken = bytearray(SEEDS + BOOT_ID)
        held = (ctypes.c_char * len(self._taken)).from_buffer(self._taken)
        self._into = ctypes.c_void_p(ctypes.addressof(held))
        self._held = held
        self._take = library.forkd_take
        self._take.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
        self.forget = library.forkd_take_forget

    def holds(self, legacy_random: Any) -> bool:
        """Whether what it was told of numpy is still so."""
        return legacy_random is None or (self._words is not None and legacy_random.address == self._words)

    def take(self, payload: bytes) -> Optional[bytes]:
        """The boot id that was taken, or None when nothing is promised."""
        if self._take(payload, len(payload), self._into) != 0:
            return None
        return bytes(self._taken[SEEDS:])

    def seeds(self) -> bytes:
        return bytes(self._taken[:SEEDS])


def load(random_fd: int, files: List[int], words: Optional[int]) -> Optional[Native]:
    """None where there is no ctypes, or the code is for another processor."""
    try:
        import ctypes

        # PyDLL: the interpreter's lock is kept. Given away, another thread might run for no reason.
        return Native(ctypes.PyDLL(PATH), ctypes, random_fd, files, words)
    except (ImportError, OSError, AttributeError):
        return None
