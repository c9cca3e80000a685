"""`tgo-trl score`: adds the scores of reward models to a data set."""

from dataclasses import dataclass, field
from typing import Any

from ...labels import NORMALIZATIONS
from ...messages.values import shown
from ...settings import as_dictionary, check_choice
from ..settings import DatasetSettings, as_list, check_at_least


@dataclass
class ScoreConfig(DatasetSettings):
    """What is scored, and by what; see [`~tgo_trl.commands.score.run.score`].

    Attributes:
        dataset_name: a file, an archive or a pattern of them, the folder or the Hub id of a data set; see
            [`~tgo_trl.storage.sources.open_dataset`].
        output_dir: where the scored data set goes. A run that was killed goes on there.
        rewards: names of reward models, or `path/to/file.py:function`, or `package.module:function`.
        dataset_config, dataset_split: of the data set.
        dataset_streaming: read the rows as they come; with several processes, each reads all of them.
        prompt_column, image_column: of the data set.
        video_column: scored if there is no column of images.
        source_column: of the image that each row's was made from, or a list of them, for rewards that judge edits.
        image_dir: where paths of images and videos are relative to; the folder of the data set, if not set. Whatever a
            row names must lie in the one or the other.
        allow_urls: fetch images and videos whose URLs the data set has.
        score_columns: a name for each reward's column. A single reward has `score`; several are called after the
            rewards.
        reward_kwargs: for each reward, by its name as in `rewards`, keyword arguments for
            [`~tgo_trl.rewards.load_reward`].
        ensemble_weights: adds a column of the weighted sum of the scores, with a weight for each reward.
        ensemble_normalization: before the sum, scores are `"none"`: left as they are, `"zscore"`: standardised over the
            data set, `"robust"`: likewise, by median and interquartile range.
        ensemble_column: the sum's.
        num_frames, fps: of a video that is scored. Lists of frames are taken whole if not set; files need both.
        batch_size: rows per call of a reward, or fewer, if their images would have more than 256 million pixels (1 GB)
            together. It is recorded, since rounding depends on it.
        on_bad_row: `"error"` stops at a row without a prompt or a readable image, and names it; `"skip"` leaves such
            rows out, counts and reports them.
    """

    dataset_name: str = field(metadata={"help": "File, folder or Hub id of a data set with prompts and images."})
    output_dir: str = field(metadata={"help": "Folder of the scored data set; a run that was killed goes on there."})
    rewards: list[str] = field(metadata={"help": "Names of reward models, or `file.py:function`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they come, without downloading all of them first."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    video_column: str = field(default="video", metadata={"help": "Column of the videos, if there are no images."})
    source_column: str = field(
        default="source_image", metadata={"help": "Column of what images were made from, for rewards of edits."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder that paths of images are relative to. Defaults to the data set's."}
    )
    allow_urls: bool = field(default=False, metadata={"help": "Fetch images whose URLs the data set has."})
    score_columns: list[str] | None = field(
        default=None, metadata={"help": "Name of the column of each reward's scores."}
    )
    reward_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of each reward, by its name, as JSON."}
    )
    ensemble_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward in a sum of them, which becomes one more column."}
    )
    ensemble_normalization: str = field(
        default="zscore",
        metadata={"help": "How scores are normalised before they are summed.", "choices": list(NORMALIZATIONS)},
    )
    ensemble_column: str = field(default="score", metadata={"help": "Name of the column of the weighted sum."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames of each video that are scored."})
    fps: float | None = field(default=None, metadata={"help": "Frames per second of a video file that are scored."})
    batch_size: int = field(default=32, metadata={"help": "Rows per call of a reward."})
    on_bad_row: str = field(
        default="error",
        metadata={"help": "Stop at a row that cannot be used, or leave such rows out.", "choices": ["error", "skip"]},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rewards = as_list(self.rewards) or []
        self.score_columns = as_list(self.score_columns)
        self.ensemble_weights = as_list(self.ensemble_weights)
        if not self.rewards:
            raise ValueError("`rewards` is empty. Name at least one reward.")
        twice = next((spec for i, spec in enumerate(self.rewards) if spec in self.rewards[:i]), None)
        if twice is not None:
            raise ValueError(
                f"`rewards` has {shown(twice)} twice, and settings of a reward are by its name (`reward_kwargs`), so "
                "that both columns would hold the same. Name it once; for other settings of it, score what this run "
                "writes once more, with another name in `score_columns`."
            )
        for name in ("batch_size", "num_frames"):
            check_at_least(name, getattr(self, name))
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"`fps` is {self.fps}; it must be greater than 0.")
        check_choice("on_bad_row", self.on_bad_row, ("error", "skip"))
        check_choice("ensemble_normalization", self.ensemble_normalization, NORMALIZATIONS)
        self.reward_kwargs = as_dictionary("reward_kwargs", self.reward_kwargs)
        for spec, kwargs in self.reward_kwargs.items():
            if spec not in self.rewards:
                raise ValueError(f"`reward_kwargs` has {spec!r}, but `rewards` are {', '.join(self.rewards)}.")
            self.reward_kwargs[spec] = as_dictionary(f"reward_kwargs[{spec!r}]", kwargs)
        for name, values in (("score_columns", self.score_columns), ("ensemble_weights", self.ensemble_weights)):
            if values is not None and len(values) != len(self.rewards):
                raise ValueError(
                    f"`{name}` has {len(values)} entries for {len(self.rewards)} rewards. Give one for each."
                )
        self._check_columns()

    def _check_columns(self) -> None:
        columns = self.new_columns()
        repeated = {name for name in columns if columns.count(name) > 1}
        if repeated:
            raise ValueError(
                f"Two columns of scores would be called {', '.join(map(repr, sorted(repeated)))}. Name them with "
                "`score_columns`" + (", or the sum with `ensemble_column`." if self.ensemble_weights else ".")
            )

    def reward_columns(self) -> list[str]:
        """The column of each reward."""
        if self.score_columns is not None:
            return list(self.score_columns)
        if len(self.rewards) == 1 and self.ensemble_weights is None:
            return ["score"]
        return [spec.rpartition(":")[2] for spec in self.rewards]

    def new_columns(self) -> list[str]:
        """All columns that are added."""
        return self.reward_columns() + ([] if self.ensemble_weights is None else [self.ensemble_column])
