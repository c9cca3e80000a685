"""`tgo-trl strength`: measures reward, variety and drift over scales of a trained adapter, and suggests one."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ...settings import check_finite, check_types, shown
from ..generate.config import GenerateConfig, SamplingSettings
from ..score.config import ScoreConfig
from ..settings import as_list, check_at_least

DEFAULT_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
MOST_SCALES = 50


@dataclass
class StrengthConfig(SamplingSettings):
    """What is measured, and within which bounds; see [`~tgo_trl.commands.strength.run.strength`].

    Attributes:
        adapter_name_or_path: folder of a training run, or Hub id of a LoRA adapter.
        prompts: as in [`~tgo_trl.commands.generate.config.GenerateConfig`]; two or more.
        rewards: names of reward models, or `path/to/file.py:function`. The first one decides; the others are shown.
        output_dir: where samples, scores, table and picture go. A run that was killed goes on there.
        model_name_or_path: Hub id or folder of the base; the one that the adapter's card names, if not set.
        scales: how strongly the adapter acts, as the weight of diffusers' `set_adapters`. 0, the base, is measured
            in any case.
        min_variety: of a scale that is suggested, as a share of the base's.
        max_drift: of a scale that is suggested, in every quartile of the time, as a multiple of the base's error.
        drift_dataset_name: rows with a prompt and an image or video, to measure the drift on instead of the base's own
            samples: real ones, or the good ones of the training set.
        drift_dataset_split: of those.
        image_column, video_column: of those.
        num_drift_rows: rows that the drift is measured on, spread evenly over all.
        reward_kwargs: for each reward, by its name as in `rewards`, keyword arguments.
        reward_batch_size: samples per call of a reward.
        write_card: put table, picture and code into the adapter's card: `README.md` in its folder, or, of one on the
            Hub, a copy of its card in `output_dir`.
        push_to_hub: upload card and picture, and nothing else, to the adapter's repository.
        hub_model_id: that repository; the Hub id of the adapter, or the name of its folder, if not set.
        hub_private_repo: whether a repository that does not exist yet is made private.
        hub_token: to upload with, instead of the one that is logged in. Never recorded.
        rows_per_shard: samples of each file, which are lost when a run is killed; 64, or 4 videos, if not set.
        disable_tqdm: show no progress bar.
    """

    adapter_name_or_path: str = field(metadata={"help": "Folder of a training run, or Hub id of a LoRA adapter."})
    prompts: str = field(metadata={"help": "File of prompts, or folder or Hub id of a data set that has them."})
    rewards: list[str] = field(
        metadata={"help": "Names of reward models, or `file.py:function`. The first one decides."}
    )
    output_dir: str = field(
        default="strength", metadata={"help": "Folder of samples, table and picture; a killed run goes on there."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the base. Defaults to what the adapter's card names."}
    )
    scales: list[float] = field(
        default_factory=lambda: list(DEFAULT_SCALES),
        metadata={"help": "How strongly the adapter acts; 0 is the base, and always measured."},
    )
    min_variety: float = field(default=0.8, metadata={"help": "Least variety of a suggestion; the base has 1."})
    max_drift: float = field(default=1.2, metadata={"help": "Most drift of a suggestion; the base has 1."})
    drift_dataset_name: str | None = field(
        default=None, metadata={"help": "Rows to measure drift on, in place of the base's own samples."}
    )
    drift_dataset_split: str = field(default="train", metadata={"help": "Split of the rows that drift is measured on."})
    image_column: str = field(default="image", metadata={"help": "Column of the images that drift is measured on."})
    video_column: str = field(default="video", metadata={"help": "Column of the videos that drift is measured on."})
    num_drift_rows: int = field(default=64, metadata={"help": "Rows that drift is measured on."})
    reward_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of each reward, by its name, as JSON."}
    )
    reward_batch_size: int = field(default=32, metadata={"help": "Samples per call of a reward."})
    write_card: bool = field(default=True, metadata={"help": "Put the result into the adapter's model card."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload card and picture to the adapter's repository."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to upload to. Defaults to the adapter's name."}
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make a new repository private."})
    hub_token: str | None = field(default=None, repr=False, metadata={"help": "Token to upload with."})
    rows_per_shard: int | None = field(default=None, metadata={"help": "Samples of each file: 64, or 4 videos."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})

    def __post_init__(self) -> None:
        for item in fields(self):
            check_finite(item.name, getattr(self, item.name))
        super().__post_init__()
        check_types(self, ["min_variety", "max_drift", "num_drift_rows", "write_card", "push_to_hub"])
        self.scales = _checked_scales(self.scales)
        if self.num_images_per_prompt < 2:
            raise ValueError(
                f"`num_images_per_prompt` is {self.num_images_per_prompt}; variety is the distance between two samples "
                "of the same prompt. Set it to 2 or more."
            )
        for name in ("num_drift_rows", "reward_batch_size", "rows_per_shard"):
            check_at_least(name, getattr(self, name))
        if not 0 <= self.min_variety <= 1:
            raise ValueError(f"`min_variety` is {self.min_variety}; it is a share of the base's variety: 0 to 1.")
        if not self.max_drift >= 1:
            raise ValueError(f"`max_drift` is {self.max_drift}; it must be at least 1, the base's own.")
        if self.push_to_hub and not self.write_card:
            raise ValueError("`push_to_hub` uploads the card, and `write_card` is false. Set one of them.")
        if not self.push_to_hub and self.hub_model_id is not None:
            raise ValueError("`hub_model_id` is set, but nothing is uploaded. Set `push_to_hub` too.")
        self.rewards = as_list(self.rewards) or []
        self.reward_kwargs = self.scoring("", "").reward_kwargs  # which checks them

    def generation(self, model: str, scale: float, output_dir: str) -> GenerateConfig:
        """How the samples of a scale are drawn."""
        shared = {item.name: getattr(self, item.name) for item in fields(SamplingSettings)}
        return GenerateConfig(
            model_name_or_path=model,
            prompts=self.prompts,
            output_dir=output_dir,
            adapter_name_or_path=self.adapter_name_or_path,
            adapter_scale=scale,
            rows_per_shard=self.rows_per_shard,
            disable_tqdm=self.disable_tqdm,
            **shared,
        )

    def scoring(self, dataset_name: str, output_dir: str) -> ScoreConfig:
        """How the samples of a scale are scored."""
        return ScoreConfig(
            dataset_name=dataset_name,
            output_dir=output_dir,
            rewards=self.rewards,
            reward_kwargs=self.reward_kwargs,
            batch_size=self.reward_batch_size,
            dataset_streaming=True,  # a second copy of the samples in the cache of `datasets` would serve nobody
            rows_per_shard=self.rows_per_shard,
            disable_tqdm=self.disable_tqdm,
        )


def _checked_scales(given: object) -> list[float]:
    """The scales in order, with 0, each once.

    Raises:
        ValueError: for what is no number of at least 0, or if there is none beside 0.
    """
    entries = as_list(given) or []
    scales = set()
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (int, float)):
            raise ValueError(f"`scales` has {shown(entry)}, which is no number. Write them as 0 0.5 1.")
        if not 0 <= entry < math.inf:
            raise ValueError(f"`scales` has {shown(entry)}; a scale is at least 0, where the base is.")
        scales.add(float(entry))
    if not scales - {0.0}:
        raise ValueError(
            f"`scales` is {shown(given)}, without any beside 0, the base: there would be nothing to compare. "
            "Write some, such as 0.5 1."
        )
    if len(scales) > MOST_SCALES:
        raise ValueError(f"`scales` has {len(scales)} entries; {MOST_SCALES} are the most.")
    return sorted({0.0, *scales})
