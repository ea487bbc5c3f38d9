"""Mounts and a network of this process's own, so that disks can be filled and packets lost beside nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SHM_SIZE, DISK_SIZE = "256m", "96m"
_INSIDE = "PINREC_CHAOS_SANDBOX"
_UNSHARE = ("unshare", "--mount", "--net", "--propagation", "private")


def enter(module: str) -> None:
    """Start this module again in namespaces of its own, with a small /dev/shm; go on as it is where that is refused."""
    if os.environ.get(_INSIDE) == str(os.getpid()):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        mount_small(Path("/dev/shm"), SHM_SIZE)
        return
    if not _possible():
        return
    # unshare(1) becomes the command without a fork, so the process keeps its id.
    os.environ[_INSIDE] = str(os.getpid())
    os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, "-m", module, *sys.argv[1:]])


def is_inside() -> bool:
    """Whether this process is in namespaces of its own."""
    return _INSIDE in os.environ


def mount_small(folder: Path, size: str = DISK_SIZE) -> None:
    """A small file system in memory on `folder`, gone with this process's namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)


def _possible() -> bool:
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("unshare", "ip", "mount")):
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
