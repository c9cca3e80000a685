"""aMUSEd: a U-ViT on the tokens of a VQ autoencoder, some of them masked, conditioned on CLIP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..media.types import Sample, Size
from ..precision import compute_dtype
from .base import adapter_header
from .base_tokens import MaskedTokenFamily, as_grid, token_logits


@dataclass(frozen=True)
class AmusedFamily(MaskedTokenFamily):
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
            pipeline(prompt, generator=generator, height=height, width=width, **kwargs).images[0]
            for prompt, generator in zip(prompts, generators, strict=True)
        ]

    def save_adapter(self, pipeline: DiffusionPipeline, adapter_name: str, folder: Path) -> None:
        """Writes the adapter for the network's own `load_lora_adapter`; the pipeline has no `load_lora_weights`."""
        pipeline.transformer.save_lora_adapter(folder, adapter_name)

    def load_adapter(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """Weights of an adapter that [`save_adapter`] wrote, by network, as `set_peft_model_state_dict` takes them."""
        return {"transformer": load_file(folder / LORA_WEIGHT_NAME_SAFE)}

    def load_adapter_configs(self, folder: Path) -> dict[str, dict[str, Any]]:
        """The configuration of an adapter that [`save_adapter`] wrote."""
        return {"transformer": adapter_header(folder / LORA_WEIGHT_NAME_SAFE)}

    def attach_adapter(self, pipeline: DiffusionPipeline, weights: str) -> None:
        """Loads the adapter into the network: the pipeline has no `load_lora_weights`."""
        pipeline.transformer.load_lora_adapter(weights, prefix=None, weight_name=LORA_WEIGHT_NAME_SAFE)

    def loading_code(self, pipeline: DiffusionPipeline, weights: str) -> str:
        """A call of the network's `load_lora_adapter`, which has to be told the file."""
        file = LORA_WEIGHT_NAME_SAFE
        return f'pipeline.transformer.load_lora_adapter("{weights}", prefix=None, weight_name="{file}")'

    def scaling_code(self, scale: float) -> str:
        """A call of the network's `set_adapters`."""
        return f"pipeline.transformer.set_adapters(pipeline.transformer.active_adapters(), {scale:g})"


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
