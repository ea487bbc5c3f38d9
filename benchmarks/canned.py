"""A gRPC server that answers one method with the same bytes, whatever it is asked: `canned_triton`, `serving/noop`."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio


class _Canned(grpc.GenericRpcHandler):
    def __init__(self, method: str, answer: bytes, after_s: float) -> None:
        async def reply(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if after_s:
                await asyncio.sleep(after_s)
            return answer

        self._method, self._handler = method, grpc.unary_unary_rpc_method_handler(reply)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handler if details.method == self._method else None


async def serve(method: str, answer: bytes, port: int, after_s: float = 0.0) -> None:
    """Answer calls of `method` on a port of this machine, each after so many seconds, until killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_Canned(method, answer, after_s)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()
