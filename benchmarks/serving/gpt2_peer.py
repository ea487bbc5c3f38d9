"""The same decoder by somebody else: Hugging Face's GPT-2 with our weights, its own cache, as it comes (eager).

It is fed the very tokens that our rollout makes, step by step, so that it does the same work and must give the same
hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pinrec_core.config import GenerateConfig
from pinrec_core.generate.rollout import Branches, branch_mask, conditions_of, decode, feed, new_cache, prefill
from pinrec_core.model.inputs import SequenceInputs
from pinrec_core.model.pinrec import PinRec


@dataclass(frozen=True)
class Fed:
    """What the decoder is given in a rollout: the prefix [B, P, width], then each step's tokens [B, A F, width]."""

    prefix: Tensor
    steps: list[Tensor]
    positions: list[Tensor]
    """int64 [B, A F] of each step"""
    masks: list[Tensor]
    """bool [B, 1, A F, slots so far] of each step"""
    lengths: Tensor


@torch.inference_mode()
def fed_in_rollout(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig) -> Fed:
    """Everything that our own rollout of these inputs gives to the decoder."""
    cache, conditions = new_cache(model, inputs, branches, plan), conditions_of(model, inputs, branches, plan)
    prefix = inputs.timestamps_ms.size(1) + 1
    block = prefill(model, inputs, conditions, cache)
    blocks = [block, *decode(model, block, inputs.lengths, conditions, plan, cache, prefix)]
    num_branches, fed = branches.outcomes.size(1), plan.num_fed
    mask = branch_mask(inputs.lengths, prefix, num_branches, fed, plan.num_steps)
    tokens, positions, masks = [], [], []
    for step in range(1, plan.num_steps):
        made, at = feed(model, blocks[step - 1], inputs.lengths, conditions.fed[min(step, 2) - 1], step)
        start = (step - 1) * num_branches * fed
        tokens.append(made)
        positions.append(at)
        masks.append(mask[:, :, start : start + num_branches * fed, : prefix + start + num_branches * fed])
    return Fed(model.prefix_tokens(inputs), tokens, positions, masks, inputs.lengths)


@torch.inference_mode()
def decoder_alone(model: PinRec, fed: Fed) -> None:
    """Our decoder on the same tokens, as the peer is run: without item embedder, conditions and output head."""
    slots = fed.prefix.size(1) + sum(tokens.size(1) for tokens in fed.steps)
    cache = model.decoder.new_cache(len(fed.lengths), slots, like=model.start_token)
    model.decoder.prefill(fed.prefix, fed.lengths, cache)
    start = fed.prefix.size(1)
    for tokens, positions, mask in zip(fed.steps, fed.positions, fed.masks, strict=True):
        model.decoder(tokens, positions, mask, cache, start)
        start += tokens.size(1)


class Gpt2Peer:
    """Hugging Face's GPT-2 with the weights of our decoder."""

    def __init__(self, model: PinRec, dtype: torch.dtype) -> None:
        from transformers import GPT2Config, GPT2Model

        ours, m = model.decoder, model.config.model
        config = GPT2Config(
            vocab_size=1,
            n_positions=ours.positions.num_embeddings,
            n_embd=m.hidden_dim,
            n_layer=m.num_layers,
            n_head=m.num_heads,
            activation_function="gelu_new",
        )
        self.model = GPT2Model(config).eval().to(model.start_token.device, dtype)
        state = {"wpe.weight": ours.positions.weight, "ln_f.weight": ours.norm.weight, "ln_f.bias": ours.norm.bias}
        names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
                 "mlp_norm": "ln_2", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}  # fmt: skip
        for number, block in enumerate(ours.blocks):
            for mine, theirs in names.items():
                part = block.get_submodule(mine)
                # Their linear layers keep weights as [inner, columns].
                is_linear = isinstance(part, torch.nn.Linear)
                state[f"h.{number}.{theirs}.weight"] = part.weight.t() if is_linear else part.weight
                state[f"h.{number}.{theirs}.bias"] = part.bias
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected
        assert set(missing) <= {"wte.weight"}, missing

    @torch.inference_mode()
    def run(self, fed: Fed) -> list[Tensor]:
        """Hidden states after the prefix, at each row's last token [B, 1, width], and of each step [B, A F, width]."""
        batch, dtype = len(fed.lengths), self.model.dtype
        out = self.model(inputs_embeds=fed.prefix.to(dtype), use_cache=True)
        hidden = [out.last_hidden_state[torch.arange(batch, device=fed.lengths.device), fed.lengths][:, None]]
        for tokens, positions, mask in zip(fed.steps, fed.positions, fed.masks, strict=True):
            bias = torch.zeros(mask.shape, dtype=dtype, device=tokens.device).masked_fill(~mask, torch.finfo(dtype).min)
            out = self.model(
                inputs_embeds=tokens.to(dtype),
                position_ids=positions,
                attention_mask=bias,
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            hidden.append(out.last_hidden_state)
        return hidden
