"""`tgo-trl export`: writes an adapter as other programs read it, or the base with the adapter merged into it."""

from dataclasses import dataclass, field
from typing import Any

from ...settings import as_dictionary, check_choice, check_finite, check_types, with_pipeline_class

COMFYUI, MERGED = "comfyui", "merged"
FORMATS = (COMFYUI, MERGED)
DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class ExportConfig:
    """What is exported, and how; see [`~tgo_trl.commands.export.run.export`].

    Attributes:
        adapter_name_or_path: folder of a training run, or Hub id of a LoRA adapter that one has pushed.
        format: `"comfyui"`, one file of each network, with the names that ComfyUI, and for UNets Kohya's scripts,
            have for its weights; or `"merged"`, the whole pipeline with the adapter in its
            weights, for whatever reads the base.
        output_dir: where it goes.
        model_name_or_path: Hub id or folder of the base; the one that the adapter's card names, if not set. Of the
            format `comfyui`, only its `model_index.json` is read.
        model_init_kwargs: keyword arguments for `DiffusionPipeline.from_pretrained`, such as `revision` and `variant`.
        pipeline_class: the diffusers class that the base is loaded under, where it is to be another one than its
            `model_index.json` names; the one that the adapter's run was set to, if not set.
        scale: how strongly the adapter acts, as the weight of diffusers' `set_adapters`; it goes into the weights.
        dtype: of the written weights, `"float32"`, `"float16"` or `"bfloat16"`. Adapters are trained in float32; a
            pipeline is merged in float32, whatever it is written in, and keeps in float32 what diffusers loads so.
    """

    adapter_name_or_path: str = field(metadata={"help": "Folder of a training run, or Hub id of a LoRA adapter."})
    format: str = field(default=COMFYUI, metadata={"help": "'comfyui' or 'merged'."})
    output_dir: str = field(default="exported", metadata={"help": "Folder of what is written."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the base. Defaults to what the adapter's card names."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `from_pretrained`, as JSON."}
    )
    pipeline_class: str | None = field(
        default=None, metadata={"help": "diffusers class to load the base under, if not the one that it names."}
    )
    scale: float = field(default=1.0, metadata={"help": "How strongly the adapter acts."})
    dtype: str = field(default="float32", metadata={"help": "Of the written weights: float32, float16 or bfloat16."})

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)
        check_choice("dtype", self.dtype, DTYPES)
        check_types(self, ("scale", "pipeline_class", "adapter_name_or_path", "output_dir", "model_name_or_path"))
        check_finite("scale", self.scale)
        self.model_init_kwargs = as_dictionary("model_init_kwargs", self.model_init_kwargs)
        with_pipeline_class(self.model_init_kwargs, self.pipeline_class)  # which checks them
        for name in ("torch_dtype", "dtype", "quantization_config"):
            if name in self.model_init_kwargs:
                raise ValueError(
                    f"`model_init_kwargs` has `{name}`, and an adapter is merged in float32. Leave it out, and set "
                    "`dtype`, that of the written weights."
                )
        if self.scale == 0:
            raise ValueError("`scale` is 0, at which the adapter does nothing. Use the base as it is.")
