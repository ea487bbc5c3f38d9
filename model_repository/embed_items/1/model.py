"""Adapter of the `embed_items` stage: here, or on the Triton at $PINREC_EMBED_ITEMS. faiss is never imported."""

import os
from typing import Any

import triton_python_backend_utils as pb_utils

from pinrec_core.release import Release
from pinrec_core.serving.contract import EMBED_ITEMS
from pinrec_core.serving.open_releases import Stage
from pinrec_core.serving.open_stage import open_stage
from pinrec_core.serving.stage_host import start_host
from pinrec_core.serving.triton_io import decode_requests, encode_responses
from pinrec_core.serving.warm_up import TORCH_SCRIPT, embed_items_request, warmed


def open_local(release: Release) -> Stage:
    """The ID embedder of a release in this process."""
    from pinrec_core.model.id_embedding import IdEmbedder

    return warmed(IdEmbedder.open(release), embed_items_request(release), TORCH_SCRIPT)


class TritonPythonModel:
    """Decode, one batched call, encode."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the releases that serving.json lists."""
        address = os.environ.get("PINREC_EMBED_ITEMS", "")
        parts = () if address else ("id_embedding.pt", "id_tables")
        self.host = start_host(EMBED_ITEMS, open_stage(EMBED_ITEMS, address, open_local), parts)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        batch = decode_requests(requests, EMBED_ITEMS, pb_utils)
        answers = self.host.run(batch)
        return encode_responses(answers, EMBED_ITEMS, pb_utils)
