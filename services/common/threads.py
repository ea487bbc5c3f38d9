"""How threads of the numeric libraries wait. Call before torch or numpy is imported: they read it when they load."""

from __future__ import annotations

import os


def sleep_when_idle() -> None:
    """Let idle threads sleep instead of spinning, unless the environment says otherwise.

    Spinning is a little faster on cores of one's own; with other work on them, a training step on two threads took
    nine times as long (2.3 s against 0.24 s on two shared cores).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2^4 cycles
