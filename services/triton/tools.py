"""Finding the Triton server, or fetching it: a tool beside the environment, not a part of it.

The wheel `nvidia-pytriton` holds a whole tritonserver with its Python backend. It is unpacked without its dependencies,
since it asks for numpy 1 and the product stands on numpy 2.
"""

from __future__ import annotations

import filecmp
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pinrec_core.errors import PinrecError

WHEEL = "nvidia-pytriton==0.7.0"
"""Triton 2.51.0 (24.10)."""

TOOLS = Path(__file__).resolve().parents[2] / ".tools" / "triton"
"""Where `install` puts the wheel in a checkout."""

_SERVER = Path("pytriton/tritonserver")
_STUB = "triton_python_backend_stub"


class TritonMissing(PinrecError):
    """There is no tritonserver here, or not one that this Python can be used with."""

    code = "FAILED_PRECONDITION"


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver on disk: its executable, its folder of backends and the folders its libraries are found in."""

    executable: Path
    backends: Path
    libraries: tuple[Path, ...]


def locate(environ: Mapping[str, str] = os.environ, tools: Path = TOOLS) -> TritonServer:
    """`PINREC_TRITON`, else `tritonserver` on PATH, else the one that `install` fetched. Raises TritonMissing."""
    named = environ.get("PINREC_TRITON")
    if named:
        executable = Path(named)
        if not (executable.is_file() and os.access(executable, os.X_OK)):
            raise TritonMissing(f"PINREC_TRITON has value {named!r}; allowed: the path of a tritonserver executable")
        return _server_at(executable)
    on_path = shutil.which("tritonserver", path=environ.get("PATH", ""))
    if on_path is not None:
        return _server_at(Path(on_path))
    fetched = tools / _SERVER / "bin" / "tritonserver"
    if not fetched.is_file():
        raise TritonMissing(
            "no tritonserver: set PINREC_TRITON to one, put one on PATH, "
            "or fetch it with `python -m services.triton install`"
        )
    place_stub(tools)
    return _server_at(fetched)


def _server_at(executable: Path) -> TritonServer:
    """`bin/tritonserver` with `backends/` beside `bin/`, as both the wheel and NVIDIA's images lay it out."""
    root = executable.resolve().parent.parent
    backends = root / "backends"
    if not (backends / "python").is_dir():
        raise TritonMissing(f"{executable}: no Python backend at ../backends/python")
    bundled = root.parents[1] / "nvidia_pytriton.libs"
    libraries = [folder for folder in (root / "lib", bundled, libpython_folder()) if folder is not None]
    return TritonServer(executable, backends, tuple(folder for folder in libraries if folder.is_dir()))


def libpython_folder() -> Path | None:
    """Where this Python's shared library lies, which the backend's stub links to; None if only the loader knows."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        sysconfig.get_config_var("LIBPL"),
        str(Path(sys.base_prefix) / "lib"),
    ]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [str(Path(folder) / multiarch) for folder in folders if folder]
    found = [Path(folder) for folder in folders if folder and name and (Path(folder) / name).is_file()]
    return found[0] if found else None


def install(tools: Path = TOOLS) -> bool:
    """Unpack the wheel into `tools` unless it is there, and place the stub of the running Python.

    Returns whether something was fetched. Raises TritonMissing where the wheel does not exist.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise TritonMissing(
            f"the wheel {WHEEL} exists for Linux x86-64 only, this is {sys.platform} {platform.machine()}: "
            "set PINREC_TRITON to a tritonserver, or use the container images"
        )
    missing = not (tools / _SERVER / "bin" / "tritonserver").is_file()
    if missing:
        _unpack(tools)
    place_stub(tools)
    return missing


def _unpack(tools: Path) -> None:
    """Install beside `tools` and rename, so that an interrupted download is never taken for the server."""
    beside = tools.with_name(tools.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target", str(beside), WHEEL]
    if subprocess.run(pip, check=False).returncode:
        raise TritonMissing(f"pip could not install {WHEEL}; its output says why")
    shutil.rmtree(tools, ignore_errors=True)
    beside.rename(tools)


def place_stub(tools: Path) -> None:
    """Put the stub of the running Python beside the Python backend. Raises TritonMissing if the wheel has none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = tools / _SERVER / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        have = sorted(folder.name for folder in stub.parents[1].iterdir())
        raise TritonMissing(f"{WHEEL} has no Python backend for Python {version}; allowed: {', '.join(have)}")
    target = tools / _SERVER / "backends" / "python" / _STUB
    if not target.is_file() or not filecmp.cmp(stub, target, shallow=False):
        beside = target.with_name(f".{_STUB}.{os.getpid()}")
        shutil.copy2(stub, beside)
        beside.replace(target)  # in one step: a server may be starting from it
