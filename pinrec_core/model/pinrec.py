"""PinRec: item embedder + decoder + conditioned output head (paper, sections 4.1 and 4.2)."""

from __future__ import annotations

import math

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pinrec_core.config import Config
from pinrec_core.errors import InvalidRelease
from pinrec_core.model.decoder import Decoder
from pinrec_core.model.id_embedding import HashIdEmbedding
from pinrec_core.model.inputs import NUM_TIME_FEATURES, SequenceInputs, previous_timestamps, time_features
from pinrec_core.model.item_embedder import ItemEmbedder
from pinrec_core.model.mlp import start_as_sum
from pinrec_core.model.output_head import OutputHead
from pinrec_core.release import Release
from pinrec_core.schema import Vocabulary


class PinRec(nn.Module):
    """Variants uc, oc and mt_oc, by configuration.

    A served model holds no `id_embedding` (that is its own stage): build it with `with_id_table=False` and give
    `id_emb` in the inputs.
    """

    def __init__(self, config: Config, vocabulary: Vocabulary, content_dim: int, with_id_table: bool = True) -> None:
        super().__init__()
        model = config.model
        self.config = config
        self.id_embedding = HashIdEmbedding(model) if with_id_table else None
        self.item_embedder = ItemEmbedder(model, content_dim)
        self.item_token = nn.Linear(model.embedding_dim, model.hidden_dim)
        self.action_token = nn.Embedding(len(vocabulary.actions) + 1, model.hidden_dim)
        self.surface_token = nn.Embedding(len(vocabulary.surfaces) + 1, model.hidden_dim)
        self.time_token = nn.Linear(NUM_TIME_FEATURES, model.hidden_dim)
        self.start_token = nn.Parameter(torch.zeros(model.hidden_dim))
        self.decoder = Decoder(model, config.max_positions)
        num_outcomes, num_surfaces = len(vocabulary.outcomes), len(vocabulary.surfaces)
        self.output_head = OutputHead(model, num_outcomes, num_surfaces, config.targets.max_offset)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(config.train.initial_logit_scale)))
        for embedding in (self.action_token, self.surface_token):
            nn.init.normal_(embedding.weight, std=0.02)
        if model.skips:
            start_as_sum(self.item_token)

    @classmethod
    def open(cls, release: Release) -> PinRec:
        """The served model of a release. Raises InvalidRelease if its weights are damaged or do not fit its sizes."""
        model = cls(release.config, release.vocabulary, release.content_dim, with_id_table=False)
        try:
            model.load_state_dict(load_file(release.path / "decoder.safetensors"))
        except (RuntimeError, SafetensorError) as error:
            raise InvalidRelease(f"release {release.number}: decoder.safetensors does not fit config.json") from error
        return model.eval()

    def logit_scale(self) -> Tensor:
        """lambda of Eq. 2, at most `train.max_logit_scale`."""
        return self.log_logit_scale.exp().clamp(max=self.config.train.max_logit_scale)

    def item_vectors(self, item_ids: Tensor, content: Tensor, item_types: Tensor) -> Tensor:
        """Int64 [...], [..., D_sem], [...] -> item_emb [..., D], L2-normalized."""
        if self.id_embedding is None:
            raise ValueError("a served model has no ID table: embed items with id_emb from the embed_items stage")
        return self.embed_items(content, item_types, self.id_embedding(item_ids))

    def embed_items(self, content: Tensor, item_types: Tensor, id_emb: Tensor) -> Tensor:
        """[..., D_sem], [...], [..., D_id] -> item_emb [..., D], L2-normalized."""
        return self.item_embedder(content, item_types, id_emb)  # type: ignore[no-any-return]

    def tokens(self, item_emb: Tensor, actions: Tensor, surfaces: Tensor, times: Tensor) -> Tensor:
        """Item [..., D], action and surface codes [...], time features [..., F] -> decoder tokens [..., width]."""
        return self.item_token(item_emb) + self.token_context(actions, surfaces, times)  # type: ignore[no-any-return]

    def token_context(self, actions: Tensor, surfaces: Tensor, times: Tensor) -> Tensor:
        """A token's share that does not depend on its item: codes [...], time features [..., F] -> [..., width]."""
        x: Tensor = self.action_token(actions)
        if self.config.model.use_surface:
            x = x + self.surface_token(surfaces)
        if self.config.model.use_time:
            x = x + self.time_token(times.to(x.dtype))
        return x

    def prefix_tokens(self, inputs: SequenceInputs) -> Tensor:
        """The start token, then one token an event: [B, T + 1, width]."""
        if inputs.id_emb is not None:
            item_emb = self.embed_items(inputs.content, inputs.item_types, inputs.id_emb)
        else:
            assert inputs.item_ids is not None
            item_emb = self.item_vectors(inputs.item_ids, inputs.content, inputs.item_types)
        times = time_features(inputs.timestamps_ms, previous_timestamps(inputs.timestamps_ms))
        events = self.tokens(item_emb, inputs.actions, inputs.surfaces, times)  # [B, T, width]
        start = self.start_token.to(events.dtype).expand(events.size(0), 1, -1)
        return torch.cat([start, events], dim=1)

    def hidden_states(self, inputs: SequenceInputs) -> Tensor:
        """[B, T + 1, width]: index 0 follows the start token, index i follows event i."""
        tokens = self.prefix_tokens(inputs)
        return self.decoder(tokens, torch.arange(tokens.size(1), device=tokens.device))  # type: ignore[no-any-return]

    def predict(self, hidden: Tensor, outcome: Tensor, target_offset: Tensor, surface: Tensor) -> Tensor:
        """Eq. 1: hidden [..., width] and Phi (int64 [...], broadcast) -> generated embedding [..., D], unit length."""
        return self.output_head(hidden, outcome, target_offset, surface)  # type: ignore[no-any-return]
