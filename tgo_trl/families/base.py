"""What a model family must say about itself: how its parts are called. One file per family, no training logic."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..processes import Process


class Family(ABC):
    """How the networks of one kind of pipeline are encoded for, called, sampled and saved.

    Objects of this class hold no state; the pipeline comes in as an argument. For a pipeline that the table of families
    does not know, pass an object of your own subclass as `TGOTrainer(..., family=...)`.
    """

    task: str = "text-to-image"
    """The Hub's pipeline tag."""
    network_names: tuple[str, ...]
    """The pipeline's components that are trained."""
    image_encoders: tuple[str, ...]
    """The frozen components that encode images."""
    prompt_encoders: tuple[str, ...]
    """The frozen components that encode prompts, tokenizers included."""
    lora_target_modules: tuple[str, ...]
    """The modules that get an adapter unless the user names others."""

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Raises a ValueError if this pipeline cannot be trained, saying why."""
        for name in (*self.network_names, *self.image_encoders, *self.prompt_encoders):
            if getattr(pipeline, name, None) is None:
                raise ValueError(
                    f"The pipeline has no `{name}`, which `{type(self).__name__}` needs to train it. Load the whole "
                    "pipeline."
                )

    @abstractmethod
    def process(self, pipeline: DiffusionPipeline) -> Process:
        """The noise process that the network was trained with."""

    @abstractmethod
    def default_resolution(self, pipeline: DiffusionPipeline) -> int:
        """Side of the square images that the pipeline was trained on, in pixels."""

    @abstractmethod
    def resolution_multiple(self, pipeline: DiffusionPipeline) -> int:
        """The number of pixels that image sides must be a multiple of."""

    @abstractmethod
    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """Everything that is needed of the images, to be cached.

        Args:
            pipeline: its image encoders are on the device of `pixels`.
            pixels: float32 `[B, 3, H, W]` in [-1, 1].

        Returns:
            Tensors `[B, ...]`, a pure function of the pixels.
        """

    @abstractmethod
    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Everything that the network takes of the prompts, to be cached: tensors `[B, ...]` of equal shapes."""

    @abstractmethod
    def latent_shape(self, image: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Shape of one clean sample, from a batch of what [`encode_images`] returned."""

    @abstractmethod
    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """Clean samples as the network sees them, scaled.

        Args:
            pipeline: for scaling factors in its configuration only; its encoders may be elsewhere.
            image: what [`encode_images`] returned, `[B, ...]`.
            posterior_noise: float32 `[B, ...]` of the latent shape, standard normal.

        Returns:
            float32 `[B, ...]`.
        """

    @abstractmethod
    def predict(
        self, networks: Mapping[str, nn.Module], corrupted: Tensor, time: Tensor, prompt: Mapping[str, Tensor]
    ) -> Tensor:
        """The network's prediction in its native target, `[B, ...]`.

        Args:
            networks: the trained components by name.
            corrupted: float32 `[B, ...]`.
            time: `[B]`, from the process.
            prompt: what [`encode_prompts`] returned, `[B, ...]`.
        """

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], resolution: int,
        **kwargs: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """One image per prompt, each from its own generator."""
        return list(pipeline(list(prompts), generator=generators, height=resolution, width=resolution, **kwargs).images)

    def save_adapter(self, pipeline: DiffusionPipeline, adapter_name: str, folder: Path) -> None:
        """Writes the adapter for the pipeline's own `load_lora_weights(folder)`, rank and alpha included."""
        layers: dict[str, Any] = {}
        for name in self.network_names:
            network = getattr(pipeline, name)
            layers[f"{name}_lora_layers"] = adapter_state_dict(network, adapter_name)
            layers[f"{name}_lora_adapter_metadata"] = network.peft_config[adapter_name].to_dict()
        type(pipeline).save_lora_weights(folder, **layers)

    def load_adapter(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """Weights of an adapter that [`save_adapter`] wrote, by network, as `set_peft_model_state_dict` takes them."""
        state = load_file(folder / LORA_WEIGHT_NAME_SAFE)
        return {
            name: {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            for name in self.network_names
        }


def adapter_state_dict(network: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """An adapter's weights, without its name in the keys."""
    return dict(get_peft_model_state_dict(network, adapter_name=adapter_name))
