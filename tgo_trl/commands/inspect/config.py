"""`tgo-trl inspect`: reports on a scored data set before hours are spent on training with it."""

from dataclasses import dataclass, field

from ...data.score_columns import USUAL_COLUMN, check_score_columns
from ...labels import COMBINATIONS
from ..generate.config import SOURCE_COLUMN


@dataclass
class InspectConfig:
    """What is inspected; see [`~tgo_trl.commands.inspect.run.inspect`].

    Attributes:
        dataset_name: a file, an archive or a pattern of them, the folder or the Hub id of a scored data set; see
            [`~tgo_trl.storage.sources.open_dataset`].
        output_dir: where the report and its pictures go.
        dataset_config, dataset_split: of the data set.
        dataset_streaming: read the rows as they come.
        prompt_column, image_column, score_column: of the data set.
        score_columns: several columns of scores instead, looked at as training takes them together.
        score_combination, score_weights: how, as in [`~tgo_trl.TGOConfig`].
        source_column: of the images that each row's was made from. Where there is one, scores are compared among rows
            of the same prompt and the same sources, as pipelines of edits train on them.
        image_dir: where paths of images are relative to; the folder of the data set, if not set. They must lead
            to files in the one or the other.
        allow_urls: fetch images whose URLs the data set has.
        skip_images: do not read the images: no sizes, no repeated images. For videos, and for quick looks.
        max_rows: look at the first rows only.
        threshold_value: a threshold of your own to look at, in score units.
        threshold_values: instead, of several columns: one of each, in the order in which they are named.
        beta: of the loss, which the per-prompt baseline shares.
        disable_tqdm: show no progress bar.
    """

    dataset_name: str = field(metadata={"help": "File, folder or Hub id of a scored data set."})
    output_dir: str = field(default="inspection", metadata={"help": "Folder of the report and its pictures."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they come, without downloading all of them first."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    score_column: str = field(default=USUAL_COLUMN, metadata={"help": "Column of the scores."})
    score_columns: list[str] | None = field(default=None, metadata={"help": "Several columns of scores instead."})
    score_combination: str = field(
        default="sum",
        metadata={"help": "How several columns of scores label a row together.", "choices": list(COMBINATIONS)},
    )
    score_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each of several columns of scores."}
    )
    source_column: str = field(
        default=SOURCE_COLUMN, metadata={"help": "Column of the images that others were made from, where there is one."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder that paths of images are relative to. Defaults to the data set's."}
    )
    allow_urls: bool = field(default=False, metadata={"help": "Fetch images whose URLs the data set has."})
    skip_images: bool = field(default=False, metadata={"help": "Do not read the images."})
    max_rows: int | None = field(default=None, metadata={"help": "Look at the first rows only."})
    threshold_value: float | None = field(default=None, metadata={"help": "A threshold of your own to look at."})
    threshold_values: list[float] | None = field(
        default=None, metadata={"help": "Of several columns of scores, a threshold of each to look at."}
    )
    beta: float = field(default=1.0, metadata={"help": "`beta` of the loss, for the per-prompt baseline."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})

    def __post_init__(self) -> None:
        check_score_columns(vars(self))
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"`max_rows` is {self.max_rows}; it must be at least 1.")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"`beta` is {self.beta}; it must be greater than 0 and finite.")
