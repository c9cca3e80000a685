"""What the families share whose pipeline has no `load_lora_weights`: their network reads and writes adapters itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, _fetch_state_dict
from safetensors.torch import load_file
from torch import Tensor

from .base import Family, adapter_header, check_whole, num_factors


@dataclass(frozen=True)
class NetworkAdapterFamily(Family):
    """A family of one network, `transformer`, which has diffusers' mixin for adapters; put it before the other base."""

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
        """Loads the adapter into the network: the pipeline has no `load_lora_weights`.

        Raises:
            ValueError: if only some of it fits.
        """
        state, metadata = _fetch_state_dict(
            weights, weight_name=LORA_WEIGHT_NAME_SAFE, use_safetensors=True, local_files_only=None, cache_dir=None,
            force_download=False, proxies=None, token=None, revision=None, subfolder=None, user_agent={},
            allow_pickle=False,
        )  # fmt: skip
        is_named = all(key.startswith("transformer.") for key in state)  # as ComfyUI's are
        before, keys = num_factors(pipeline), list(state)
        prefix = "transformer" if is_named else None
        pipeline.transformer.load_lora_adapter(state, prefix=prefix, metadata=metadata)
        check_whole(pipeline, weights, keys, before)

    def loading_code(self, pipeline: DiffusionPipeline, weights: str) -> str:
        """A call of the network's `load_lora_adapter`, which has to be told the file."""
        file = LORA_WEIGHT_NAME_SAFE
        return f'pipeline.transformer.load_lora_adapter("{weights}", prefix=None, weight_name="{file}")'

    def scaling_code(self, scale: float) -> str:
        """A call of the network's `set_adapters`."""
        return f"pipeline.transformer.set_adapters(pipeline.transformer.active_adapters(), {scale:g})"
