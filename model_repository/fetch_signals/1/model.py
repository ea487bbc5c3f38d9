"""Adapter of the `fetch_signals` stage: histories from the signal service at $PINREC_SIGNALS."""

import os
from typing import Any

import triton_python_backend_utils as pb_utils

from pinrec_core.release import Release
from pinrec_core.serving.contract import FETCH_SIGNALS
from pinrec_core.serving.open_releases import Stage
from pinrec_core.serving.stage_host import start_host
from pinrec_core.serving.triton_io import decode_requests, encode_responses, note_trace_parents
from services.signals.client import RemoteSignals


def open_remote(release: Release) -> Stage:
    """A client whose degraded answers are those of the release."""
    return RemoteSignals(os.environ["PINREC_SIGNALS"], release)


class TritonPythonModel:
    """Decode, one batched call, encode."""

    def initialize(self, args: dict[str, str]) -> None:
        """Connect. The signal service verifies the files that it reads, so none is verified here."""
        self.host = start_host(FETCH_SIGNALS, open_remote, parts=())

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        batch = decode_requests(requests, FETCH_SIGNALS, pb_utils)
        note_trace_parents(batch, requests)
        answers = self.host.run(batch)
        return encode_responses(answers, FETCH_SIGNALS, pb_utils)
