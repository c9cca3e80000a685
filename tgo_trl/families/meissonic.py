"""Meissonic and Monetico: FLUX's blocks on the tokens of a VQ autoencoder, some of them masked, conditioned on CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from ..models import MeissonicPipeline
from ..precision import compute_dtype
from .base_tokens import MaskedTokenFamily, as_grid, token_logits


@dataclass(frozen=True)
class MeissonicFamily(MaskedTokenFamily):
    """[`~tgo_trl.models.MeissonicPipeline`], of 1024 pixels, or of 512 (Monetico)."""

    lora_target_modules = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip

    @classmethod
    def load(cls, model: str, **kwargs: Any) -> DiffusionPipeline:
        """The published repositories name classes that diffusers does not have, and so cannot load."""
        return MeissonicPipeline.from_pretrained(model, **kwargs)

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """CLIP's last hidden states but one `[B, 77, features]`, and its projected pooled one `[B, features]`."""
        embeds, pooled = pipeline.encode_prompt(prompts, pipeline.text_encoder.device)
        return {"embeds": embeds, "pooled": pooled}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits of each token, `[B, L, V]`; the network is told the share of masked tokens, times 1000."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        logits = transformer(
            as_grid(corrupted, conditions),
            encoder_hidden_states=conditions["embeds"].to(dtype),
            pooled_projections=conditions["pooled"].to(dtype),
            timestep=time * 1000,
            micro_conds=conditions["micro_conds"],
        )
        return token_logits(logits)
