"""aMUSEd: a U-ViT on the tokens of a VQ autoencoder, some of them masked, conditioned on CLIP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..media.types import Sample, Size
from ..precision import compute_dtype
from .base import of_row
from .base_adapters import NetworkAdapterFamily
from .base_tokens import MaskedTokenFamily, as_grid, token_logits


@dataclass(frozen=True)
class AmusedFamily(NetworkAdapterFamily, MaskedTokenFamily):
    """`AmusedPipeline`, of 256 or 512 pixels."""

    lora_target_modules = ("to_q", "to_k", "to_v")

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """CLIP's last hidden states but one `[B, tokens, features]`, and its projected pooled one `[B, features]`.

        The pipeline has no method for it.
        """
        encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
        length = tokenizer.model_max_length
        ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        outputs = encoder(ids.input_ids.to(encoder.device), output_hidden_states=True)
        return {"embeds": outputs.hidden_states[-2], "pooled": outputs.text_embeds}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits of each token, `[B, L, V]`; the network is not told the time."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        logits = transformer(
            as_grid(corrupted, conditions),
            encoder_hidden_states=conditions["embeds"].to(dtype),
            pooled_text_emb=conditions["pooled"].to(dtype),
            micro_conds=conditions["micro_conds"],
        )
        return token_logits(logits)

    def enable_gradient_checkpointing(self, network: Any, every_n_layers: int = 1) -> None:
        """Checkpoints blocks, which the network's own method fails to do.

        It hands `torch.utils.checkpoint` a function without the keyword arguments that the blocks are called with
        (https://github.com/huggingface/diffusers/issues/11214).
        """
        parts = (network.down_block, network.up_block)
        kinds = (
            [*network.transformer_layers],
            [block for part in parts for block in part.res_blocks],
            [block for part in parts for block in part.attention_blocks],
        )
        for block in (block for blocks in kinds for block in blocks[::every_n_layers]):
            if not isinstance(block.forward, partial):  # by an earlier call
                block.forward = partial(_checkpointed, block.forward)

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One image per prompt, one after the other: the scheduler takes a single generator."""
        height, width = size
        return [
            pipeline([prompt], generator=generator, height=height, width=width, **of_row(kwargs, i)).images[0]
            for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True))
        ]


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
