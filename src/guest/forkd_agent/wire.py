"""Frames of the virtio-serial port, and the JSON in them.

magic u16le 0x4b46 | type u8 | flags u8 (0) | id u32le | length u32le | payload
"""
import json
import os
import struct
from typing import Any, List, Optional, Tuple, Union

GENERATION = 2
HELLO, REQUEST, REPLY = 0, 1, 2
# Of streams (streams.py): they carry the id of the request that opened one.
OPENED, DATA, CREDIT, END = 3, 4, 5, 6
OF_STREAMS = (DATA, CREDIT, END)
MAX_PAYLOAD = 64 * 1024 * 1024
# Types a later generation may add. JSON text holds no byte below 0x20, so "FK" + such a type + zero flags inside a
# payload is never taken for a header while the reader looks for the next frame.
MAX_TYPE = 15
# A device's read gives 4 KiB; a frame of several is read into its place.
LARGE = 16384

HEADER = struct.Struct('<HBBII')
MAGIC = 0x4B46
MAGIC_BYTES = b'FK'

Payload = Union[bytes, bytearray]
Frame = Tuple[int, int, Optional[Payload]]

_encode = json.JSONEncoder().encode
_decode = json.JSONDecoder().decode


def encode_json(value: Any) -> bytes:
    return _encode(value).encode()


def decode_json(payload: Payload) -> Any:
    return _decode(payload.decode('utf-8', 'replace'))


def frame(kind: int, ident: int, payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, kind, 0, ident, len(payload)) + payload


def whole_frames(data: bytes) -> List[Frame]:
    """The frames of `data` if it consists of whole frames and nothing else, which is what a host sends; else nothing."""
    frames: List[Frame] = []
    at = 0
    while len(data) - at >= 12:
        magic, kind, flags, ident, length = HEADER.unpack_from(data, at)
        end = at + 12 + length
        if magic != MAGIC or flags != 0 or kind > MAX_TYPE or end > len(data):
            return []
        frames.append((kind, ident, data[at + 12 : end]))
        at = end
    return frames if at == len(data) else []


class FrameReader:
    """Collects bytes into frames. Bytes that are no frame are skipped up to the next header.

    A frame that is too large is given as (type, id, None), for a refusal; its payload is then skipped like noise.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        # A large frame that has begun: its payload, and how much of it is there. Read in place (fill), not collected.
        self.large: Optional[bytearray] = None
        self._large_at = 0
        self._large_head = (0, 0)

    def reset(self) -> None:
        self._held = bytearray()
        self.large = None

    def feed(self, data: bytes) -> List[Frame]:
        if not self._held and len(data) >= 12:
            whole = whole_frames(data)
            if whole:
                return whole
        self._held += data
        frames: List[Frame] = []
        while True:
            frame = self._next()
            if frame is None:
                return frames
            frames.append(frame)

    def _next(self) -> Optional[Frame]:
        held = self._held
        while len(held) >= 2:
            at = held.find(MAGIC_BYTES)
            if at != 0:
                # Keep the last byte: it may be the first half of a magic.
                del held[: at if at > 0 else len(held) - (held[-1:] == MAGIC_BYTES[:1])]
                continue
            if len(held) < 12:
                return None
            _, kind, flags, ident, length = HEADER.unpack_from(held)
            if flags != 0 or kind > MAX_TYPE:
                del held[:2]
                continue
            if length > MAX_PAYLOAD:
                del held[:12]
                return (kind, ident, None)
            end = 12 + length
            if len(held) < end:
                if length >= LARGE:
                    self._begin_large(kind, ident, length)
                return None
            payload = bytes(held[12:end])
            del held[:end]
            return (kind, ident, payload)
        return None

    def _begin_large(self, kind: int, ident: int, length: int) -> None:
        self._large_head = (kind, ident)
        self.large = bytearray(length)
        self._large_at = len(self._held) - 12
        self.large[: self._large_at] = self._held[12:]
        self._held = bytearray()

    def fill(self, fd: int) -> Optional[Frame]:
        """Reads more of a large frame from a descriptor that does not block. The frame when it is whole, None when there is
        nothing more to read now. A host that hung up drops it."""
        payload = self.large
        if payload is None:
            return None
        view = memoryview(payload)
        try:
            while self._large_at < len(payload):
                got = os.readv(fd, [view[self._large_at :]])
                if got == 0:
                    self.large = None
                    return None
                self._large_at += got
        except BlockingIOError:
            return None
        self.large = None
        return (*self._large_head, payload)
