"""The command line and the environment of a tritonserver that serves our model repository."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pinrec_core.errors import InvalidConfig
from pinrec_core.serving.reconnect import QUICK_POLLING
from pinrec_core.serving.switch import is_on
from pinrec_core.serving.triton_tls import TRITON_TLS, triton_tls_is_on
from services.common.tls import TlsFiles
from services.common.tracing import ENDPOINT
from services.triton.tools import TritonServer

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_REPOSITORY = REPOSITORY / "model_repository"

ADMIN_PROTOCOLS = "model-repository,shared-memory,model-config,statistics,trace,logging"
"""What the gateway never needs: closed to everyone who does not send the key."""

SHM_BYTES = 8 << 20
"""Shared memory of a Python model at start and of each growth: it never shrinks, and 1 MB (the default) grows often.

Four models then take half of the 64 MB that a container has by default.
"""

SHM_FOLDER = Path("/dev/shm")

TRITON_TRACES = "PINREC_TRITON_TRACES"
"""1 = Triton's own spans too, where the others' spans go."""


@dataclass(frozen=True)
class TritonOptions:
    """How a tritonserver is started.

    `signals` and `items` are addresses of those services; without `items` the index stays as it was built.
    `models` are loaded at start (an ensemble brings its steps), everything listens on `host`. `embed_items` and
    `retrieve` are addresses of Tritons that hold those stages, empty = here. `admin_key` opens `ADMIN_PROTOCOLS`; empty
    = a new secret that nobody knows.
    """

    releases: Path
    signals: str = ""
    items: str = ""
    models: tuple[str, ...] = ("pinrec",)
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    embed_items: str = ""
    retrieve: str = ""
    admin_key: str = ""
    exit_timeout_s: int = 10


def command(
    server: TritonServer,
    options: TritonOptions,
    model_repository: Path = MODEL_REPOSITORY,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """The command line. Flags that came after 24.10 are set only where this server knows them. Raises InvalidConfig."""
    restricted = f"{ADMIN_PROTOCOLS}:admin-key={options.admin_key or secrets.token_hex(16)}"
    line = [
        str(server.executable),
        f"--model-repository={model_repository}",
        f"--backend-directory={server.backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in options.models),
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--http-address={options.host}",
        f"--http-port={options.http_port}",
        f"--grpc-address={options.host}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-address={options.host}",
        f"--metrics-port={options.metrics_port}",
        f"--grpc-restricted-protocol={restricted}",
        f"--http-restricted-api={restricted}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix(options)}",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_BYTES}",
    ]
    if (endpoint := environ.get(ENDPOINT)) and is_on(TRITON_TRACES, environ):
        line += trace_flags(endpoint)
    if triton_tls_is_on(environ):
        line += tls_flags(environ)
    if not Path("/dev/nvidiactl").exists():
        line.append("--allow-gpu-metrics=false")
    if "--grpc-infer-thread-count" in help_of(server):
        line.append("--grpc-infer-thread-count=4")
    return line


def trace_flags(endpoint: str) -> list[str]:
    """Triton's own spans, of requests whose caller sends a sampled traceparent (so whatever the rate, which is 0).

    Off unless asked for: with 32 traced requests at a time Triton 24.10 crashes within seconds, while it makes and
    frees spans of the ensemble's steps.
    """
    settings = (
        f"opentelemetry,url={endpoint.rstrip('/')}/v1/traces",
        "opentelemetry,resource=service.name=pinrec-triton",
    )
    return [f"--trace-config={one}" for one in ("mode=opentelemetry", "rate=0", "level=TIMESTAMPS", *settings)]


def tls_flags(environ: Mapping[str, str]) -> list[str]:
    """TLS of the gRPC port, with the files of our own servers; HTTP, which cannot have it, is closed.

    Raises InvalidConfig for files that cannot be used.
    """
    names = ("PINREC_TLS_CERT", "PINREC_TLS_KEY", "PINREC_TLS_CLIENT_CA")
    cert, key, client_ca = (Path(value) if (value := environ.get(name)) else None for name in names)
    if cert is None or key is None:
        raise InvalidConfig(f"{TRITON_TLS} is 1 without {names[0]} and {names[1]}; allowed: all three")
    TlsFiles(cert, key, client_ca, names).check()
    flags = ["--allow-http=false", f"--grpc-server-cert={cert}", f"--grpc-server-key={key}"]
    if not client_ca:
        return [*flags, "--grpc-use-ssl=true"]
    return [*flags, "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={client_ca}"]


def help_of(server: TritonServer) -> str:
    """What `--help` prints: a flag that a server does not know keeps it from starting, and none tells its version."""
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path(server, os.environ)}
    shown = subprocess.run([server.executable, "--help"], env=environment, capture_output=True, text=True, check=False)
    return shown.stdout + shown.stderr


def environment(
    server: TritonServer, options: TritonOptions, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment: libraries and packages of the Python models, and what our stages read."""
    threads = environ.get("PINREC_THREADS") or str(max(1, (os.cpu_count() or 1) // 2))
    return {
        **environ,
        "LD_LIBRARY_PATH": library_path(server, environ),
        # The stub embeds an isolated Python, which ignores PYTHONPATH and PYTHONHOME (24.10, from Python 3.11 on) but
        # takes the first python3 on PATH for its own: this environment's, and with it its packages and .pth files.
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), *filter(None, [environ.get("PATH", "")])]),
        # Several stages share the cores: few threads each, and idle ones must sleep instead of spinning.
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        **QUICK_POLLING,
        "PINREC_RELEASES": str(options.releases.resolve()),
        "PINREC_SIGNALS": options.signals,
        "PINREC_ITEMS": options.items,
        "PINREC_EMBED_ITEMS": options.embed_items,
        "PINREC_RETRIEVE": options.retrieve,
    }


def library_path(server: TritonServer, environ: Mapping[str, str]) -> str:
    """LD_LIBRARY_PATH with the server's own folders first."""
    inherited = environ.get("LD_LIBRARY_PATH", "")
    return os.pathsep.join([*map(str, server.libraries), *filter(None, [inherited])])


def shm_prefix(options: TritonOptions) -> str:
    """Names of this server's shared memory regions; the port makes them its own on this host."""
    return f"pinrec_{options.grpc_port}_"


def clean_shm(options: TritonOptions, folder: Path = SHM_FOLDER) -> int:
    """Remove regions that a killed server left behind; returns how many. Only while no server has the port."""
    leftovers = list(folder.glob(shm_prefix(options) + "*"))
    for region in leftovers:
        region.unlink(missing_ok=True)
    return len(leftovers)
