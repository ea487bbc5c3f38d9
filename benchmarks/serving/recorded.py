"""Messages between the stages as the path in one process made them, kept for processes that hold one stage alone.

Two files a stage, what it was given and what it answered, each tensor as it travels: no pickle is needed to read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.messages import gather
from pinrec_core.serving.contract import STAGES, TensorSpec
from pinrec_core.serving.triton_io import decode_fields, encode_fields

Arrays = list[dict[str, NDArray[Any]]]
"""Tensors of each request by name, without the batch axis."""


def record(requests: Sequence[Any], stages: Any, folder: Path) -> None:
    """Answer requests one by one with `Stages` and write what each stage was given and what it answered."""
    given: dict[str, Arrays] = {stage.name: [] for stage in STAGES}
    answered: dict[str, Arrays] = {stage.name: [] for stage in STAGES}
    for request in requests:
        sources = [request]
        for stage in STAGES:
            message = gather(stage.input, *sources)
            [answer] = getattr(stages, stage.name).run([message])
            given[stage.name].append(encode_fields(stage.inputs, message))
            answered[stage.name].append(encode_fields(stage.output_fields, answer))
            sources.append(answer)
    folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        _save(folder / f"{stage.name}.in.npz", given[stage.name])
        _save(folder / f"{stage.name}.out.npz", answered[stage.name])


def inputs_of(folder: Path, stage: str) -> Arrays:
    """What a stage was given."""
    return _load(folder / f"{stage}.in.npz")


def outputs_of(folder: Path, stage: str) -> Arrays:
    """What a stage answered, without its echoes."""
    return _load(folder / f"{stage}.out.npz")


def as_messages(message: type[Any], specs: Sequence[TensorSpec], arrays: Arrays) -> list[Any]:
    """The same as messages."""
    return [message(**decode_fields(specs, one)) for one in arrays]


def _save(path: Path, arrays: Arrays) -> None:
    np.savez(path, **{f"{row}.{name}": array for row, one in enumerate(arrays) for name, array in one.items()})  # type: ignore[arg-type]


def _load(path: Path) -> Arrays:
    found: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            row, name = key.split(".")
            found.setdefault(int(row), {})[name] = file[key]
    return [found[row] for row in sorted(found)]
