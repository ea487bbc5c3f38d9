"""A link that delays and loses packets: two TUN interfaces, one of them in a network namespace of its own.

What is sent into one comes out of the other after the link's delay, unless it is lost. So TCP meets what it meets on a
bad network. The kernel's own netem does the same where it is built in; this needs only /dev/net/tun and root.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST_PACKET = 65_535


class Link:
    """`outer` and `inner`: addresses of its two ends. Seconds of delay each way; `loss`: share of packets lost."""

    def __init__(self, number: int) -> None:
        self.outer, self.inner = f"10.213.{number}.1", f"10.213.{number}.2"
        self.delay_s = 0.0
        self.loss = 0.0
        self._names = f"pinrec{number}a", f"pinrec{number}b"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)

    @property
    def inside(self) -> list[str]:
        """Words before a command that let it run at the inner end."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def __enter__(self) -> Link:
        # Keeps the namespace; a process that is started in it later joins.
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._ends = [_tun(name) for name in self._names]
        self._await_namespace()
        outer, inner = self._names
        _ip("link", "set", inner, "netns", str(self._holder.pid))
        _ip("addr", "add", f"{self.outer}/30", "dev", outer)
        _ip("link", "set", outer, "up")
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{self.inner}/30", "dev", inner],
            ["link", "set", inner, "up"],
            ["route", "add", "default", "via", self.outer],  # every address of the outer end
        ):
            subprocess.run([*self.inside, "ip", *words], check=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait()

    def _await_namespace(self) -> None:
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == ours:
            time.sleep(0.01)

    def _forward(self) -> None:
        """Move packets from each end to the other when their time has come."""
        waiting: list[tuple[float, int, int, bytes]] = []
        order, dice = itertools.count(), random.Random(0)
        while not self._over.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, end, packet = heapq.heappop(waiting)
                os.write(end, packet)
            until_next = waiting[0][0] - now if waiting else 0.1
            for ready in select.select(self._ends, [], [], min(0.1, max(0.0, until_next)))[0]:
                packet = os.read(ready, _LARGEST_PACKET)
                other = self._ends[1 - self._ends.index(ready)]
                if dice.random() >= self.loss:
                    heapq.heappush(waiting, (time.monotonic() + self.delay_s, next(order), other, packet))


def is_possible() -> bool:
    """Whether links can be made here."""
    return os.geteuid() == 0 and TUN.exists()


@contextmanager
def disturbed(link: Link, delay_s: float = 0.0, loss: float = 0.0) -> Iterator[None]:
    """The link delays and loses while the context lasts."""
    link.delay_s, link.loss = delay_s, loss
    try:
        yield
    finally:
        link.delay_s, link.loss = 0.0, 0.0


def _tun(name: str) -> int:
    descriptor = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
