"""The committed stubs are what the protos generate."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = Path("services/proto")


@pytest.mark.parametrize("name", ["candidates", "items", "releases", "signals"])
def test_committed_stubs_are_generated_from_the_protos(tmp_path, name):
    (tmp_path / PROTO).mkdir(parents=True)
    shutil.copy(ROOT / PROTO / f"{name}.proto", tmp_path / PROTO)
    arguments = ["-I", ".", "--python_out=.", "--grpc_python_out=.", str(PROTO / f"{name}.proto")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=tmp_path, check=True)
    for stub in (f"{name}_pb2.py", f"{name}_pb2_grpc.py"):
        assert (ROOT / PROTO / stub).read_text() == (tmp_path / PROTO / stub).read_text(), f"make proto: {stub} differs"
