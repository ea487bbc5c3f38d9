"""A step of the ensemble that does nothing: every request is answered with the arrays of `canned.npz` beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pinrec_core.serving.triton_io import triton_tensor


class TritonPythonModel:
    """The inputs come as far as this process and are not looked at."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the arrays."""
        with np.load(Path(__file__).with_name("canned.npz"), allow_pickle=False) as file:
            self.arrays = {name: file[name][None] for name in file.files}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._response() for _ in requests]

    def _response(self) -> Any:
        tensors = [triton_tensor(name, array, pb_utils) for name, array in self.arrays.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
