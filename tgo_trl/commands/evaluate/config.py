"""`tgo-trl evaluate`: compares models on the same prompts and seeds, by several rewards."""

import os
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...settings import as_dictionary, check_choice, check_finite, check_types, shown
from ..generate.config import GenerateConfig, SamplingSettings
from ..score.config import ScoreConfig
from ..settings import as_list, check_at_least

PROMPT_SETS = ("pick-a-pic", "parti", "hpsv2")
"""Names of sets on the Hub; see [`~tgo_trl.commands.evaluate.prompt_sets.read_prompt_set`]."""
SHARED = (
    "prompt_column", "source_column", "dataset_config", "dataset_split", "max_prompts", "num_images_per_prompt", "seed",
)  # fmt: skip
"""Settings of sampling that all models have to have in common."""
OWN = ("adapter_name_or_path", "adapter_scale")
MOST_MODELS = 20
LONGEST_LABEL = 40
FEWEST_RESAMPLES, MOST_RESAMPLES = 100, 1_000_000
FORM = "Write each as label=model, label=model+adapter or label=model+adapter@scale."


@dataclass(frozen=True)
class Contestant:
    """One of the models that are compared.

    Attributes:
        label: in tables and pictures.
        folder: of its samples and scores, a name made of the label.
        model: Hub id or folder of the pipeline.
        settings: of its sampling, as [`~tgo_trl.commands.generate.config.GenerateConfig`] names them, where they differ
            from those of all.
    """

    label: str
    folder: str
    model: str
    settings: dict[str, Any]


@dataclass
class EvaluateConfig(SamplingSettings):
    """What is compared, on what, and by what; see [`~tgo_trl.commands.evaluate.run.evaluate`].

    Attributes:
        models: each as `label=model`, `label=model+adapter` or `label=model+adapter@scale`: what tables and pictures
            call it, Hub id or folder of the pipeline and of a LoRA adapter, and how strongly that acts. Where a path
            has a `+` in it, name the adapter in `model_settings`.
        prompts: as in [`~tgo_trl.commands.generate.config.GenerateConfig`], or the name of a set on the Hub:
            `"pick-a-pic"` (test, without ties), `"parti"` or `"hpsv2"`; two or more.
        rewards: names of reward models, or `path/to/file.py:function`.
        output_dir: where samples, scores, tables and pictures go. A run that was killed goes on there; one with more
            models or rewards draws and scores what is missing.
        model_settings: by label, settings of sampling that a model has for itself, such as `guidance_scale`; also
            `adapter_name_or_path` and `adapter_scale`.
        baseline: the label of the model that differences, varieties and win rates in short tables are from; the first
            one, if not set.
        category_column: of the source of prompts; results are then also told by category. `"parti"` (`"Category"`) and
            `"hpsv2"` (its four styles) have categories if it is not set.
        num_resamples: of the prompts, for the intervals.
        grid_prompts: which prompts the grids show, counted from 0; six, spread evenly, if not set.
        reward_kwargs: for each reward, by its name as in `rewards`, keyword arguments.
        reward_batch_size: samples per call of a reward.
        rows_per_shard: samples of each file, which are lost when a run is killed; 64, or 4 videos, if not set.
        disable_tqdm: show no progress bar.
    """

    models: list[str] = field(metadata={"help": "Each as label=model, or label=model+adapter@scale."})
    prompts: str = field(
        metadata={"help": "File of prompts, folder or Hub id of a data set, or pick-a-pic, parti or hpsv2."}
    )
    rewards: list[str] = field(metadata={"help": "Names of reward models, or `file.py:function`."})
    output_dir: str = field(
        default="evaluation", metadata={"help": "Folder of samples, tables and pictures; a killed run goes on there."}
    )
    model_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "By label, what a model has for itself, such as guidance_scale, as JSON."}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "Label of the model that others are compared with. Defaults to the first."}
    )
    category_column: str | None = field(default=None, metadata={"help": "Column of the prompts' categories."})
    num_resamples: int = field(default=10_000, metadata={"help": "How often prompts are drawn anew for the intervals."})
    grid_prompts: list[int] | None = field(
        default=None, metadata={"help": "Prompts in the grids, from 0 on. Defaults to six, spread evenly."}
    )
    reward_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of each reward, by its name, as JSON."}
    )
    reward_batch_size: int = field(default=32, metadata={"help": "Samples per call of a reward."})
    rows_per_shard: int | None = field(default=None, metadata={"help": "Samples of each file: 64, or 4 videos."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})

    def __post_init__(self) -> None:
        for item in fields(self):
            check_finite(item.name, getattr(self, item.name))
        check_types(self, [item.name for item in fields(self)])
        super().__post_init__()
        for name in ("reward_batch_size", "rows_per_shard"):
            check_at_least(name, getattr(self, name))
        if not FEWEST_RESAMPLES <= self.num_resamples <= MOST_RESAMPLES:
            raise ValueError(
                f"`num_resamples` is {self.num_resamples}; write {FEWEST_RESAMPLES} to {MOST_RESAMPLES:,}. With fewer "
                "than 1,000, an interval is itself a matter of chance."
            )
        self.rewards = as_list(self.rewards) or []
        self.reward_kwargs = self._check_rewards()
        self.grid_prompts = _checked_prompts(self.grid_prompts)
        self._check_set()
        self.models = as_list(self.models) or []
        self.model_settings = as_dictionary("model_settings", self.model_settings)
        labels = [contestant.label for contestant in self.contestants()]  # which checks them
        for label in self.model_settings:
            if label not in labels:
                raise ValueError(
                    f"`model_settings` has {shown(label)}, but the labels are {', '.join(map(repr, labels))}."
                )
        if self.baseline is not None:
            check_choice("baseline", self.baseline, labels)
        for contestant in self.contestants():
            self._check_sampling(contestant)

    def contestants(self) -> list[Contestant]:
        """The models, in order, each with what it has for itself.

        Raises:
            ValueError: if they cannot be told apart, or one of them is written as none is.
        """
        if not 1 <= len(self.models) <= MOST_MODELS:
            raise ValueError(f"`models` has {len(self.models)} entries; write 1 to {MOST_MODELS}. {FORM}")
        settings: Any = self.model_settings
        found = [_parsed(entry, settings) for entry in self.models]
        for i, contestant in enumerate(found):
            for other in found[:i]:
                if contestant.folder.casefold() == other.folder.casefold():
                    raise ValueError(
                        f"`models` has the labels {shown(other.label)} and {shown(contestant.label)}, whose samples "
                        f"would both go to a folder {other.folder!r}. Give each model a label of its own."
                    )
        return found

    def generation(self, contestant: Contestant, output_dir: str) -> GenerateConfig:
        """How the samples of a model are drawn."""
        settings = {item.name: getattr(self, item.name) for item in fields(SamplingSettings)} | contestant.settings
        return GenerateConfig(
            model_name_or_path=contestant.model,
            prompts=self.prompts,
            output_dir=output_dir,
            rows_per_shard=self.rows_per_shard,
            disable_tqdm=self.disable_tqdm,
            **settings,
        )

    def scoring(self, spec: str, dataset_name: str, output_dir: str) -> ScoreConfig:
        """How samples are scored by one of the rewards."""
        kwargs: Any = self.reward_kwargs
        return ScoreConfig(
            dataset_name=dataset_name,
            output_dir=output_dir,
            rewards=[spec],
            reward_kwargs={name: value for name, value in kwargs.items() if name == spec},
            batch_size=self.reward_batch_size,
            rows_per_shard=self.rows_per_shard,
            disable_tqdm=self.disable_tqdm,
        )

    def reward_names(self) -> dict[str, str]:
        """What tables and folders call each reward, by its entry in `rewards`."""
        return {spec: spec.rpartition(":")[2] for spec in self.rewards}

    def _check_rewards(self) -> dict[str, Any]:
        """The checked `reward_kwargs`; as `tgo-trl score` checks them."""
        names = [str(spec).rpartition(":")[2] for spec in self.rewards]
        for spec, name in zip(self.rewards, names, strict=True):
            if not isinstance(spec, str) or not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"`rewards` has {shown(spec)}, which names no function and no reward model.")
            if [other.casefold() for other in names].count(name.casefold()) > 1:  # of which folders are made
                raise ValueError(f"`rewards` has two that would be called {name!r}. Leave one out, or rename it.")
        kwargs: Any = ScoreConfig("", "", self.rewards, reward_kwargs=self.reward_kwargs).reward_kwargs
        return dict(kwargs)

    def _check_set(self) -> None:
        """A set that is known by name has columns of its own."""
        defaults = {"prompt_column": "prompt", "dataset_config": None, "dataset_split": "train"}
        if self.prompts != "parti":
            defaults["category_column"] = None
        for name, default in defaults.items():
            if self.prompts in PROMPT_SETS and getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` is {shown(getattr(self, name))}, but what is in the set {self.prompts!r} is known. "
                    f"Leave it out; a file or folder of that name is read as './{self.prompts}'."
                )

    def _check_sampling(self, contestant: Contestant) -> None:
        try:
            plain = self.generation(replace(contestant, settings={}), "")
            for name, value in contestant.settings.items():
                setattr(plain, name, value)
            check_types(plain, contestant.settings)
            self.generation(contestant, "")  # which checks the rest
        except ValueError as error:
            raise ValueError(f"The model {shown(contestant.label)}: {error}") from error


def _parsed(entry: object, settings: dict[str, Any]) -> Contestant:
    """A model as an entry of `models` names it.

    Raises:
        ValueError: if the entry has another form, or sets what `model_settings` sets too.
    """
    if not isinstance(entry, str):
        raise ValueError(f"`models` has {shown(entry)}, which is no text. {FORM}")
    label, _, name = (part.strip() for part in entry.partition("="))
    folder = re.sub(r"[^\w.-]+", "-", label).strip("-.")
    if not name or not folder or len(label) > LONGEST_LABEL or not label.isprintable():
        raise ValueError(f"`models` has {shown(entry)}. {FORM} A label has up to {LONGEST_LABEL} letters.")
    own = as_dictionary(f"model_settings[{label!r}]", settings.get(label))
    allowed = {*(item.name for item in fields(SamplingSettings)), *OWN} - {*SHARED}
    for setting in own:
        if setting in SHARED:
            raise ValueError(f"The model {shown(label)} has a `{setting}` of its own, which all have to share.")
        if setting not in allowed:
            raise ValueError(
                f"`model_settings` has {shown(setting)} of {shown(label)}; write some of {', '.join(sorted(allowed))}."
            )
    model, named = _split(name, entry)
    for setting in named.keys() & own.keys():
        raise ValueError(f"`models` and `model_settings` both have the `{setting}` of {shown(label)}. Set it in one.")
    return Contestant(label, folder, model, named | own)


def _split(name: str, entry: str) -> tuple[str, dict[str, Any]]:
    """The model of `model+adapter@scale`, and what the rest sets; a path that is there is a model, whatever it holds.

    Args:
        name: what follows the label.
        entry: with it, for messages.
    """
    if os.path.exists(name) or "+" not in name:
        return name, {}
    model, _, adapter = name.partition("+")
    named: dict[str, Any] = {"adapter_name_or_path": adapter}
    if "@" in adapter and not os.path.exists(adapter):
        named["adapter_name_or_path"], _, scale = adapter.rpartition("@")
        try:
            named["adapter_scale"] = float(scale)
        except ValueError:
            raise ValueError(f"`models` has {shown(entry)}, where {shown(scale)} is no scale. {FORM}") from None
    if not model or not named["adapter_name_or_path"]:
        raise ValueError(f"`models` has {shown(entry)}. {FORM}")
    return model, named


def _checked_prompts(given: object) -> list[int] | None:
    entries = as_list(given)
    for entry in entries or ():
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise ValueError(f"`grid_prompts` has {shown(entry)}; write the numbers of prompts, from 0 on.")
    if entries is not None and not 1 <= len(entries) <= 60:
        raise ValueError(f"`grid_prompts` has {len(entries)} entries; write 1 to 60.")
    return entries
