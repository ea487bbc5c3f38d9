"""Adapter of the `fetch_signals` stage: histories from the signal service at $PINREC_SIGNALS."""

import os
from typing import Any

import triton_python_backend_utils as pb_utils

from pinrec_core.serving.contract import FETCH_SIGNALS
from pinrec_core.serving.stage_host import start_host
from pinrec_core.serving.triton_io import decode_requests, encode_responses
from services.signals.client import RemoteSignals


class TritonPythonModel:
    """Decode, one batched call, encode."""

    def initialize(self, args: dict[str, str]) -> None:
        """Connect. No file of a release is read here, so none is verified."""
        signals = RemoteSignals(os.environ["PINREC_SIGNALS"])
        self.host = start_host(FETCH_SIGNALS, lambda release: signals, verify=False)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        batch = decode_requests(requests, FETCH_SIGNALS, pb_utils)
        answers = self.host.run(batch)
        return encode_responses(answers, FETCH_SIGNALS, pb_utils)
