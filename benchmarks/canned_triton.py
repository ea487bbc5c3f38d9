"""A Triton that answers every request of the ensemble with the same bytes, so that only the gateway's cost counts.

The real one needs tens of milliseconds of CPU for what the gateway does in one; on the same machine it would hide it.
The bytes are a real answer, made by `pinrec_core.recommend`.

python -m benchmarks.canned_triton ANSWER_FILE PORT
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path

import click
from tritonclient.grpc.service_pb2 import ModelInferResponse

from benchmarks.canned import serve
from pinrec_core.messages import gather
from pinrec_core.recommend import Recommendation
from pinrec_core.serving.contract import ENSEMBLE, STAGES
from pinrec_core.serving.triton_io import encode_fields
from services.gateway.reply import PathOutput

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STAGE_US = 12_500
"""What each stage says that it took."""

ANSWER_AFTER_S = 4 * STAGE_US / 1e6
"""A gateway lets in as many requests as keep its stages quick: beside an answer at once its own work would be slow."""


def answer_of(made: Recommendation, release: int) -> bytes:
    """The ensemble's message for what `recommend` made of one request."""
    own = {field.name for field in fields(PathOutput)}
    output = gather(PathOutput, made.candidates, made.generated, made.signals)
    arrays = encode_fields([spec for spec in ENSEMBLE.outputs if spec.name in own], output)
    for stage in STAGES:
        release_spec, elapsed_spec = stage.outputs[-2:]
        arrays |= encode_fields([release_spec], _Named(release_spec.name, release))
        arrays |= encode_fields([elapsed_spec], _Named(elapsed_spec.name, STAGE_US))
    response = ModelInferResponse(model_name=ENSEMBLE.name)
    for spec in ENSEMBLE.outputs:
        array = arrays[spec.name][None]
        response.outputs.add(name=spec.name, datatype=spec.dtype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return bytes(response.SerializeToString())


class _Named:
    """A message of one field."""

    def __init__(self, name: str, value: int) -> None:
        setattr(self, name, value)


@click.command()
@click.argument("answer", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("port", type=int)
def main(answer: Path, port: int) -> None:
    """Serve the bytes of ANSWER on PORT as the answer to every request of the ensemble."""
    asyncio.run(serve(METHOD, answer.read_bytes(), port, ANSWER_AFTER_S))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.canned_triton")
