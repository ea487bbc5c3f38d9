"""The client's side of a gRPC port: whom it trusts, who it is, and its failures in our words.

PINREC_CLIENT_CA makes every channel of a process speak TLS, PINREC_CLIENT_CERT and PINREC_CLIENT_KEY show a certificate
of its own, PINREC_TOKEN_FILE a token. Files, so that no secret stands in an environment or on a command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from pinrec_core.errors import InvalidConfig, PinrecError, Unavailable
from services.common.tls import CLIENT_CA, client_credentials

TOKEN_FILE = "PINREC_TOKEN_FILE"

Stub = TypeVar("Stub")
Options = Sequence[tuple[str, Any]]


def open_channel(address: str, options: Options = ()) -> grpc.Channel:
    """A channel by the environment's credentials. Raises InvalidConfig for files that cannot be used."""
    credentials = channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def open_aio_channel(address: str, options: Options = ()) -> grpc.aio.Channel:
    """`open_channel` for asyncio."""
    credentials = channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


def channel_credentials(environ: Mapping[str, str] = os.environ) -> grpc.ChannelCredentials | None:
    """TLS and the token by the environment; None = neither. Raises InvalidConfig."""
    credentials = client_credentials(environ)
    token_file = environ.get(TOKEN_FILE)
    if not token_file:
        return credentials
    if credentials is None:
        raise InvalidConfig(f"{TOKEN_FILE} is set without {CLIENT_CA}: a token travels over TLS only")
    token = _Token(Path(token_file))
    token.read()
    return grpc.composite_channel_credentials(credentials, grpc.metadata_call_credentials(token, "pinrec"))


class _Token(grpc.AuthMetadataPlugin):  # type: ignore[misc]
    """Adds the token of a file to each call; a replaced file is read anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, int] | None = None
        self._header = ""

    def read(self) -> str:
        """The header's value. Raises InvalidConfig if there is no token in the file."""
        try:
            stat = self._path.stat()
            if self._state != (stat.st_mtime_ns, stat.st_ino):
                self._header = f"Bearer {self._path.read_text().strip()}"
                self._state = stat.st_mtime_ns, stat.st_ino
        except (OSError, ValueError) as error:
            raise InvalidConfig(f"{TOKEN_FILE} has value {str(self._path)!r}; allowed: a readable file") from error
        if not self._header.removeprefix("Bearer ").isprintable() or " " in self._header.removeprefix("Bearer "):
            raise InvalidConfig(f"{TOKEN_FILE} has value {str(self._path)!r}; allowed: a file with one token")
        return self._header

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """gRPC asks on threads of its own; an error fails the call as UNAVAILABLE with its words."""
        try:
            callback((("authorization", self.read()),), None)
        except InvalidConfig as error:
            callback((), error)


@contextmanager
def connect(address: str, stub: Callable[[grpc.Channel], Stub]) -> Iterator[Stub]:
    """A stub on `address`; a failing call inside raises PinrecError with the server's words."""
    with open_channel(address) as channel:
        try:
            yield stub(channel)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"{address} is unavailable: {details}") from error
            raise PinrecError(f"{code.name} from {address}: {details}") from error
