"""Adapter of the `retrieve` stage: here, or on the Triton at $PINREC_RETRIEVE. torch is never imported."""

import os
from typing import Any

import triton_python_backend_utils as pb_utils

from pinrec_core.release import Release
from pinrec_core.serving.contract import RETRIEVE
from pinrec_core.serving.open_releases import Stage
from pinrec_core.serving.open_stage import open_stage
from pinrec_core.serving.stage_host import start_host
from pinrec_core.serving.triton_io import decode_requests, encode_responses
from services.items.client import ItemFollower


def open_local(release: Release) -> Stage:
    """The index of a release in this process, once it knows what was added and deleted since (at $PINREC_ITEMS)."""
    from pinrec_core.retrieve.search import Retriever

    retriever = Retriever.open(release)
    if address := os.environ.get("PINREC_ITEMS", ""):
        ItemFollower(address, release.number, retriever.index).wait()
    return retriever


class TritonPythonModel:
    """Decode, one batched call, encode."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the releases that serving.json lists."""
        address = os.environ.get("PINREC_RETRIEVE", "")
        parts = () if address else ("index", "popular")
        self.host = start_host(RETRIEVE, open_stage(RETRIEVE, address, open_local), parts)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        batch = decode_requests(requests, RETRIEVE, pb_utils)
        answers = self.host.run(batch)
        return encode_responses(answers, RETRIEVE, pb_utils)
