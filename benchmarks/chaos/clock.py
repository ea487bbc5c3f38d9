"""Run a module under a wall clock that is wrong by as many seconds as a file says, read anew whenever it changes.

    python -m benchmarks.chaos.clock FILE MODULE ARGUMENTS...

Only the wall clock as Python tells it; the monotonic clock goes on.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_NS = 100_000_000


def skewed(path: Path) -> Callable[[], int]:
    """`time.time_ns`, off by what the file says."""
    true_ns, monotonic_ns = time.time_ns, time.monotonic_ns
    looked_ns, offset_ns = 0, 0

    def time_ns() -> int:
        nonlocal looked_ns, offset_ns
        if monotonic_ns() - looked_ns > _LOOK_NS:
            looked_ns, offset_ns = monotonic_ns(), int(float(path.read_text() or 0) * 1e9)
        return true_ns() + offset_ns

    return time_ns


def main() -> None:
    """Set the clock wrong, then become the module."""
    path, module, *arguments = sys.argv[1:]
    time.time_ns = skewed(Path(path))
    time.time = lambda: time.time_ns() / 1e9
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
