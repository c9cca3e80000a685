"""`tgo-trl generate`: samples images for prompts, as a data set."""

from dataclasses import dataclass, field
from typing import Any

from ...settings import as_dictionary, check_types, shown, with_pipeline_class
from ..settings import DatasetSettings, check_at_least

SOURCE_COLUMN = "source_image"
"""Of the data sets that are written, and of those that are read, if nothing else is set."""
OWN_ARGUMENTS = ("prompt", "generator", "num_images_per_prompt", "num_videos_per_prompt", "output_type", "return_dict")
"""Arguments of a pipeline's call that sampling sets itself."""


@dataclass(kw_only=True)
class SamplingSettings:
    """How a pipeline is loaded, and sampled from; what commands that sample have in common.

    Attributes:
        model_init_kwargs: keyword arguments for `DiffusionPipeline.from_pretrained`, such as `revision` and `variant`.
        pipeline_class: the diffusers class that it is loaded under, where it is to be another one than its
            `model_index.json` names; the one that an adapter's run was set to, if not set.
        dtype: of the pipeline; bfloat16 on a GPU that has it, else float32, if not set.
        enable_model_cpu_offload: keep each part of the pipeline on the CPU while another one works.
        prompt_column: of a source that has columns.
        source_column: of the source image of each prompt, or a list of them, where a pipeline makes images from others.
        dataset_config, dataset_split: of a data set of prompts.
        max_prompts: take the first ones only.
        num_images_per_prompt: images, or videos, of each prompt.
        seed: with the prompt and the image's index, it gives the seed of each image.
        num_inference_steps, guidance_scale: the pipeline's own if not set.
        negative_prompt: the same for all prompts.
        height, width: in pixels; what the pipeline was trained at if not set.
        num_frames: of each video; what the pipeline was trained at if not set.
        max_sequence_length: tokens of each prompt, for text encoders that take any number.
        call_kwargs: more arguments of the pipeline's call, such as `true_cfg_scale`.
        batch_size: images per call of the pipeline. It is recorded, since rounding depends on it.
    """

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `from_pretrained`, as JSON."}
    )
    pipeline_class: str | None = field(
        default=None, metadata={"help": "diffusers class to load the pipeline under, if not the one that it names."}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "float32, float16 or bfloat16. Defaults to bfloat16 on GPUs that have it."}
    )
    enable_model_cpu_offload: bool = field(
        default=False, metadata={"help": "Keep parts of the pipeline on the CPU while others work."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    source_column: str = field(
        default=SOURCE_COLUMN, metadata={"help": "Column of the images that a pipeline of edits makes others from."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set of prompts."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set of prompts."})
    max_prompts: int | None = field(default=None, metadata={"help": "Take the first prompts only."})
    num_images_per_prompt: int = field(default=4, metadata={"help": "Images of each prompt."})
    seed: int = field(
        default=42, metadata={"help": "Together with prompt and index, it gives each image its own seed."}
    )
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Denoising steps; the pipeline's own number if not set."}
    )
    guidance_scale: float | None = field(
        default=None, metadata={"help": "Guidance scale; the pipeline's own if not set."}
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "Negative prompt, the same for all prompts."})
    height: int | None = field(default=None, metadata={"help": "Height in pixels; the pipeline's own if not set."})
    width: int | None = field(default=None, metadata={"help": "Width in pixels; the pipeline's own if not set."})
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames of each video; the pipeline's own number if not set."}
    )
    max_sequence_length: int | None = field(
        default=None, metadata={"help": "Tokens that a prompt may have, of pipelines that let one choose."}
    )
    call_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More arguments of the pipeline's call, as JSON."}
    )
    batch_size: int = field(default=4, metadata={"help": "Images per call of the pipeline."})

    def __post_init__(self) -> None:
        for name in (
            "max_prompts", "num_images_per_prompt", "num_inference_steps", "height", "width", "num_frames",
            "max_sequence_length", "batch_size",
        ):  # fmt: skip
            check_at_least(name, getattr(self, name))
        if (self.height is None) != (self.width is None):
            given, missing = ("height", "width") if self.width is None else ("width", "height")
            raise ValueError(f"`{given}` is set and `{missing}` is not. Set both, or neither.")
        self.model_init_kwargs = as_dictionary("model_init_kwargs", self.model_init_kwargs)
        with_pipeline_class(self.model_init_kwargs, self.pipeline_class)  # which checks them
        self.call_kwargs = as_dictionary("call_kwargs", self.call_kwargs)
        settings = {name: name for name in ("num_inference_steps", "guidance_scale", "negative_prompt", "height",
                                            "width", "num_frames", "max_sequence_length")}  # fmt: skip
        settings["num_images_per_prompt"] = settings["num_videos_per_prompt"] = "num_images_per_prompt"
        for name in self.call_kwargs:
            if name in settings:
                raise ValueError(f"`call_kwargs` has {name!r}. Set `{settings[name]}` instead.")
            if name in OWN_ARGUMENTS:
                raise ValueError(f"`call_kwargs` has {name!r}, which is set for each image. Leave it out.")


@dataclass
class GenerateConfig(SamplingSettings, DatasetSettings):
    """What is sampled, and how; see [`~tgo_trl.commands.generate.run.generate`].

    Attributes:
        model_name_or_path: Hub id or folder of the pipeline.
        prompts: a text file with a prompt a line; a `.json`, `.jsonl`, `.csv` or `.tsv` file; or a data set, as
            [`~tgo_trl.storage.sources.open_dataset`] takes it. Repeated prompts are sampled once: ask for more images
            of each instead.
        output_dir: where the data set goes. A run that was killed goes on there.
        adapter_name_or_path: Hub id or folder of a LoRA adapter.
        adapter_scale: how strongly the adapter acts, as the weight of diffusers' `set_adapters`: 0 is the base.
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the pipeline."})
    prompts: str = field(metadata={"help": "File of prompts, or folder or Hub id of a data set that has them."})
    output_dir: str = field(metadata={"help": "Folder of the data set; a run that was killed goes on there."})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder of a LoRA adapter."})
    adapter_scale: float = field(default=1.0, metadata={"help": "How strongly the adapter acts; 0 is the base."})

    def __post_init__(self) -> None:
        DatasetSettings.__post_init__(self)
        SamplingSettings.__post_init__(self)
        check_types(self, ["adapter_scale", "pipeline_class"])
        if self.adapter_scale != 1 and self.adapter_name_or_path is None:
            raise ValueError(
                f"`adapter_scale` is {shown(self.adapter_scale)}, but there is no adapter. Set `adapter_name_or_path`."
            )
