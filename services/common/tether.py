"""Run a command that is told to stop when the process that started it is gone, however that ended (Linux).

    python tether.py PARENT_PID COMMAND...

The kernel's PR_SET_PDEATHSIG survives exec. It is set here, in a process of its own, because running Python between
fork and exec (`preexec_fn`) may deadlock in a parent that has threads.
"""

import ctypes
import os
import signal
import sys

TETHER = __file__
"""This file, to be run."""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the signal, make sure that it was not too late, become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
