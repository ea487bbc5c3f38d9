"""The client's side of a gRPC port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from pinrec_core.errors import PinrecError, Unavailable

QUICK_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1_000)]
"""Channel options of a long-lived client: a restarted service is found again within about a second.

Both are needed: with the longest pause alone, gRPC waited ten seconds and more.
"""

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
