"""`tgo-trl convert`: turns pairs, rankings, labels or ratings of images into a scored data set."""

from dataclasses import dataclass, field, replace
from typing import Any

from ...settings import as_dictionary, check_choice
from ..settings import DatasetSettings, as_list
from .layouts import KINDS, LAYOUTS, SCALES, SCORE_TYPES, Layout
from .tallies import TIES


@dataclass
class ConvertConfig(DatasetSettings):
    """What is converted, and how; see [`~tgo_trl.commands.convert.run.convert`].

    Attributes:
        rows_per_shard: rows of each file, which are lost when a run is killed; 1,000 if not set.
        dataset_name: a file, an archive or a pattern of them (`data/*.parquet`), the folder or the Hub id of a data
            set; see [`~tgo_trl.storage.sources.open_dataset`].
        output_dir: where the scored data set goes. A run that was killed goes on there.
        layout: what a row is and where: the name of a known data set (`pickapic_v2`, `hpdv2_train`, `imagerewarddb`,
            `richhf`, ...), or `pairs`, `ranking`, `labels` or `ratings`; `auto` tells by the columns.
        score_type: what becomes the score. Pairs: `wins`, `win_rate` or `smoothed_win_rate`; the same, with
            `win_rate` first, for rankings and labels; ratings: `mean` or `bayesian`. The first if not set. The others
            are columns of their own.
        ties: in win rates, a tie is `half` a win, no comparison at all (`drop`), or a loss (`zero`). It never counts
            among the wins.
        prior: of `smoothed_win_rate`, the wins and losses that every image is given beforehand; of `bayesian`, the
            number of ratings that the mean of all ratings counts for.
        dataset_config, dataset_split: of the data set.
        dataset_streaming: read the rows as they come, twice: for what was said, and for the images. Of Parquet files,
            only the columns that are needed are read.
        prompt_column, image_columns, annotation_columns, uid_columns: of the data set, where they are not the
            layout's.
        source_column: of the images that those of a row were made from, by an instruction to edit: images are then
            compared with others of the same prompt and source; `source_image`, if it is not set and there is one.
        lower_is_better: of a ranking: whether 1 is the best rank; as its layout has it if not set.
        positive_label: of labels that are no booleans, the good one; all others are bad. Of a column of classes, its
            name. Words such as `accepted` and `rejected` are known without
            (`tgo_trl.commands.convert.words.OPPOSITES`).
        annotation_scale: of pairs with a number for each image: `outcomes` (1 and 0, or 0.5 each), `votes` (counts of
            people) or `shares` (of the votes, 1 together); `auto` tells by names and numbers.
        choice_labels: of pairs with one column that says which image is better: what it holds for the first image, for
            the second and, if there is such a value, for a tie. Names of columns, A and B, first and second, left and
            right, 0 and 1, or 1 and 2, are known without.
        word_values: of ratings and ranks that are words, the number of each, as JSON; null leaves it out. "4 stars"
            and "1st" are known without.
        image_dir: where paths of images are relative to; the folder of the data set, if not set. They must lead
            to files in the one or the other.
        allow_urls: fetch images whose URLs the data set has.
        image_suffix: added to paths of images, where the column has a name without `.jpg`.
        on_bad_row: `"error"` stops at a row whose prompt, images or annotations cannot be read, and names it; `"skip"`
            leaves such rows out, counts and reports them.
    """

    dataset_name: str = field(metadata={"help": "File, folder or Hub id of a data set with annotated images."})
    output_dir: str = field(metadata={"help": "Folder of the scored data set; a run that was killed goes on there."})
    layout: str = field(
        default="auto",
        metadata={"help": f"What a row is, or a known data set: {', '.join(LAYOUTS)}; auto tells by the columns."},
    )
    score_type: str | None = field(
        default=None,
        metadata={"help": "What becomes the score: wins, win_rate or smoothed_win_rate; of ratings mean or bayesian."},
    )
    ties: str = field(
        default="half",
        metadata={
            "help": "What a tie counts in win rates: half a win, no comparison at all, or no win.",
            "choices": list(TIES),
        },
    )
    prior: float = field(default=1.0, metadata={"help": "Strength of the prior of smoothed scores."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they come, twice, without downloading all of them first."}
    )
    prompt_column: str | None = field(default=None, metadata={"help": "Column of the prompts."})
    image_columns: list[str] | None = field(default=None, metadata={"help": "Columns of the images, or their paths."})
    source_column: str | None = field(
        default=None,
        metadata={"help": "Column of what images were made from: source_image, if it is there."},
    )
    annotation_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of what people said: votes, choices, ranks, labels or ratings."}
    )
    uid_columns: list[str] | None = field(default=None, metadata={"help": "Columns that tell images apart."})
    lower_is_better: bool | None = field(
        default=None, metadata={"help": "Whether the lowest rank of a ranking is the best one."}
    )
    positive_label: str | None = field(
        default=None, metadata={"help": "Which label is the good one, where labels are words."}
    )
    annotation_scale: str = field(
        default="auto",
        metadata={"help": "What the numbers of a pair are; told by the columns.", "choices": ["auto", *SCALES]},
    )
    choice_labels: list[str] | None = field(
        default=None, metadata={"help": "What stands for the first image, the second, and a tie."}
    )
    word_values: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The number of each rating that is a word, as JSON."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder that paths of images are relative to. Defaults to the data set's."}
    )
    allow_urls: bool = field(default=False, metadata={"help": "Fetch images whose URLs the data set has."})
    image_suffix: str = field(default="", metadata={"help": "Added to paths of images, such as `.jpg`."})
    on_bad_row: str = field(
        default="error",
        metadata={"help": "Stop at a row that cannot be used, or leave such rows out.", "choices": ["error", "skip"]},
    )
    rows_per_shard: int | None = field(
        default=None, kw_only=True, metadata={"help": "Rows of each file that is written: 1,000 if not set."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_columns", "annotation_columns", "uid_columns", "choice_labels"):
            setattr(self, name, as_list(getattr(self, name)))
        self.choice_labels = self.choice_labels and [str(label) for label in self.choice_labels]  # 0 and 1
        if self.word_values is not None:
            self.word_values = _numbers_of_words(self.word_values)
        check_choice("annotation_scale", self.annotation_scale, ("auto", *SCALES))
        if self.positive_label is not None:
            self.positive_label = str(self.positive_label)  # `positive_label: 1`
        check_choice("layout", self.layout, ("auto", *LAYOUTS))
        check_choice("ties", self.ties, TIES)
        check_choice("on_bad_row", self.on_bad_row, ("error", "skip"))
        if not 0 < self.prior < float("inf"):
            raise ValueError(f"`prior` is {self.prior}; it must be greater than 0 and finite.")
        if self.layout == "auto":
            named = [name for name in ("image_columns", "annotation_columns", "uid_columns") if getattr(self, name)]
            if named:
                raise ValueError(
                    f"`{named[0]}` is set, but not what its rows are. Set `layout` to {', '.join(KINDS)}, or to a "
                    "known data set."
                )
        elif self.score_type is not None:
            check_choice("score_type", self.score_type, SCORE_TYPES[LAYOUTS[self.layout].kind])

    def given_columns(self) -> dict[str, Any]:
        """The columns that are set here, by fields of [`~tgo_trl.commands.convert.layouts.Layout`]."""
        given: dict[str, Any] = {"prompt": self.prompt_column, "source": self.source_column}
        lists = {"images": self.image_columns, "annotations": self.annotation_columns, "uids": self.uid_columns}
        given |= {name: None if names is None else tuple(names) for name, names in lists.items()}
        return {name: value for name, value in given.items() if value is not None}

    def adapt(self, layout: Layout) -> Layout:
        """The layout with the columns that are set here instead of its own.

        Raises:
            ValueError: if their number does not fit.
        """
        changes = self.given_columns()
        if self.image_columns is not None and self.uid_columns is None:
            changes["uids"] = ()
        for name, value in (
            ("lower_is_better", self.lower_is_better),
            ("positive", self.positive_label),
            ("scale", None if self.annotation_scale == "auto" else self.annotation_scale),
            ("choices", None if self.choice_labels is None else tuple(self.choice_labels)),
            ("values", self.word_values),
        ):
            if value is not None:
                changes[name] = value
        if changes.get("annotations", layout.annotations) != layout.annotations:  # which need not be read as its own
            changes = {"scale": "auto", "first_is_better": False, **changes}
        adapted = replace(layout, **changes)
        adapted.check()
        return adapted


def _numbers_of_words(given: dict[str, Any] | str) -> dict[str, Any]:
    values = {str(word): value for word, value in as_dictionary("word_values", given).items()}  # `1: 5`
    for word, value in values.items():
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError(f"`word_values` has {value!r} for {word!r}, which is no number. Write one, or null.")
    return values
