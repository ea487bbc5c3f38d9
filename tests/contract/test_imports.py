"""Import directions of the house, read from the code; and what the light processes may load, seen in the processes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BASE = {"schema", "config", "errors", "codec", "text_encoder", "release", "messages", "tables", "event_log", ""}
"""Modules and packages that anything may import ("" is pinrec_core itself); they import only each other."""

ALLOWED = {
    "base": set(),
    "model": set(),
    "items": {"model"},
    "signals": set(),
    "batch_job": {"signals"},
    "retrieve": {"items.changes"},
    "data": {"items.content", "items.log", "model.inputs"},
    "train": {"data", "model"},
    "train.export": {"data", "generate", "items", "model", "train", "retrieve"},
    "generate": {"model"},
    "eval": {"data", "model", "generate", "retrieve"},
    "eval.baselines": {"data", "model", "generate", "retrieve", "eval", "train"},
    "golden": {"recommend", "generate"},
    "recommend": {"signals", "model", "generate", "retrieve"},
    "serving": set(),
}
"""What each part may import beside base and itself; export also builds the index of what was trained."""

WITHOUT = {"torch": {"base", "signals", "retrieve", "serving"}, "faiss": {"base", "signals", "serving", "model"}}
"""Parts whose modules never import a library, since each brings its own OpenMP runtime."""


def modules(package: str) -> dict[str, Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top or inside functions; relative imports are not used here."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str:
    """The part of the house that a module of pinrec_core belongs to."""
    inner = module.removeprefix("pinrec_core").removeprefix(".")
    if inner.split(".")[0] in BASE:
        return "base"
    for part in ("eval.baselines", "train.export"):
        if inside(inner, part):
            return part
    return inner.split(".")[0]


def inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


CORE = modules("pinrec_core")


@pytest.mark.parametrize("module", CORE)
def test_core_imports_only_in_the_allowed_directions(module: str):
    part = part_of(module)
    assert part in ALLOWED, f"{module} belongs to no part; say in ALLOWED what it may import"
    allowed = ALLOWED[part] | {part}
    for name in imports(CORE[module]):
        if not inside(name, "pinrec_core"):
            continue
        inner = name.removeprefix("pinrec_core").removeprefix(".")
        # `from package import name` is seen as package and as package.name, which may be no module.
        if name not in CORE or part_of(name) == "base":
            continue
        assert any(inside(inner, way) for way in allowed), f"{module} imports {name}; allowed: base, {sorted(allowed)}"


@pytest.mark.parametrize("module", CORE)
def test_core_never_imports_what_stands_on_it(module: str):
    outside = ("services", "model_repository", "loadtest", "benchmarks", "tests")
    assert not [name for name in imports(CORE[module]) if any(inside(name, part) for part in outside)]


@pytest.mark.parametrize(("library", "parts"), WITHOUT.items())
def test_light_parts_never_import_heavy_libraries(library: str, parts: set[str]):
    for module, path in CORE.items():
        if part_of(module) in parts:
            assert not [name for name in imports(path) if inside(name, library)], f"{module} imports {library}"


def test_adapters_import_only_the_core_and_clients():
    for path in (ROOT / "model_repository").rglob("*.py"):
        ours = {name for name in imports(path) if inside(name, "services")}
        clients = ("services.signals.client", "services.items.client")
        assert all(any(inside(name, client) for client in clients) for name in ours), path
        assert len(path.read_text().splitlines()) <= 50, f"{path} is more than an adapter"


def loaded_after(program: str) -> set[str]:
    """Modules that a fresh process holds after `program`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print('LOADED', *sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("LOADED ")[1].split())


def test_gateway_process_loads_neither_torch_nor_faiss():
    loaded = loaded_after("import services.gateway.server")
    assert "services.gateway.triton_client" in loaded
    assert not loaded & {"torch", "faiss", "rocksdict", "opentelemetry"}


def test_retrieve_process_does_not_load_torch():
    # triton_python_backend_utils exists only inside Triton's own process.
    loaded = loaded_after(
        "import runpy, sys, types\n"
        "sys.modules['triton_python_backend_utils'] = types.ModuleType('triton_python_backend_utils')\n"
        "runpy.run_path('model_repository/retrieve/1/model.py')\n"
        "import pinrec_core.retrieve.search"
    )
    assert "faiss" in loaded
    assert "torch" not in loaded


def test_embed_items_process_does_not_load_faiss():
    loaded = loaded_after(
        "import runpy, sys, types\n"
        "sys.modules['triton_python_backend_utils'] = types.ModuleType('triton_python_backend_utils')\n"
        "runpy.run_path('model_repository/embed_items/1/model.py')\n"
        "import pinrec_core.model.id_embedding"
    )
    assert "torch" in loaded
    assert "faiss" not in loaded
