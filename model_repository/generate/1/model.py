"""Adapter of the `generate` stage: the decoder, on the device of its instance."""

import os
from typing import Any

import triton_python_backend_utils as pb_utils

from pinrec_core.generate.generator import Generator
from pinrec_core.generate.static_rollout import programs_made
from pinrec_core.release import Release
from pinrec_core.serving.contract import GENERATE
from pinrec_core.serving.open_releases import InlineExecutor, Stage
from pinrec_core.serving.stage_host import start_host
from pinrec_core.serving.triton_io import decode_requests, encode_responses
from pinrec_core.serving.triton_metrics import CountGauge
from pinrec_core.serving.warm_up import generate_request, warmed


class TritonPythonModel:
    """Decode, one batched call, encode."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open and warm up. The instance's kind does not select the device by itself."""
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        how = os.environ.get("PINREC_DECODER") or "auto", os.environ.get("PINREC_PRECISION") or "auto"

        def open_local(release: Release) -> Stage:
            return warmed(Generator.open(release, device, *how), generate_request(release))

        # What is compiled for a GPU belongs to the thread that compiled it, which must be the one that serves.
        executor = InlineExecutor() if on_gpu else None
        self.host = start_host(GENERATE, open_local, ("decoder.safetensors",), executor)
        words = "Programs of fixed shapes (CUDA graphs), made while opening a release or while serving."
        counted = ("when", ("opening", "serving"), programs_made)
        self.programs = CountGauge(pb_utils, "pinrec_generate_programs", words, *counted)
        self.programs.tell()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        batch = decode_requests(requests, GENERATE, pb_utils)
        answers = self.host.run(batch)
        self.programs.tell()
        return encode_responses(answers, GENERATE, pb_utils)
