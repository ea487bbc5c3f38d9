"""The documentation is held to the code: functions, tests, files, links, command lines, fields and metrics it names."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
from functools import cache
from itertools import groupby
from pathlib import Path

import click
import pytest
from prometheus_client import CollectorRegistry

from services.cli.main import main
from services.common import metrics
from services.common.errors import STATUS_OF
from services.gateway import server as gateway
from services.ingest import kafka
from services.items import server as items
from services.proto import candidates_pb2
from services.signals import server as signals

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FIDELITY = ROOT / "docs" / "paper-fidelity.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"`([\w./]+\.py)(::?)([\w.]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MAP_LINE = re.compile(r"^( *)(\S+) {2,}(\S.*)$")
MAX_WORDS = 8


def fences(page: Path) -> list[str]:
    return FENCE.findall(page.read_text())


# --- docs/paper-fidelity.md: `path:function`, `path:Class.method` and `path::test` ---


@cache
def definitions(path: Path) -> frozenset[str]:
    """Dotted names of the functions, classes and methods that a file defines."""

    def names(body: list[ast.stmt], prefix: str) -> list[str]:
        found = []
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found += [prefix + node.name, *names(node.body, f"{prefix}{node.name}.")]
        return found

    return frozenset(names(ast.parse(path.read_text()).body, ""))


def test_every_function_and_test_of_the_fidelity_page_exists():
    references = REFERENCE.findall(FIDELITY.read_text())
    assert len(references) > 50
    wrong = []
    for path, colons, name in references:
        exists = (ROOT / path).is_file() and name in definitions(ROOT / path)
        is_test = path.startswith("tests/") and name.startswith("test_")
        if not exists or is_test != (colons == "::"):
            wrong.append(path + colons + name)
    assert wrong == []


# --- README.md: the file map ---


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of files to hold the map to")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def file_map() -> dict[str, str]:
    """Path (folders end with /) -> what is said of it. A name two spaces further in lies in the folder above it."""
    section = README.read_text().split("## What is where", 1)[1]
    found, parents = {}, []
    for line in FENCE.search(section)[1].splitlines():
        indent, name, words = MAP_LINE.match(line).groups()
        parents = parents[: len(indent) // 2]
        found["".join(parents) + name] = words
        parents.append(name)
    return found


def test_the_file_map_is_the_tree():
    files = [path for path in tracked() if not path.startswith(".")]
    folders = {"/".join(path.split("/")[:depth]) + "/" for path in files for depth in range(1, path.count("/") + 1)}
    wanted = {folder for folder in folders if folder.count("/") <= 2} | {path for path in files if "/" not in path}
    named = set(file_map())
    assert wanted - named == set(), "not in README's file map"
    assert named - folders - set(files) == set(), "in README's file map, not in the repository"


def test_the_file_map_is_short():
    assert {path: words for path, words in file_map().items() if len(words.split()) > MAX_WORDS} == {}


# --- links ---


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_has_a_head_and_rows_as_wide(page):
    """Rows below a paragraph, or of other columns, are shown as bars and text."""
    lines = FENCE.sub("", page.read_text()).splitlines()
    tables = [list(block) for is_row, block in groupby(lines, lambda line: line.startswith("|")) if is_row]
    for table in tables:
        assert re.fullmatch(r"\|(:?-+:?\|)+", table[1] if table[1:] else ""), f"no head: {table[0]}"
        widths = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in table}
        assert len(widths) == 1, f"uneven: {table[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page):
    named = set(re.findall(r"`(tests/[\w/]+\.py)", page.read_text()))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


# --- command lines in fenced blocks ---


SERVER = r"python -m services\.(?:(?:gateway|signals|items)\.server|ingest\.kafka)"
PROGRAM = re.compile(rf"(?:\$ )?(?:\.venv/bin/)?(pinrec|{SERVER}) (.*)")
ROOTS = {
    "pinrec": main,
    "python -m services.gateway.server": gateway.main,
    "python -m services.signals.server": signals.main,
    "python -m services.items.server": items.main,
    "python -m services.ingest.kafka": kafka.main,
}


def command_lines(page: Path) -> list[tuple[str, str]]:
    """Program and arguments of each call of ours in a fenced block."""
    lines = [line for fence in fences(page) for line in fence.replace("\\\n", " ").splitlines()]
    return [match.groups() for line in lines if (match := PROGRAM.match(line))]


def assert_parses(program: str, arguments: str) -> None:
    """The verb exists, each option is one of its own, nothing required is missing and nothing is left over."""
    command: click.Command = ROOTS[program]
    words = shlex.split(arguments, comments=True)
    context = click.Context(command)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, f"no verb {words[0]!r}"
        command, words = found, words[1:]
    context = click.Context(command)
    given, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest, f"left over: {rest}"
    needed = [p for p in command.params if p.required and not p.envvar]
    assert all(isinstance(given.get(p.name), str | tuple) for p in needed), f"needed: {[p.name for p in needed]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_parse(page):
    wrong = {}
    for program, arguments in command_lines(page):
        try:
            assert_parses(program, arguments)
        except (click.UsageError, AssertionError) as error:
            wrong[f"{program} {arguments}"] = str(error)
    assert wrong == {}


def test_the_parser_refuses_what_is_wrong():
    assert_parses("pinrec", "release activate 2 --releases R  # a comment")
    for line in ("release activate", "release activate 2 3", "export --run R --data D --atcivate", "deploy", "train"):
        with pytest.raises((click.UsageError, AssertionError)):
            assert_parses("pinrec", line)


# --- fields, status codes and metrics ---


def test_the_client_page_names_every_field_and_status_code():
    text = (ROOT / "docs" / "ranking-client.md").read_text()
    messages = candidates_pb2.DESCRIPTOR.message_types_by_name.values()
    fields = {field.name for message in messages for field in message.fields}
    codes = {code.name for code in STATUS_OF.values()}
    assert {name for name in fields | codes if f"`{name}`" not in text} == set()


def test_the_operations_page_names_every_metric():
    registry = CollectorRegistry()
    for _, owner in inspect.getmembers(metrics, inspect.isclass):
        if owner.__module__ == metrics.__name__:
            owner(registry)
    text = (ROOT / "docs" / "sre.md").read_text()
    names = {m.name + ("_total" if m.type == "counter" else "") for m in registry.collect()}
    assert {name for name in names if f"`{name}`" not in text} == set()
