"""The tokens file and `pinrec token`, which writes it."""

import re
import stat

import pytest
from click.testing import CliRunner

from pinrec_core.errors import InvalidConfig
from services.cli.main import main
from services.common.limits import Limits
from services.common.tokens import Client, digest_of, new_token, read_clients, write_clients

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def run(*arguments, tokens):
    return CliRunner().invoke(main, ["token", *arguments, "--tokens", str(tokens)])


def test_a_token_is_256_random_bits_that_a_scanner_finds():
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"pinrec_[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_the_digest_is_sha256():
    assert digest_of("abc") == SHA256_OF_ABC


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "tokens.toml"
    clients = {
        "ranking": Client("ranking", ("read",), (SHA256_OF_ABC, "0" * 64), Limits(0.5, 3, 1_000_000)),
        "log": Client("log", ("append", "admin"), (), Limits()),
    }
    write_clients(path, clients)
    assert read_clients(path) == clients
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["tokens.toml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clients = ", "not a tokens file"),
        ("[servers.a]", r"has \['servers'\]; allowed: only tables \[clients.NAME\]"),
        ("[clients]\na = 1", "clients.a has 1; allowed"),
        ('[clients."A b"]', "client has value 'A b'; allowed: 1 to 64 of a-z"),
        ("[clients.a]\nscope = ['read']", r"clients.a has \['scope'\]; allowed"),
        ("[clients.a]\nscopes = []", r"clients.a.scopes has value \[\]; allowed: one or more of"),
        ("[clients.a]\nscopes = ['read', 'write']", r"clients.a.scopes has value \['read', 'write'\]; allowed"),
        ("[clients.a]\nscopes = 'read'", "clients.a.scopes has value 'read'; allowed: a list of strings"),
        ("[clients.a]\nscopes = ['read']\nsha256 = ['abc']", "clients.a.sha256 has a value that is no SHA-256"),
        ("[clients.a]\nscopes = ['read']\nburst = -1", "clients.a.burst has value -1"),
        (
            f"[clients.a]\nscopes=['read']\nsha256=['{SHA256_OF_ABC}']\n"
            f"[clients.b]\nscopes=['append']\nsha256=['{SHA256_OF_ABC}']",
            "clients.b and clients.a have the same token",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_key(tmp_path, text, said):
    (tmp_path / "tokens.toml").write_text(text)
    with pytest.raises(InvalidConfig, match=f"tokens.toml: .*{said}"):
        read_clients(tmp_path / "tokens.toml")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match=r"tokens.toml: not a tokens file: .*No such file"):
        read_clients(tmp_path / "tokens.toml")


def test_a_new_client_gets_a_token_that_is_printed_once_and_kept_as_its_hash(tmp_path):
    path = tmp_path / "tokens.toml"
    made = run("new", "ranking", "--scope", "read", "--requests-per-second", "5", "--burst", "7", tokens=path)
    assert made.exit_code == 0
    token = made.stdout.strip()
    assert token not in path.read_text()
    assert read_clients(path) == {"ranking": Client("ranking", ("read",), (digest_of(token),), Limits(5.0, 7))}


def test_a_client_changes_over_to_a_second_token_and_the_old_one_ends(tmp_path):
    path = tmp_path / "tokens.toml"
    run("new", "ranking", "--scope", "read", "--requests-per-day", "9", tokens=path)
    newest = run("new", "ranking", "--scope", "read", "--scope", "admin", tokens=path).stdout.strip()
    assert len(read_clients(path)["ranking"].digests) == 2
    assert run("revoke", "ranking", "--old", tokens=path).stdout == "tokens of ranking ended: 1\n"
    assert read_clients(path)["ranking"] == Client(
        "ranking", ("read", "admin"), (digest_of(newest),), Limits(0.0, 0, 9)
    )


def test_clients_are_listed_and_revoked(tmp_path):
    path = tmp_path / "tokens.toml"
    run("new", "ranking", "--scope", "read", "--requests-per-second", "0.5", tokens=path)
    run("new", "log", "--scope", "append", tokens=path)
    rows = [line.split() for line in run("list", tokens=path).stdout.splitlines()]
    assert rows == [
        ["client", "scopes", "tokens", "limits"],
        ["log", "append", "1", "none"],
        ["ranking", "read", "1", "requests_per_second", "0.5"],
    ]
    assert run("revoke", "log", tokens=path).exit_code == 0
    assert list(read_clients(path)) == ["ranking"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "Ranking", "--scope", "read"), "Error: client has value 'Ranking'; allowed: 1 to 64 of a-z"),
        (("new", "ranking"), "Error: --scope is missing; allowed for a new client: one or more of ['read',"),
        (("new", "ranking", "--scope", "read", "--burst", "-1"), "Error: burst has value -1; allowed: a whole number"),
        (("revoke", "nobody"), "Error: client has value 'nobody'; allowed: one of ['log']"),
    ],
)
def test_what_a_user_can_mend_is_one_line(tmp_path, arguments, said):
    run("new", "log", "--scope", "append", tokens=tmp_path / "tokens.toml")
    refused = run(*arguments, tokens=tmp_path / "tokens.toml")
    assert refused.exit_code == 1
    assert refused.stderr.startswith(said)
    assert list(read_clients(tmp_path / "tokens.toml")) == ["log"]
