"""An ensemble of four Python steps that do nothing: the floor of the real one, with the same tensors on the way.

Names, dtypes and wiring are those of `pinrec_core/serving/contract.py`, sizes those of a recorded request. Variants say
how the big tensors travel.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.serving.contract import ENSEMBLE, MAX_BATCH_SIZE, NUMPY_OF, STAGES, StageContract, TensorSpec

MODEL = Path(__file__).with_name("empty_model.py")
WIDE = 256
"""D_sem of an encoder of sentences, where the synthetic world has 32."""


@dataclass(frozen=True)
class Variant:
    """How content and ID embeddings travel: INT8 rows with a scale and FP16 as in the stack, or both as float32."""

    name: str
    as_float32: bool = False
    content_dim: int = 0
    """D_sem; 0 = the release's."""

    def specs(self, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
        """The tensors as this variant sends them."""
        if not self.as_float32:
            return list(specs)
        return [replace(spec, dtype=_WIDER.get(spec.dtype, spec.dtype)) for spec in specs if spec.name != _SCALE]

    def arrays(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The arrays of a message as this variant sends them."""
        sent = dict(arrays)
        if self.content_dim and _CONTENT in sent:
            sent[_CONTENT] = np.resize(sent[_CONTENT], (len(sent[_CONTENT]), self.content_dim))
        if self.as_float32:
            sent.pop(_SCALE, None)
            for name in _BIG & set(sent):
                sent[name] = sent[name].astype(np.float32)
        return sent


_CONTENT, _SCALE, _ID_EMB = "content", "content_scale", "id_emb"
_BIG = {_CONTENT, _ID_EMB}
_WIDER = {"INT8": "FP32", "FP16": "FP32"}

VARIANTS = (
    Variant("int8"),
    Variant("float32", as_float32=True),
    Variant("int8_wide", content_dim=WIDE),
    Variant("float32_wide", as_float32=True, content_dim=WIDE),
)
"""The first is the floor of the real ensemble."""


def write_repository(folder: Path, answers: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """An ensemble for each of `VARIANTS`. answers: what each stage answered one request, without its echoes."""
    shutil.rmtree(folder, ignore_errors=True)
    for variant in VARIANTS:
        for stage in STAGES:
            version = folder / f"{variant.name}_{stage.name}" / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(step_config(variant, stage))
            shutil.copy(MODEL, version / "model.py")
            np.savez(version / "canned.npz", **canned(variant, stage, answers[stage.name]))  # type: ignore[arg-type]
        (folder / variant.name / "1").mkdir(parents=True)
        (folder / variant.name / "config.pbtxt").write_text(ensemble_config(variant))


def canned(variant: Variant, stage: StageContract, answer: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every output of a step; the echoes say release 1 and no time."""
    echoes = {stage.release_tensor: np.array([1]), stage.elapsed_tensor: np.array([0])}
    arrays = {**variant.arrays(answer), **echoes}
    return {spec.name: arrays[spec.name].astype(NUMPY_OF[spec.dtype]) for spec in variant.specs(stage.outputs)}


def step_config(variant: Variant, stage: StageContract) -> str:
    """config.pbtxt of a step."""
    return "\n".join(
        [
            f'name: "{variant.name}_{stage.name}"',
            'backend: "python"',
            *_head(variant.specs(stage.inputs), variant.specs(stage.outputs), ragged=True),
            "dynamic_batching { }",
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
        ]
    )


def ensemble_config(variant: Variant) -> str:
    """config.pbtxt of the chain: what one step answers, a later one reads under the same name."""
    steps = []
    for stage in STAGES:
        maps = [("input_map", spec.name) for spec in variant.specs(stage.inputs)]
        maps += [("output_map", spec.name) for spec in variant.specs(stage.outputs)]
        wired = "\n".join(f'    {side} {{ key: "{name}" value: "{name}" }}' for side, name in maps)
        steps.append(f'  step {{\n    model_name: "{variant.name}_{stage.name}"\n    model_version: -1\n{wired}\n  }}')
    return "\n".join(
        [
            f'name: "{variant.name}"',
            'platform: "ensemble"',
            *_head(ENSEMBLE.inputs, ENSEMBLE.outputs, ragged=False),
            "ensemble_scheduling {",
            *steps,
            "}",
        ]
    )


def _head(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], ragged: bool) -> list[str]:
    return [
        f"max_batch_size: {MAX_BATCH_SIZE}",
        *(_tensor("input", spec, ragged and spec.is_ragged) for spec in inputs),
        *(_tensor("output", spec, False) for spec in outputs),
    ]


def _tensor(side: str, spec: TensorSpec, ragged: bool) -> str:
    dims = ", ".join(map(str, spec.shape))
    flag = " allow_ragged_batch: true" if ragged else ""
    return f'{side} {{ name: "{spec.name}" data_type: TYPE_{spec.dtype} dims: [ {dims} ]{flag} }}'


def bytes_between_stages(variant: Variant, recorded: Mapping[str, Sequence[Mapping[str, NDArray[Any]]]]) -> float:
    """Mean bytes of one request that all stages are sent together. recorded: by stage, what it was given."""
    messages = [variant.arrays(arrays) for given in recorded.values() for arrays in given]
    total = sum(array.nbytes for message in messages for array in message.values())
    return total / len(next(iter(recorded.values())))
