"""The command line as a whole: light to start, clear when something is wrong."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pinrec_core.errors import InvalidData
from services.cli import main as cli
from services.cli.main import VERBS, Verb, main

HEAVY = ("torch", "faiss", "pyarrow", "numpy", "grpc", "tqdm")


def modules_after(code):
    """Which heavy modules a fresh interpreter holds after `code`."""
    code = f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_help_imports_nothing_heavy():
    call = "from services.cli.main import main\nmain(['--help'], standalone_mode=False)"
    assert modules_after(call) == []


def test_the_gateway_holds_neither_torch_nor_faiss_nor_pyarrow():
    loaded = modules_after("import services.gateway.server")
    assert not {"torch", "faiss", "pyarrow"} & set(loaded)


def test_asking_a_gateway_needs_neither_torch_nor_faiss_nor_pyarrow():
    call = "from services.cli.main import main\nmain(['recommend', '--help'], standalone_mode=False)"
    assert not {"torch", "faiss", "pyarrow"} & set(modules_after(call))


def test_help_lists_every_verb_with_its_line():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, verb in VERBS.items():
        assert f"  {name}" in result.output
        assert verb.summary in result.output


@pytest.mark.parametrize("name", ["recommend", "events", "release"])
def test_a_verb_is_what_the_table_says(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: pinrec {name}" in result.output


def test_an_unknown_verb_is_a_usage_error():
    result = CliRunner().invoke(main, ["recomend"])
    assert result.exit_code == 2
    assert "No such command 'recomend'" in result.output


@pytest.fixture
def failing_verb(monkeypatch):
    """A verb `fail` that raises what the test put into the list."""
    raised = []

    @click.command()
    def fail():
        raise raised[0]

    module = type(sys)("failing_verb")
    module.fail = fail
    monkeypatch.setitem(sys.modules, "failing_verb", module)
    monkeypatch.setitem(cli.VERBS, "fail", Verb("failing_verb", "Fails."))
    return raised


def test_a_typed_error_is_one_line_and_exit_code_1(failing_verb):
    failing_verb.append(InvalidData("items.parquet: column 'item_id' is missing"))
    result = CliRunner().invoke(main, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == "Error: items.parquet: column 'item_id' is missing\n"


def test_a_missing_extra_is_named(failing_verb):
    failing_verb.append(ModuleNotFoundError("No module named 'torch'", name="torch"))
    result = CliRunner().invoke(main, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == "Error: this verb needs torch, which is not installed: pip install 'pinrec[cpu]'\n"


def test_a_bug_keeps_its_traceback(failing_verb):
    failing_verb.append(KeyError("bug"))
    assert isinstance(CliRunner().invoke(main, ["fail"]).exception, KeyError)
