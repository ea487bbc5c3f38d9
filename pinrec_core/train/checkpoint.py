"""A training run on disk, without pickle; every file is written beside its place and renamed into it.

run_dir/
  config.json  dataset.json                      what defines the run
  vocabulary.json  text_encoder/                 what its model is bound to
  model.safetensors                              best weights so far, by validation
  last.safetensors                               newest weights, optimizer state and progress, in one file: one
                                                 rename is one checkpoint
  metrics.json                                   validation of the best weights, test metrics, every validation
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from pinrec_core.config import Config, config_from_dict
from pinrec_core.data.dataset import Dataset, Fitted
from pinrec_core.errors import InvalidConfig
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import TextEncoder

log = logging.getLogger(__name__)

METRICS = "metrics.json"
_MODEL, _OPTIMIZER = "model.", "optimizer."


def save_run(run_dir: Path, config: Config, fitted: Fitted, dataset_facts: Mapping[str, Any]) -> None:
    """Write what defines a run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "config.json", config.to_dict())
    write_json(run_dir / "vocabulary.json", fitted.vocabulary.to_dict())
    write_json(run_dir / "dataset.json", dataset_facts)
    shutil.rmtree(run_dir / "text_encoder", ignore_errors=True)
    fitted.text_encoder.save(run_dir / "text_encoder")


def save_weights(run_dir: Path, model: PinRec) -> None:
    """Write the best weights."""
    _replace(run_dir / "model.safetensors", save(_tensors(model.state_dict())))


def save_last(run_dir: Path, model: PinRec, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
    """Write all that a resumed run needs; `progress` holds plain values."""
    tensors = {_MODEL + name: tensor for name, tensor in _tensors(model.state_dict()).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in _tensors(state).items()}
    _replace(run_dir / "last.safetensors", save(tensors, metadata={"progress": json.dumps(progress)}))


def load_last(run_dir: Path, model: PinRec, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill `model` and `optimizer` from the newest checkpoint and return its progress. Raises InvalidConfig."""
    path = run_dir / "last.safetensors"
    tensors = _load(path)
    with safe_open(path, framework="pt") as file:
        progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    model.load_state_dict({k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(_OPTIMIZER):
            index, name = key.removeprefix(_OPTIMIZER).split(".")
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def load_weights(run_dir: Path, model: PinRec) -> None:
    """Fill `model` with the best weights. Raises InvalidConfig if there are none."""
    model.load_state_dict(_load(run_dir / "model.safetensors"))


def load_checkpoint(run_dir: Path) -> tuple[PinRec, Config, Fitted]:
    """The best model of a run, in evaluation mode on the CPU, with what it was trained with.

    Raises InvalidConfig if the folder is no run, InvalidRelease if its text encoder cannot be read.
    """
    config, fitted = load_run_config(run_dir), load_fitted(run_dir)
    model = PinRec(config, fitted.vocabulary, fitted.text_encoder.dim)
    load_weights(run_dir, model)
    return model.eval(), config, fitted


def load_fitted(run_dir: Path) -> Fitted:
    """The vocabulary and text encoder of a run. Raises as `load_checkpoint`."""
    vocabulary = Vocabulary.from_dict(_read_json(run_dir / "vocabulary.json"))
    return Fitted(vocabulary, TextEncoder.load(run_dir / "text_encoder"))


def note_other_data(run_dir: Path, dataset: Dataset) -> None:
    """Warn if a run was trained on a data set of another name: its model knows neither these users nor these items."""
    name = _read_json(run_dir / "dataset.json")["name"]
    if name != dataset.name:
        log.warning("%s was trained on %s; this is %s", run_dir.name, name, dataset.name)


def load_run_config(run_dir: Path) -> Config:
    """The configuration that a run was started with. Raises InvalidConfig."""
    return config_from_dict(_read_json(run_dir / "config.json"))


def load_metrics(run_dir: Path) -> dict[str, Any]:
    """The offline metrics of a run's best weights: `validation`, and `test` once `pinrec evaluate` has run."""
    values = _read_json(run_dir / METRICS)
    return {side: values[side] for side in ("validation", "test") if side in values}


def write_json(path: Path, values: Any) -> None:
    """Write JSON beside `path` and rename it into place."""
    _replace(path, json.dumps(values, indent=1).encode())


def add_test_metrics(run_dir: Path, metrics: Mapping[str, float]) -> None:
    """Keep the test metrics of a run's best weights beside its validations."""
    write_json(run_dir / METRICS, {**_read_json(run_dir / METRICS), "test": metrics})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{path.parent} is not a training run: {path.name} is missing or not JSON") from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidConfig(f"{path.parent} holds no readable {path.name}: has it been trained?") from error
    return tensors


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in state.items()}


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, sync it and rename it into place, so that nobody sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
