"""gRPC by hand, as HTTP/2 frames (RFC 9113): callers that cost a tenth of a library's, and callers that misbehave.

Headers are sent as literals without indexing (RFC 7541, section 6.2.2), and the server is told to do the same, so that
its `grpc-status` can be read as text.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
FRAME_HEAD = 9
LARGEST_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65_535
CANCEL = struct.pack(">I", 8)
_STATUS = re.compile(rb"grpc-status[\x01\x02](\d+)")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values.items()))


def opening(window: int) -> bytes:
    """What a client says first; `window`: bytes of each answer that it is ready to take."""
    start = PREFACE + settings({HEADER_TABLE_SIZE: 0, INITIAL_WINDOW_SIZE: window})
    more = window - DEFAULT_WINDOW
    return start + (frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", more)) if more > 0 else b"")


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as literals; each name and value shorter than 127 bytes."""
    text = [part.encode() for pair in headers for part in pair]
    pairs = zip(text[::2], text[1::2], strict=True)
    return b"".join(b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in pairs)


def grpc_headers(method: str, deadline_s: float) -> bytes:
    """The header block of a call of `/package.Service/Method`."""
    return header_block(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{int(deadline_s * 1000)}m"),
        ]
    )


def message_of(payload: bytes) -> bytes:
    """A message with gRPC's prefix: not compressed, its length."""
    return b"\x00" + struct.pack(">I", len(payload)) + payload


def call_of(stream: int, headers: bytes, payload: bytes) -> bytes:
    """The frames of a unary call."""
    return frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, message_of(payload))


@dataclass
class RawCall:
    """One call by hand: when it was due, sent and ended (seconds of `time.monotonic`), and what came."""

    due_s: float
    sent_s: float
    done_s: float = 0.0
    code: grpc.StatusCode | None = None
    body: bytes = b""


class RawConnection(asyncio.Protocol):
    """One connection that sends calls of one method and takes whatever comes back."""

    def __init__(self, method: str, deadline_s: float) -> None:
        self._headers = grpc_headers(method, deadline_s)
        self._received = bytearray()
        self._taken = 0
        self._window = DEFAULT_WINDOW
        self._waiting: deque[tuple[RawCall, bytes]] = deque()
        self._stream = 1
        self._open: dict[int, RawCall] = {}
        self.calls: list[RawCall] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no instance of it
        transport.write(opening(LARGEST_WINDOW))

    def connection_lost(self, error: Exception | None) -> None:
        """The other side hung up: what is open was not answered."""
        self.lost = True
        for call in self._open.values():
            call.code, call.done_s = grpc.StatusCode.UNAVAILABLE, time.monotonic()
        self._open.clear()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def send(self, payload: bytes, due_s: float) -> None:
        """Make a call now, or as soon as the other side takes more bytes."""
        self.send_all([(payload, due_s)])

    def send_all(self, calls: Iterable[tuple[bytes, float]]) -> None:
        """Make calls, each with when it was due, by one system call."""
        now_s = time.monotonic()
        for payload, due_s in calls:
            self._waiting.append((RawCall(due_s, now_s), payload))
            self.calls.append(self._waiting[-1][0])
        self._send_waiting()

    def _send_waiting(self) -> None:
        frames = bytearray()
        while self._waiting and self._window >= len(self._waiting[0][1]) + 5:
            call, payload = self._waiting.popleft()
            self._window -= len(payload) + 5
            self._open[self._stream] = call
            frames += call_of(self._stream, self._headers, payload)
            self._stream += 2
        if frames:
            self._transport.write(bytes(frames))

    def data_received(self, data: bytes) -> None:
        """Frames, whole or in pieces."""
        buffer, at = self._received, 0
        buffer += data
        self._taken += len(data)
        while len(buffer) - at >= FRAME_HEAD:
            length = int.from_bytes(buffer[at : at + 3], "big")
            end = at + FRAME_HEAD + length
            if len(buffer) < end:
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._take(buffer[at + 3], buffer[at + 4], stream, bytes(buffer[at + FRAME_HEAD : end]))
            at = end
        del buffer[:at]
        if self._taken > DEFAULT_WINDOW:
            self._transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA and stream in self._open:
            self._open[stream].body += payload
        elif kind == HEADERS and flags & END_STREAM:
            found = _STATUS.search(payload)
            self._end(stream, _CODES[int(found[1])] if found else grpc.StatusCode.UNKNOWN)
        elif kind == RST_STREAM:
            self._end(stream, grpc.StatusCode.CANCELLED)
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            self._send_waiting()
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))

    def _end(self, stream: int, code: grpc.StatusCode) -> None:
        if call := self._open.pop(stream, None):
            call.code, call.done_s = code, time.monotonic()
