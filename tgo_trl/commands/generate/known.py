"""What is known of the pipeline that samples, before anything of it is loaded."""

from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from ...families import Family
from ...policy.index import Index, find_family_class, find_index, loaded_class, readable_index
from ...policy.pipeline_class import chosen_class
from ...settings import with_pipeline_class
from .config import GenerateConfig


@dataclass(frozen=True)
class Known:
    """What settings and index say of a pipeline.

    Attributes:
        init_kwargs: that it is loaded with: under the class that is set, or that the adapter's run was set to.
        index: None of a single file, of a pipeline that is there, and of what cannot be had.
        kind: the family's class; None of a single file, and of what cannot be had.
        pipeline_class: that it is loaded as; None likewise, and of a class that is not known here.
    """

    init_kwargs: dict[str, Any]
    index: Index | None
    kind: type[Family] | None
    pipeline_class: type[DiffusionPipeline] | None


def look_up(
    config: GenerateConfig, pipeline: DiffusionPipeline | None = None, family: Family | None = None,
    must_exist: bool = False,
) -> Known:  # fmt: skip
    """What is known of the pipeline of the settings; of the Hub, this asks for its index and the adapter's record.

    Args:
        config: what is sampled, and how.
        pipeline: taken instead of the one that `config` names.
        family: given by the user, or None to look it up.
        must_exist: False where loading follows, which says more of what is wrong.

    Raises:
        OSError: if `must_exist`, and there is no such pipeline.
        ValueError: if no family is known.
    """
    assert not isinstance(config.model_init_kwargs, str)
    name = chosen_class(config.pipeline_class, config.adapter_name_or_path)
    init_kwargs = with_pipeline_class(config.model_init_kwargs, name) or {}
    model: Any = config.model_name_or_path if pipeline is None else pipeline
    index = (find_index if must_exist else readable_index)(model, init_kwargs)
    kind = find_family_class(model, init_kwargs, family, index)
    return Known(init_kwargs, index, kind, loaded_class(model, init_kwargs, index, kind))
