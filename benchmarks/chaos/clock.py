"""Run a module under a wall clock that is wrong by as many seconds as a file says, read anew whenever it changes.

    python -m benchmarks.chaos.clock FILE MODULE ARGUMENTS...

Our own modules see it, libraries do not: gRPC for one holds the clock of Python to that of its core, and a machine's
wrong clock is equally wrong for both. The monotonic clock goes on.
"""

from __future__ import annotations

import builtins
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = ("__main__", "services.", "pinrec_core.")
_LOOK_NS = 100_000_000


def skewed(path: Path) -> Callable[[], int]:
    """`time.time_ns`, off by what the file says."""
    looked_ns, offset_ns = 0, 0

    def time_ns() -> int:
        nonlocal looked_ns, offset_ns
        if time.monotonic_ns() - looked_ns > _LOOK_NS:
            looked_ns, offset_ns = time.monotonic_ns(), int(float(path.read_text() or 0) * 1e9)
        return time.time_ns() + offset_ns

    return time_ns


def set_wrong(path: Path) -> None:
    """From now on `import time` in a module of ours gives the wrong clock."""
    wrong = ModuleType("time")
    vars(wrong).update(vars(time))
    wrong.time_ns = time_ns = skewed(path)  # type: ignore[attr-defined]
    wrong.time = lambda: time_ns() / 1e9  # type: ignore[attr-defined]
    imported = builtins.__import__

    def import_(name: str, importer: Any = None, *more: Any, **named: Any) -> Any:
        is_ours = name == "time" and importer is not None and importer["__name__"].startswith(OURS)
        return wrong if is_ours else imported(name, importer, *more, **named)

    builtins.__import__ = import_  # type: ignore[assignment]


def main() -> None:
    """Set the clock wrong, then become the module."""
    path, module, *arguments = sys.argv[1:]
    set_wrong(Path(path))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
