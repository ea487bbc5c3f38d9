"""Finding a Triton server and what it is started with."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from pinrec_core.errors import InvalidConfig
from services.triton import tools as triton_tools
from services.triton.__main__ import main
from services.triton.command import TritonOptions, clean_shm, command, environment
from services.triton.tools import TritonMissing, TritonServer, install, libpython_folder, locate, place_stub

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


def executable(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path) -> Path:
    """What the wheel unpacks to, with two stubs, one of them for this Python."""
    folder = tmp_path / "tools"
    server = folder / "pytriton" / "tritonserver"
    executable(server / "bin" / "tritonserver")
    (server / "backends" / "python").mkdir(parents=True)
    (folder / "nvidia_pytriton.libs").mkdir()
    for version in ("2.7", VERSION):
        stub = server / "python_backend_stubs" / version / STUB
        stub.parent.mkdir(parents=True)
        stub.write_text(f"stub of {version}")
    return folder


def image(folder: Path) -> Path:
    """A tritonserver as NVIDIA's images lay it out."""
    (folder / "backends" / "python").mkdir(parents=True)
    (folder / "lib").mkdir()
    return executable(folder / "bin" / "tritonserver")


def test_named_server_comes_first_then_path_then_fetched(tools, tmp_path):
    named, on_path = image(tmp_path / "named"), image(tmp_path / "on_path")
    environ = {"PINREC_TRITON": str(named), "PATH": str(on_path.parent)}
    assert locate(environ, tools).executable == named
    del environ["PINREC_TRITON"]
    assert locate(environ, tools).executable == on_path
    assert locate({"PATH": str(tmp_path)}, tools).executable == tools / "pytriton/tritonserver/bin/tritonserver"


def test_libraries_of_each_layout(tools, tmp_path):
    fetched = locate({}, tools)
    assert fetched.backends == tools / "pytriton/tritonserver/backends"
    assert fetched.libraries[0] == tools / "nvidia_pytriton.libs"
    named = image(tmp_path / "opt" / "tritonserver")
    server = locate({"PINREC_TRITON": str(named)}, tools)
    assert server.libraries[0] == tmp_path / "opt/tritonserver/lib"
    assert server.backends == tmp_path / "opt/tritonserver/backends"


@pytest.mark.parametrize("value", ["/nowhere/tritonserver", "folder", "text"])
def test_a_named_server_must_be_an_executable(value, tools, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("")
    with pytest.raises(TritonMissing, match=r"PINREC_TRITON has value .*; allowed: the path of a tritonserver"):
        locate({"PINREC_TRITON": str(tmp_path / value)}, tools)


def test_a_server_without_python_backend_is_refused(tools, tmp_path):
    alone = executable(tmp_path / "alone" / "bin" / "tritonserver")
    with pytest.raises(TritonMissing, match="no Python backend"):
        locate({"PINREC_TRITON": str(alone)}, tools)


def test_nothing_found_says_what_to_do(tmp_path):
    with pytest.raises(TritonMissing, match=r"python -m services\.triton install"):
        locate({"PATH": ""}, tmp_path / "empty")


def test_stub_of_this_python_is_placed_and_replaced(tools):
    placed = tools / "pytriton/tritonserver/backends/python" / STUB
    place_stub(tools)
    assert placed.read_text() == f"stub of {VERSION}"
    placed.write_text("stub of 2.7")
    place_stub(tools)
    assert placed.read_text() == f"stub of {VERSION}"
    assert [path.name for path in placed.parent.iterdir()] == [STUB]


def test_a_python_without_stub_is_named_with_those_that_have_one(tools, monkeypatch):
    monkeypatch.setattr(sys, "version_info", type("V", (), {"major": 4, "minor": 2}))
    with pytest.raises(TritonMissing, match=r"no Python backend for Python 4\.2; allowed: .*2\.7"):
        place_stub(tools)


def test_install_does_nothing_where_the_server_is(tools, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert install(tools) is False
    assert (tools / "pytriton/tritonserver/backends/python" / STUB).is_file()


def test_install_says_where_the_wheel_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(TritonMissing, match="for Linux x86-64 only, this is darwin arm64"):
        install(tmp_path)


def test_a_failed_download_leaves_nothing_that_looks_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(triton_tools, "WHEEL", "./no-such-file.whl")
    with pytest.raises(TritonMissing, match="pip could not install"):
        install(tmp_path / "tools")
    assert not (tmp_path / "tools").exists()


def test_errors_of_the_command_line_are_one_line(monkeypatch):
    monkeypatch.setenv("PINREC_TRITON", "/nowhere")
    result = CliRunner().invoke(main, ["locate"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: PINREC_TRITON has value '/nowhere'")


def test_libpython_is_where_it_says():
    folder = libpython_folder()
    if folder is not None:
        assert list(folder.glob("libpython*"))


def server(tmp_path: Path, flags: str = "") -> TritonServer:
    return TritonServer(
        executable(tmp_path / "bin" / "tritonserver", f"echo '{flags}'"), tmp_path / "backends", (tmp_path / "lib",)
    )


def test_command_line_by_hand(tmp_path):
    options = TritonOptions(
        tmp_path / "releases", models=("embed_items", "retrieve"), grpc_port=9001, http_port=9000, metrics_port=9002
    )
    line = command(server(tmp_path), options, tmp_path / "models")
    assert line[0] == str(tmp_path / "bin" / "tritonserver")
    assert {
        f"--model-repository={tmp_path}/models",
        f"--backend-directory={tmp_path}/backends",
        "--model-control-mode=explicit",
        "--load-model=embed_items",
        "--load-model=retrieve",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--http-port=9000",
        "--grpc-port=9001",
        "--metrics-port=9002",
        "--exit-timeout-secs=10",
        "--backend-config=python,shm-region-prefix-name=pinrec_9001_",
    } <= set(line)
    assert "--load-model=pinrec" not in line


def test_admin_interfaces_are_closed_with_a_key_of_ones_own_or_a_secret(tmp_path):
    here = server(tmp_path)

    def restricted(options: TritonOptions) -> list[str]:
        return [flag for flag in command(here, options) if "restricted" in flag]

    known = restricted(TritonOptions(tmp_path, admin_key="k"))
    protocols = "model-repository,shared-memory,model-config,statistics,trace,logging:admin-key=k"
    assert known == [f"--grpc-restricted-protocol={protocols}", f"--http-restricted-api={protocols}"]
    assert restricted(TritonOptions(tmp_path)) != restricted(TritonOptions(tmp_path))


def test_tls_of_the_grpc_port_closes_http_and_takes_the_files_of_our_servers(tmp_path):
    authority, (cert, key) = trustme.CA(), (tmp_path / "cert.pem", tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    made = authority.issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(cert)
    made.private_key_pem.write_to_path(key)
    environ = {"PINREC_TRITON_TLS": "1", "PINREC_TLS_CERT": str(cert), "PINREC_TLS_KEY": str(key)}
    files = {"--allow-http=false", f"--grpc-server-cert={cert}", f"--grpc-server-key={key}"}

    def flags(**more: str) -> set[str]:
        return set(command(server(tmp_path), TritonOptions(tmp_path), environ={**environ, **more}))

    plain = flags(PINREC_TRITON_TLS="0")
    assert not {flag for flag in plain if "ssl" in flag or flag.startswith("--allow-http")}
    assert {*files, "--grpc-use-ssl=true"} <= flags()
    ca = tmp_path / "ca.pem"
    mutual = flags(PINREC_TLS_CLIENT_CA=str(ca))
    assert {*files, "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={ca}"} <= mutual
    with pytest.raises(InvalidConfig, match="PINREC_TRITON_TLS is 1 without PINREC_TLS_CERT"):
        flags(PINREC_TLS_CERT="")
    with pytest.raises(InvalidConfig, match=r"PINREC_TLS_CERT has value '.*ca\.pem'"):
        flags(PINREC_TLS_CERT=str(ca))


@pytest.mark.parametrize(("flags", "expected"), [("--grpc-port", False), ("--grpc-infer-thread-count <integer>", True)])
def test_flags_of_newer_servers_are_set_only_where_they_are_known(tmp_path, flags, expected):
    line = command(server(tmp_path, flags), TritonOptions(tmp_path))
    assert ("--grpc-infer-thread-count=4" in line) is expected


def test_triton_traces_where_the_others_do_if_it_is_told_to(tmp_path):
    started = server(tmp_path, "")
    untraced = command(started, TritonOptions(tmp_path), environ={})
    others = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318/"}
    silent = command(started, TritonOptions(tmp_path), environ=others)
    traced = command(started, TritonOptions(tmp_path), environ={**others, "PINREC_TRITON_TRACES": "1"})
    assert not [flag for flag in (*untraced, *silent) if flag.startswith("--trace")]
    with pytest.raises(InvalidConfig, match="PINREC_TRITON_TRACES has value 'yes'; allowed: 0, 1"):
        command(started, TritonOptions(tmp_path), environ={**others, "PINREC_TRITON_TRACES": "yes"})
    assert [flag for flag in traced if flag.startswith("--trace")] == [
        "--trace-config=mode=opentelemetry",
        "--trace-config=rate=0",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=opentelemetry,url=http://otel:4318/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=pinrec-triton",
    ]


def test_environment_by_hand(tmp_path):
    options = TritonOptions(tmp_path / "releases", signals="s:1", items="i:3", embed_items="e:2")
    found = environment(
        server(tmp_path), options, {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/old", "PINREC_THREADS": "3", "KEPT": "1"}
    )
    assert found == {
        "KEPT": "1",
        "PINREC_THREADS": "3",
        "PATH": f"{sys.prefix}/bin:/usr/bin",
        "LD_LIBRARY_PATH": f"{tmp_path}/lib:/old",
        "OMP_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "200",
        "PINREC_RELEASES": str(tmp_path / "releases"),
        "PINREC_SIGNALS": "s:1",
        "PINREC_ITEMS": "i:3",
        "PINREC_EMBED_ITEMS": "e:2",
        "PINREC_RETRIEVE": "",
    }


def test_environment_without_anything_set(tmp_path):
    found = environment(server(tmp_path), TritonOptions(tmp_path), {})
    assert found["LD_LIBRARY_PATH"] == f"{tmp_path}/lib"
    assert found["PATH"] == f"{sys.prefix}/bin"
    assert int(found["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)


def test_only_this_ports_leftovers_are_removed(tmp_path):
    for name in ("pinrec_8001_a", "pinrec_8001_b", "pinrec_80010_c", "other"):
        (tmp_path / name).touch()
    assert clean_shm(TritonOptions(tmp_path, grpc_port=8001), tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "pinrec_80010_c"]
