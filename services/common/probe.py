"""Is it healthy? What the health checks of containers run: exit code 0 = yes, 1 = no, with the reason on stderr.

python -m services.common.probe HOST:PORT [SERVICE]             # gRPC health says SERVING
python -m services.common.probe http://HOST:PORT/readyz         # answers 200: Triton's keeper
"""

from __future__ import annotations

import urllib.error
import urllib.request

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pinrec_core.errors import InvalidRequest, PinrecError
from services.common.client import connect

TIMEOUT_S = 1.0


def health_of(address: str, service: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """What the gRPC health service at `address` says of `service` (empty = all of it). Raises PinrecError."""
    with connect(address, health_pb2_grpc.HealthStub) as stub:
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:  # the health service says it without a word
                raise InvalidRequest("service", service, f"a name that {address} tells the health of") from error
            raise
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def serves(address: str, service: str = "", timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the gRPC health service at `address` says SERVING."""
    try:
        return health_of(address, service, timeout_s) == "SERVING"
    except PinrecError:
        return False


def answers(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a GET of `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@click.command()
@click.argument("target", metavar="HOST:PORT|URL")
@click.argument("service", default="")
@click.option("--timeout", "timeout_s", default=TIMEOUT_S, show_default=True, help="Seconds to wait for an answer.")
def main(target: str, service: str, timeout_s: float) -> None:
    """Exit with 0 if the gRPC health service at HOST:PORT says SERVING of SERVICE, or if URL answers 200.

    Without SERVICE: of the process as a whole.
    """
    if target.startswith(("http://", "https://")):
        if not answers(target, timeout_s):
            raise click.ClickException(f"{target} does not answer 200")
        return
    try:
        health = health_of(target, service, timeout_s)
    except PinrecError as error:
        raise click.ClickException(error.message) from error
    if health != "SERVING":
        raise click.ClickException(f"{target} is {health}")


if __name__ == "__main__":
    main(prog_name="python -m services.common.probe")
