"""`tgo-trl rounds`: what is drawn, scored and measured in each round; how it is trained on is in `TGOConfig`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ...messages.values import did_you_mean
from ...settings import as_dictionary, check_choice, check_finite, check_types, shown
from ..evaluate.config import EvaluateConfig
from ..generate.config import GenerateConfig, SamplingSettings
from ..score.config import ScoreConfig
from ..settings import as_list, check_at_least

BASE = "base"
REFERENCES = ("previous", BASE)
OF_GENERATE = (
    "dtype", "enable_model_cpu_offload", "prompt_column", "source_column", "dataset_config", "dataset_split",
    "max_prompts", "negative_prompt", "call_kwargs", "rows_per_shard",
)  # fmt: skip
"""What `generate_settings` may hold."""
OF_SCORE = (
    "reward_kwargs", "score_columns", "ensemble_weights", "ensemble_normalization", "ensemble_column", "num_frames",
    "fps", "on_bad_row", "rows_per_shard",
)  # fmt: skip
"""What `score_settings` may hold."""


@dataclass
class RoundsConfig:
    """What is drawn, scored and measured in each round; see [`~tgo_trl.commands.rounds.run.rounds`].

    Attributes:
        model_name_or_path: Hub id or folder of the base.
        prompts: as in [`~tgo_trl.commands.generate.config.GenerateConfig`]; drawn in every round.
        rewards: names of reward models, or `path/to/file.py:function`, that score what is trained on; several need
            `ensemble_weights` in `score_settings`.
        num_rounds: rounds of drawing, scoring and training. A run that is over goes on with more.
        reference: what each round is trained against: the policy that drew its samples (`"previous"`), or the base, of
            which a second copy is then in memory (`"base"`). In the first round they are the same.
        num_images_per_prompt: samples of each prompt in each round.
        num_inference_steps, guidance_scale: of each sample; the pipeline's own if not set.
        generate_batch_size: samples drawn at once.
        score_batch_size: samples scored at once.
        generate_settings: more settings of `tgo-trl generate`, by name: those in [`OF_GENERATE`]. Size, video length,
            `model_init_kwargs` and `pipeline_class` are those of the training settings.
        score_settings: more settings of `tgo-trl score`, by name: those in [`OF_SCORE`].
        held_out_rewards: rewards that training does not see. After each round they score samples of the base and of
            the policy, of the same prompts and seeds every time; the first one decides which round is kept.
        held_out_prompts: what is drawn for them, two or more: a source as `prompts`, or a set that `tgo-trl evaluate`
            knows by name; `prompts` if not set.
        held_out_images_per_prompt: samples of each.
        stop_above_drift: ends the run after a round whose policy denoises samples of the base with an error of more
            than this multiple of the base's, in any quartile of the time; the round is not kept.
        stop_below_variety: likewise if the samples of a prompt have less than this share of the base's variety.
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the base."})
    prompts: str = field(metadata={"help": "File of prompts, or folder or Hub id of a data set that has them."})
    rewards: list[str] = field(metadata={"help": "Names of reward models, or `file.py:function`, to train by."})
    num_rounds: int = field(default=4, metadata={"help": "Rounds of drawing, scoring and training."})
    reference: str = field(
        default="previous",
        metadata={
            "help": "What a round's policy is compared with: that of the round before, or the base.",
            "choices": REFERENCES,
        },
    )
    num_images_per_prompt: int = field(default=4, metadata={"help": "Samples of each prompt in each round."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Denoising steps; the pipeline's own number if not set."}
    )
    guidance_scale: float | None = field(
        default=None, metadata={"help": "Guidance scale; the pipeline's own if not set."}
    )
    generate_batch_size: int = field(default=4, metadata={"help": "Samples drawn at once."})
    score_batch_size: int = field(default=32, metadata={"help": "Samples scored at once."})
    generate_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More settings of `tgo-trl generate`, by name, as JSON."}
    )
    score_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More settings of `tgo-trl score`, by name, as JSON."}
    )
    held_out_rewards: list[str] | None = field(
        default=None, metadata={"help": "Rewards that training does not see, measured after each round."}
    )
    held_out_prompts: str | None = field(
        default=None, metadata={"help": "Prompts to measure on. Defaults to `prompts`."}
    )
    held_out_images_per_prompt: int = field(default=4, metadata={"help": "Samples of each prompt that is measured on."})
    stop_above_drift: float | None = field(
        default=None, metadata={"help": "Most drift of a round, such as 1.2; the base has 1."}
    )
    stop_below_variety: float | None = field(
        default=None, metadata={"help": "Least variety of a round, such as 0.7; the base has 1."}
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            check_finite(item.name, getattr(self, item.name))
        check_types(self, [item.name for item in fields(self)])
        for name in ("num_rounds", "generate_batch_size", "score_batch_size", "held_out_images_per_prompt"):
            check_at_least(name, getattr(self, name))
        check_choice("reference", self.reference, REFERENCES)
        self.rewards = as_list(self.rewards) or []
        self.held_out_rewards = as_list(self.held_out_rewards)
        for name in ("rewards", "held_out_rewards"):
            for spec in getattr(self, name) or ():
                if not isinstance(spec, str):
                    raise ValueError(
                        f"`{name}` has {shown(spec)}; write names of reward models, or 'path/to/file.py:function'."
                    )
        self.generate_settings = _checked("generate_settings", self.generate_settings, OF_GENERATE)
        self.score_settings = _checked("score_settings", self.score_settings, OF_SCORE)
        check_types(self.generation("", None, 0), self.generate_settings)
        check_types(self.scoring("", ""), self.score_settings)
        self._check_measured()

    @property
    def is_measured(self) -> bool:
        """Whether rounds are measured on samples of their own."""
        asked = (self.held_out_rewards, self.stop_above_drift, self.stop_below_variety)
        return any(setting is not None for setting in asked)

    def generation(
        self, output_dir: str, adapter: str | None, seed: int, shared: Mapping[str, Any] | None = None
    ) -> GenerateConfig:
        """How the samples of a round are drawn.

        Args:
            output_dir: of them.
            adapter: that draws; None for the base.
            seed: of the round.
            shared: what training has a say in, by name: the size of samples, and how the pipeline is loaded.
        """
        settings: Any = self.generate_settings
        return GenerateConfig(
            model_name_or_path=self.model_name_or_path,
            prompts=self.prompts,
            output_dir=output_dir,
            adapter_name_or_path=adapter,
            num_images_per_prompt=self.num_images_per_prompt,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            batch_size=self.generate_batch_size,
            seed=seed,
            **settings,
            **(shared or {}),
        )

    def scoring(self, dataset_name: str, output_dir: str, disable_tqdm: bool = False) -> ScoreConfig:
        """How they are scored."""
        settings: Any = self.score_settings
        return ScoreConfig(
            dataset_name=dataset_name,
            output_dir=output_dir,
            rewards=self.rewards,
            batch_size=self.score_batch_size,
            disable_tqdm=disable_tqdm,
            **settings,
        )

    def evaluation(
        self, output_dir: str, adapters: Mapping[str, str], seed: int, generation: GenerateConfig
    ) -> EvaluateConfig:
        """How policies are measured, beside the base.

        Args:
            output_dir: of samples and scores.
            adapters: folder of each policy's, by its label.
            seed: of the samples, the same in all rounds.
            generation: of a round, whose samples are drawn in the same way.
        """
        settings = {item.name: getattr(generation, item.name) for item in fields(SamplingSettings)}
        settings |= {"seed": seed, "num_images_per_prompt": self.held_out_images_per_prompt}
        if self.held_out_prompts is not None:
            settings["max_prompts"] = None
        return EvaluateConfig(
            models=[f"{label}={self.model_name_or_path}" for label in (BASE, *adapters)],
            model_settings={label: {"adapter_name_or_path": adapter} for label, adapter in adapters.items()},
            prompts=self.held_out_prompts or self.prompts,
            rewards=[*(self.held_out_rewards or ()), *self.rewards],
            reward_kwargs=self.scoring("", "").reward_kwargs,
            output_dir=output_dir,
            reward_batch_size=self.score_batch_size,
            rows_per_shard=generation.rows_per_shard,
            disable_tqdm=generation.disable_tqdm,
            **settings,
        )

    def _check_measured(self) -> None:
        if self.held_out_rewards == []:
            raise ValueError("`held_out_rewards` is empty. Name at least one reward, or leave it out.")
        if self.held_out_prompts is not None and not self.is_measured:
            raise ValueError(
                f"`held_out_prompts` is {shown(self.held_out_prompts)}, and nothing is measured on them. Set "
                "`held_out_rewards`, `stop_above_drift` or `stop_below_variety` too."
            )
        if self.stop_above_drift is not None and not self.stop_above_drift > 1:
            raise ValueError(
                f"`stop_above_drift` is {self.stop_above_drift}; it must be above 1, the base's own. 1.2 is usual."
            )
        if self.stop_below_variety is not None and not 0 < self.stop_below_variety <= 1:
            raise ValueError(
                f"`stop_below_variety` is {self.stop_below_variety}; it is a share of the base's variety: above 0, up "
                "to 1."
            )
        if self.stop_below_variety is not None and self.held_out_images_per_prompt < 2:
            raise ValueError(
                f"`stop_below_variety` is {self.stop_below_variety}, and `held_out_images_per_prompt` is "
                f"{self.held_out_images_per_prompt}: variety is the distance of two samples of a prompt. Set it to 2 "
                "or more."
            )
        both = next((spec for spec in self.held_out_rewards or () if spec in self.rewards), None)
        if both is not None:
            raise ValueError(
                f"`held_out_rewards` has {shown(both)}, which `rewards` has too, so that training sees it. Name "
                "another one; those of `rewards` are measured in any case."
            )
        if self.is_measured:
            self.evaluation("", {}, 0, self.generation("", None, 0))  # which checks the rest


def _checked(name: str, given: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """The dictionary; raises a ValueError for an entry that is none of the known ones."""
    settings = as_dictionary(name, given)
    unknown = next((entry for entry in settings if entry not in known), None)
    if unknown is not None:
        raise ValueError(
            f"`{name}` has {shown(unknown)}; write some of {', '.join(known)}.{did_you_mean(unknown, known)}"
        )
    return settings
