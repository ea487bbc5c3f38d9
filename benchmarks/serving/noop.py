"""The floor of a call: a gRPC server that answers GetCandidates with the same bytes, whatever it is asked.

python -m benchmarks.serving.noop ANSWER_FILE PORT
"""

from __future__ import annotations

from pathlib import Path

import click
import grpc
import grpc.aio
import uvloop

from services.gateway.servicer import GET_CANDIDATES


class _Same(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        async def reply(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return answer

        self._handler = grpc.unary_unary_rpc_method_handler(reply)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handler if details.method == GET_CANDIDATES else None


async def serve(answer: bytes, port: int) -> None:
    """Until it is killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_Same(answer)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@click.command()
@click.argument("answer", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("port", type=int)
def main(answer: Path, port: int) -> None:
    """Answer every GetCandidates on PORT with the bytes of ANSWER."""
    uvloop.run(serve(answer.read_bytes(), port))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.noop")
