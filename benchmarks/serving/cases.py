"""Batches of full, random histories for a network: what is rolled out while time is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pinrec_core.config import Config, GenerateConfig
from pinrec_core.generate.generator import in_precision
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.model.inputs import SequenceInputs
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import Release
from pinrec_core.schema import Vocabulary

NOW_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Case:
    """One batch for one network."""

    model: PinRec
    inputs: SequenceInputs
    branches: Branches

    @property
    def plan(self) -> GenerateConfig:
        """Of the rollout."""
        return self.model.config.generate

    @torch.inference_mode()
    def roll(self) -> Tensor:
        """Our rollout: [B, A, M, D]."""
        return rollout(self.model, self.inputs, self.branches, self.plan)


def random_case(
    model: PinRec, vocabulary: Vocabulary, content_dim: int, batch: int, length: int, num_branches: int = 0
) -> Case:
    """`batch` histories of `length` events on the model's device; `num_branches` outcomes, 0 = all."""
    like = model.start_token
    rng = np.random.default_rng(0)
    ones = torch.ones(batch, length, dtype=torch.int64)
    inputs = SequenceInputs(
        content=torch.from_numpy(rng.normal(size=(batch, length, content_dim))),
        item_types=torch.zeros_like(ones),
        actions=ones,
        surfaces=ones,
        timestamps_ms=NOW_MS + 60_000 * torch.arange(length).expand(batch, -1),
        lengths=torch.full((batch,), length),
        id_emb=torch.from_numpy(rng.normal(size=(batch, length, model.config.model.id_dim))),
    )
    outcomes = torch.arange(num_branches or len(vocabulary.outcomes)).expand(batch, -1)
    actions = torch.from_numpy(vocabulary.action_of_outcome.astype(np.int64))[outcomes]
    now = torch.full((batch,), NOW_MS + 60_000 * length)
    given = (outcomes, actions, torch.ones(batch, dtype=torch.int64), now)
    return Case(model, inputs.to(like.device, like.dtype), Branches(*(each.to(like.device) for each in given)))


def case_of(release: Release, batch: int, length: int, precision: str = "float32", **plan: object) -> Case:
    """A case of a release's network, computing as it does when it serves in `precision`.

    `plan`: what differs from its generation plan.
    """
    config = replace(
        release.config,
        model=replace(release.config.model, max_history=max(length, release.config.model.max_history)),
        generate=replace(release.config.generate, **plan),  # type: ignore[arg-type]
    )
    model = in_precision(model_of(release, config), precision)
    return random_case(model, release.vocabulary, release.content_dim, batch, length)


def model_of(release: Release, config: Config) -> PinRec:
    """The release's network with room for more positions than it was trained on, which are as the last one."""
    trained = PinRec.open(release)
    model = PinRec(config, release.vocabulary, release.content_dim, with_id_table=False).eval()
    state = trained.state_dict()
    places = state["decoder.positions.weight"]
    more = places[-1:].expand(max(0, config.max_positions - len(places)), -1)
    state["decoder.positions.weight"] = torch.cat([places, more])[: config.max_positions]
    model.load_state_dict(state)
    return model
