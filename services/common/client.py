"""The client's side of a gRPC port, for the verbs of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from pinrec_core.errors import PinrecError, Unavailable

Stub = TypeVar("Stub")


@contextmanager
def connect(address: str, stub: Callable[[grpc.Channel], Stub]) -> Iterator[Stub]:
    """A stub on `address`; a failing call inside raises PinrecError with the server's words."""
    with grpc.insecure_channel(address) as channel:
        try:
            yield stub(channel)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"no answer from {address}: {details}") from error
            raise PinrecError(f"{code.name} from {address}: {details}") from error
