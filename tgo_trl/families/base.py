"""What a model family must say about itself: how its parts are called. One file per family, no training logic."""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..media.types import Sample, Size, VideoFormat
from ..noise import NoiseProcess

T = TypeVar("T")

FEW_STEPS = frozenset({"flash", "lcm", "lightning", "schnell", "turbo"})
"""Words in the names of pipelines that were distilled to draw in few steps."""


@dataclass(frozen=True)
class Family(ABC):
    """How the networks of one kind of pipeline are encoded for, called, sampled and saved.

    A subclass is a frozen dataclass whose fields are the settings that this kind of pipeline has, named as in
    [`~tgo_trl.TGOConfig`], which sets them. Objects hold nothing else: the pipeline comes in as an argument.
    For a pipeline that the table of families does not know, pass an object of your own subclass as
    `TGOTrainer(..., family=...)`.
    """

    encoding_version: ClassVar[int] = 1
    """To be raised, by whoever changes what its `encode_images` or `encode_prompts` return, so that what was cached
    before is encoded anew. Versions of all bases count. Nothing else about the code does: it may be moved and
    formatted."""
    task: ClassVar[str] = "text-to-image"
    """The Hub's pipeline tag."""
    network_names: ClassVar[tuple[str, ...]]
    """The pipeline's components that are trained."""
    image_encoders: ClassVar[tuple[str, ...]]
    """The frozen components that encode images or videos."""
    prompt_encoders: ClassVar[tuple[str, ...]]
    """The frozen components that encode prompts, tokenizers included."""
    optional_components: ClassVar[tuple[str, ...]] = ()
    """Those of the components above that a pipeline may lack."""
    training_settings: ClassVar[tuple[str, ...]] = ()
    """Those fields that change nothing in what is encoded."""
    lora_target_modules: ClassVar[tuple[str, ...]]
    """The modules that get an adapter unless the user names others."""
    reads_lengths: ClassVar[bool] = False
    """Whether [`predict`] wants to be told how many tokens of each prompt its `mask` keeps: `lengths`, a tuple."""
    comfyui_prefix: ClassVar[str | None] = None
    """What ComfyUI's name of a module begins with. Behind one that ends in an underscore, so do the dots of the rest
    become underscores, as in Kohya's scripts. None for a kind of pipeline that ComfyUI does not know, or knows with
    other modules than diffusers."""
    comfyui_lacks: ClassVar[tuple[str, ...]] = ()
    """How modules begin that ComfyUI has no names for, and would pass over."""
    reads_posterior_noise: ClassVar[bool] = True
    """Whether [`clean`] wants its `posterior_noise`; it gets `[B, 0]` if not, and nothing is drawn for it."""
    ignores_padding: ClassVar[bool] = False
    """Whether the networks see nothing of `embeds` where `mask` is 0: it is then not kept on disk, and read as zeros.
    Zeros that prompts end in by themselves are not kept anyway."""
    most_sources: ClassVar[int] = 0
    """How many images each sample is made from, at most: 0 for a family that reads prompts alone; others need one at
    least, and are [`~tgo_trl.families.base_sources.SourceFamily`]."""
    prompts_see_sources: ClassVar[bool] = False
    """Whether prompts are encoded beside their sources, by [`encode_edits`]."""
    waits_for_device: ClassVar[bool] = False
    """Whether a network reads numbers of the device in each call, of its inputs alone."""
    undistilled: ClassVar[str | None] = None
    """What to train in place of few-step versions of this family, by its name on the Hub; None if there are several."""
    few_step_words: ClassVar[frozenset[str]] = FEW_STEPS
    """Words in the names of versions of this family that were distilled to draw in few steps."""
    translated_arguments: ClassVar[frozenset[str]] = frozenset()
    """What [`call_options`] takes that the pipeline's call may have another name for."""
    has_sampler: ClassVar[bool] = False
    """Whether samples can be drawn with gradient, as the pipeline itself draws them: with the `decode`, `schedule`,
    `guidance` and `encode_nothing` of a [`~tgo_trl.families.base_latents.LatentFamily`]."""

    @classmethod
    def load(
        cls, model: str, *, pipeline_class: type[DiffusionPipeline] = DiffusionPipeline, **kwargs: Any
    ) -> DiffusionPipeline:
        """The pipeline of a Hub id or folder; takes the keyword arguments of `DiffusionPipeline.from_pretrained`.

        Args:
            model: Hub id or folder.
            pipeline_class: that it is loaded under, where another one is set than the repository names.
            kwargs: of `from_pretrained`.
        """
        return pipeline_class.from_pretrained(model, **kwargs)

    @property
    def video_format(self) -> VideoFormat | None:
        """What a training video is cut to; None for a family of images."""
        return self.clip

    @property
    def medium(self) -> str:
        """`"image"` or `"video"`, what it is trained on."""
        return "image" if self.video_format is None else "video"

    @property
    def clip(self) -> VideoFormat | None:
        """The older name of [`video_format`], by which families say what it is."""
        return None

    def fitted_to(self, pipeline: DiffusionPipeline) -> "Family":
        """The same, with those settings that were left out and that differ between models of its kind."""
        return self

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Raises a ValueError if this pipeline cannot be trained, saying why."""
        names = (*self.network_names, *self.image_encoders, *self.prompt_encoders)
        for name in names:
            if name not in self.optional_components and getattr(pipeline, name, None) is None:
                raise ValueError(
                    f"The pipeline has no `{name}`, which `{type(self).__name__}` needs to train it. Load the whole "
                    "pipeline."
                )
        length, longest = self.prompt_length(pipeline).get("max_sequence_length", 0), self.longest_prompt(pipeline)
        if longest is not None and length > longest:
            raise ValueError(
                f"`max_sequence_length` is {length}, but this `{type(pipeline).__name__}` takes prompts of {longest} "
                f"tokens at most. Set it to {longest} or less."
            )

    def step_distilled_from(self, pipeline: DiffusionPipeline) -> str | None:
        """What to train in place of a pipeline that was distilled to few steps; None for one that does not say so.

        By its name, since most pipelines say it nowhere else. Names of models, as they stand in a warning.
        """
        words = re.split(r"[^a-z]+", Path(str(pipeline.config.get("_name_or_path"))).name.lower())
        if not self.few_step_words & set(words):
            return None
        return "the model that it was distilled from" if self.undistilled is None else f"`{self.undistilled}`"

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int | None:
        """Tokens of a prompt that the pipeline takes at most, where it says so."""
        return None

    def networks(self, pipeline: DiffusionPipeline) -> dict[str, Any]:
        """The trained components that this pipeline has, by name."""
        return present(pipeline, self.network_names)

    def left_out(self, pipeline: DiffusionPipeline) -> list[str]:
        """The optional components that this pipeline lacks and that `from_pretrained` has to be told so."""
        forgiven = set(pipeline._optional_components)
        return [name for name in self.optional_components if name not in forgiven and not getattr(pipeline, name, None)]

    @abstractmethod
    def process(self, pipeline: DiffusionPipeline) -> NoiseProcess:
        """The noise process that the networks were trained with."""

    @abstractmethod
    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """Height and width that the pipeline was trained at, in pixels."""

    @abstractmethod
    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """The number of pixels that height and width must be a multiple of."""

    def check_size(self, pipeline: DiffusionPipeline, size: Size) -> None:
        """Raises a ValueError for a height and width in pixels, such multiples, that the pipeline cannot draw."""
        return

    def kept_size(self, pipeline: DiffusionPipeline, size: Size) -> Size:
        """A size near one of such multiples that [`check_size`] lets pass: the same, if nothing else is known."""
        return size

    @abstractmethod
    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Everything that is needed of the images or videos, to be cached.

        Args:
            pipeline: its image encoders are on the device of `pixels`.
            pixels: float32 `[B, 3, H, W]`, of videos `[B, 3, F, H, W]`, in [-1, 1].
            geometry: int64 `[B, 4]`, pixels: height and width of the original, and the top and left of the crop in the
                original after it was resized. For networks that are told.

        Returns:
            Tensors `[B, ...]`, a pure function of the arguments.
        """

    @abstractmethod
    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Everything that the networks take of the prompts, to be cached: tensors `[B, ...]`.

        Their shapes do not depend on the prompts, and their names differ from those of [`encode_images`].
        """

    def check_prompts(self, pipeline: DiffusionPipeline, prompts: Iterable[str], num_sources: int = 0) -> None:
        """Raises a ValueError for a prompt that will not be encoded, as far as tokenizers tell.

        Args:
            pipeline: of which no network is called.
            prompts: in any number.
            num_sources: source images that each comes with.
        """
        return

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """Everything that the networks take of source images, to be cached, if [`most_sources`] is not 0.

        Args:
            pipeline: its image encoders are on the device of `pixels`.
            pixels: float32 `[B, S, 3, H, W]` in [-1, 1], `S` sources of each row, of the size of the sample.

        Returns:
            Tensors `[B, ...]`, whose names differ from those of [`encode_images`] and [`encode_prompts`].
        """
        raise NotImplementedError

    def encode_edits(self, pipeline: DiffusionPipeline, prompts: list[str], pixels: Tensor) -> dict[str, Tensor]:
        """As [`encode_prompts`], of prompts with sources `[B, S, 3, H, W]`, if [`prompts_see_sources`]."""
        raise NotImplementedError

    @abstractmethod
    def latent_shape(self, image: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Shape of one clean sample, from a batch of what [`encode_images`] returned."""

    @abstractmethod
    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """Clean samples as the network sees them, scaled.

        Args:
            pipeline: for scaling factors in its configuration only; its encoders may be elsewhere.
            image: what [`encode_images`] returned, `[B, ...]`.
            posterior_noise: float32 `[B, ...]` of the latent shape, standard normal, if it [`reads_posterior_noise`].

        Returns:
            float32 `[B, ...]`, or int64 tokens `[B, L]`.
        """

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What [`predict`] gets beside sample and time: what was encoded, unless the configuration has a say too.

        What depends on the pipeline's configuration belongs here, and not into what is cached.

        Args:
            pipeline: for its configuration only; its encoders may be elsewhere.
            image: what [`encode_images`] returned, `[B, ...]`.
            prompt: what [`encode_prompts`] returned, `[B, ...]`.
        """
        return {**image, **prompt}

    def host_conditions(self, pipeline: DiffusionPipeline, time: Tensor) -> dict[str, tuple[Any, ...]]:
        """What [`predict`] has to know of the times before it can call anything, by name, one of each row.

        To ask the device would wait for all that it has yet to do. So would it for the lengths of prompts, which
        [`predict`] is told as `lengths` where rows are read from disk, if the family [`reads_lengths`].

        Args:
            pipeline: for its configuration only.
            time: `[B]`, on the CPU.
        """
        return {}

    @abstractmethod
    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """The network's prediction in its native target, of the shape that the process compares, `[B, ...]`.

        Args:
            networks: the trained components by name, as [`networks`] gives them.
            corrupted: from the process, `[B, ...]`.
            time: `[B]`, from the process.
            conditions: what [`conditions`] returned, `[B, ...]`, and perhaps what [`host_conditions`] did.
        """

    def unread_parts(self, network: Any) -> list[str]:
        """Names of the modules and weights that nothing reads, which no training can change.

        They are left frozen with all weights trained, since distributed training waits for the gradient of every
        trained weight, and without an adapter where all linear layers get one.
        """
        return []

    def enable_gradient_checkpointing(self, network: Any, every_n_layers: int = 1) -> None:
        """Turns on the network's own gradient checkpointing, of the non-reentrant kind.

        Args:
            network: one of those that are trained.
            every_n_layers: of each kind of block, which are recomputed: the first, and every so many after it.

        Raises:
            ValueError: if it has none.
        """
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise ValueError(
                f"`{type(network).__name__}` has no gradient checkpointing. Set `gradient_checkpointing=False`."
            )
        network.enable_gradient_checkpointing(None if every_n_layers == 1 else _checkpointing_some(every_n_layers))

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One image per prompt, each from its own generator, with prompts as long as in training."""
        call = self.call_options(pipeline, size, **kwargs)
        return list(pipeline(prompt=list(prompts), generator=generators, **call).images)

    @classmethod  # noqa: B027 (most have nothing to refuse)
    def check_call(cls, pipeline_class: str, call: Mapping[str, Any]) -> None:
        """Raises a ValueError for an argument that pipelines of its kind take in another way, saying in which.

        Before anything is loaded: whatever else a call does not take, its signature tells.

        Args:
            pipeline_class: the class that is called, for messages.
            call: arguments by name; None is one that is left out.
        """

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """What the pipeline is called with for a sample of a size, beside prompt and generator, with `kwargs` in it."""
        frames = {} if self.video_format is None else {"num_frames": self.video_format.num_frames}
        return {"height": size[0], "width": size[1], **frames, **self.prompt_length(pipeline), **kwargs}

    def prompt_length(self, pipeline: DiffusionPipeline) -> dict[str, int]:
        """`max_sequence_length` for a call of the pipeline; empty if it has no such argument."""
        length = getattr(self, "max_sequence_length", None)
        return {} if length is None else {"max_sequence_length": length}

    def save_adapter(self, pipeline: DiffusionPipeline, adapter_name: str, folder: Path) -> None:
        """Writes the adapter for the pipeline's own `load_lora_weights(folder)`, rank and alpha included."""
        layers: dict[str, Any] = {}
        for name, network in self.networks(pipeline).items():
            layers[f"{name}_lora_layers"] = adapter_state_dict(network, adapter_name)
            layers[f"{name}_lora_adapter_metadata"] = adapter_metadata(network, adapter_name)
        type(pipeline).save_lora_weights(folder, **layers)

    def load_adapter(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """Weights of an adapter that [`save_adapter`] wrote, by network, as `set_peft_model_state_dict` takes them."""
        state = load_file(folder / LORA_WEIGHT_NAME_SAFE)
        return {name: part for name in self.network_names if (part := strip_prefix(state, f"{name}."))}

    def load_adapter_configs(self, folder: Path) -> dict[str, dict[str, Any]]:
        """The configuration of an adapter that [`save_adapter`] wrote, by network, as [`adapter_metadata`] gave it."""
        header = adapter_header(folder / LORA_WEIGHT_NAME_SAFE)
        return {name: strip_prefix(header, f"{name}.") for name in self.network_names}

    def attach_adapter(self, pipeline: DiffusionPipeline, weights: str) -> None:
        """Loads an adapter from a folder or Hub id into a pipeline, as a user of stock diffusers does.

        Raises:
            ValueError: if only some of it fits.
        """
        load_whole_adapter(pipeline, weights)

    def comfyui_module(self, module: str) -> str | None:
        """What ComfyUI calls a module of a network, behind [`comfyui_prefix`]; None if it has none such."""
        return None if module.startswith(self.comfyui_lacks) else module

    def loading_code(self, pipeline: DiffusionPipeline, weights: str) -> str:
        """What [`attach_adapter`] does, as Python with the variable `pipeline`, for the model card."""
        return f'pipeline.load_lora_weights("{weights}")'

    def scaling_code(self, scale: float) -> str:
        """What makes an adapter that [`loading_code`] loaded act with a scale, likewise."""
        return f"pipeline.set_adapters(pipeline.get_active_adapters(), {scale:g})"


OF_ROWS = ("latents", "negative_prompt")
"""What a call of a pipeline may have one of for each prompt."""


def of_row(kwargs: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Arguments for a call of a pipeline with one of the prompts: of what there is one of for each, that of a row."""
    return {
        name: value[row : row + 1] if name in OF_ROWS and isinstance(value, (list, tuple, Tensor)) else value
        for name, value in kwargs.items()
    }


_FACTOR = re.compile(r"lora[._](A|B|up|down|embedding_A|embedding_B)\b")
"""A factor of an adapter, in the names of the formats that diffusers reads."""


def load_whole_adapter(pipeline: Any, weights: str, **options: Any) -> None:
    """Calls the pipeline's `load_lora_weights`, which itself passes over weights that fit nothing.

    Raises:
        ValueError: if it passed over some of them, and not over all.
    """
    before = num_factors(pipeline)
    pipeline.load_lora_weights(weights, **options)
    if hasattr(pipeline, "unet"):
        options = {**options, "unet_config": pipeline.unet.config}
    options.pop("load_into_transformer_2", None)
    state = pipeline.lora_state_dict(weights, **options)
    check_whole(pipeline, weights, state[0] if isinstance(state, tuple) else state, before)


def check_whole(pipeline: DiffusionPipeline, weights: str, keys: Iterable[str], before: int) -> None:
    """Raises a ValueError if some of an adapter was passed over, and not all.

    Args:
        pipeline: with the adapter.
        weights: what it was loaded from.
        keys: of the weights there.
        before: [`num_factors`] of the pipeline without it.
    """
    loaded = num_factors(pipeline) - before
    given = sum(_FACTOR.search(key) is not None for key in keys)
    if 0 < loaded < given:
        raise ValueError(
            f"Of the adapter {weights!r}, {given - loaded} of {given} weights fit nothing in this "
            f"`{type(pipeline).__name__}`. It was trained for another network; load the one that its card names."
        )


def _checkpointing_some(every: int) -> Callable[..., Any]:
    """What diffusers calls a block by: the first of each kind, and every so many after it, are recomputed.

    A UNet has blocks of convolutions and of attention in turns, so that each kind is counted for itself.
    """
    places: dict[nn.Module, int] = {}
    numbers: Counter[type] = Counter()

    def call(block: nn.Module, *args: Any) -> Any:
        if block not in places:  # as they come in the first pass, which is as they come in each
            places[block] = numbers[type(block)]
            numbers[type(block)] += 1
        if places[block] % every:
            return block(*args)
        return checkpoint(block.__call__, *args, use_reentrant=False)

    return call


def num_factors(pipeline: DiffusionPipeline) -> int:
    """How many factors of adapters the networks of a pipeline have."""
    modules = (part for part in pipeline.components.values() if isinstance(part, nn.Module))
    return sum(_FACTOR.search(name) is not None for module in modules for name, _ in module.named_parameters())


def present(pipeline: DiffusionPipeline, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named components that the pipeline has."""
    found = {name: getattr(pipeline, name, None) for name in names}
    return {name: component for name, component in found.items() if component is not None}


def class_name(pipeline: DiffusionPipeline) -> str:
    """The class of a pipeline, also if it is called through one that gives each call its negative prompt."""
    return type(getattr(pipeline, "_pipeline", pipeline)).__name__


def default_square(pipeline: DiffusionPipeline, network: str) -> Size:
    """The pipeline's `default_sample_size`, or else the named network's `sample_size`, as a square in pixels."""
    has_own = hasattr(pipeline, "default_sample_size")
    latents = pipeline.default_sample_size if has_own else getattr(pipeline, network).config.sample_size
    side = int(latents * pipeline.vae_scale_factor)
    return side, side


def parts_of_last_block(network: Any, names: Sequence[str]) -> list[str]:
    """The full names of those of the named modules that the last of `transformer_blocks` has."""
    last = f"transformer_blocks.{len(network.transformer_blocks) - 1}"
    known = {name for name, _ in network.named_modules()}
    return [f"{last}.{name}" for name in names if f"{last}.{name}" in known]


def known_lengths(conditions: Mapping[str, Any]) -> Sequence[int]:
    """Tokens of each prompt, of a `mask` `[B, tokens]`: as told with it, or else asked of the device."""
    told: tuple[int, ...] | None = conditions.get("lengths")
    return conditions["mask"].sum(1).tolist() if told is None else told


def adapter_state_dict(network: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """An adapter's weights, without its name in the keys."""
    return dict(get_peft_model_state_dict(network, adapter_name=adapter_name))


def adapter_metadata(network: Any, adapter_name: str) -> dict[str, Any]:
    """An adapter's configuration, the same in every process: sets have no order of their own."""
    values = network.peft_config[adapter_name].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def adapter_header(path: Path) -> dict[str, Any]:
    """What diffusers notes of an adapter's configuration in the header of its file; empty if it does not.

    Raises:
        ValueError: if it is no configuration.
    """
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"The header of {str(path)!r} holds no configuration of an adapter: it is damaged.")
    return header


def strip_prefix(state: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def posterior(distribution: Any) -> dict[str, Tensor]:
    """Mean and standard deviation of an autoencoder's posterior, float32 `[B, ...]` each."""
    return {"mean": distribution.mean.float(), "std": distribution.std.float()}


def posterior_sample(image: Mapping[str, Tensor], noise: Tensor) -> Tensor:
    """`mean + std * noise`, float32 `[B, ...]`."""
    return image["mean"] + image["std"] * noise
