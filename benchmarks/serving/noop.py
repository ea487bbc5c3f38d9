"""The floor of a call: a gRPC server that answers GetCandidates with the same bytes, whatever it is asked.

python -m benchmarks.serving.noop ANSWER_FILE PORT
"""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from benchmarks.canned import serve
from services.gateway.servicer import GET_CANDIDATES


@click.command()
@click.argument("answer", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("port", type=int)
def main(answer: Path, port: int) -> None:
    """Answer every GetCandidates on PORT with the bytes of ANSWER."""
    uvloop.run(serve(GET_CANDIDATES, answer.read_bytes(), port))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.noop")
