"""Where annotated data sets keep what people said about images: column names, by published data set and by kind.

What could be checked of each published set, and where, stands with its layout. No image of any of them was read here.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..generate.config import SOURCE_COLUMN

KINDS = ("pairs", "ranking", "labels", "ratings")
SCALES = ("outcomes", "votes", "shares")
"""What the numbers of a pair may be: one judge's outcome for each image, counts of votes, or shares of them."""
SCORE_TYPES = {
    "pairs": ("wins", "win_rate", "smoothed_win_rate"),
    "ranking": ("win_rate", "wins", "smoothed_win_rate"),
    "labels": ("win_rate", "wins", "smoothed_win_rate"),
    "ratings": ("mean", "bayesian"),
}
"""What each kind can be turned into; the first is the default."""


@dataclass(frozen=True)
class Layout:
    """Columns of one annotated data set.

    Attributes:
        kind: `"pairs"`: two images a row, of which one may be preferred. `"ranking"`: images of one prompt in order,
            in lists, or one a row. `"labels"`: good or not, one image a row. `"ratings"`: numbers, one image a row.
        prompt: column of the prompts.
        images: columns of the images, or of their paths: two of pairs, else one.
        annotations: pairs: a number for each image, in two columns or in a list in one (see `scale`), or one column
            with the choice between them, or no column where the first image is always the preferred one. Ranking,
            labels: one column. Ratings: one or more; the first becomes the score.
        uids: columns that tell images apart, one for each column of images. Without them, the file's content does, or
            its path.
        valid: a column of booleans; rows without it say nothing.
        lower_is_better: of a ranking, 1 is the best rank.
        positive: of labels that are no booleans, the good one.
        group: of a ranking with an image a row, what its rows share, besides the prompt.
        scale: of the numbers of a pair, one of [`SCALES`]. Outcomes: 1 and 0, or 0.5 each for a tie. Votes: counts of
            people. Shares: of the votes, 1 together. `"auto"`: told by the columns' names or the rows.
        choices: what a choice is where the first image is better, where the second is, and at a tie; words such as
            the columns' names are known without.
        values: of ratings and ranks that are words, the number of each; None leaves it out.
        first_is_better: of a pair, whatever order its votes are in; a pair without votes is one comparison.
        told_by: columns without which a data set is not taken for one of this layout by itself.
        source: a column of the images that those of a row were made from, one or a list, of instructions to edit; a
            data set may lack it. Images are then compared with others of the same prompt and source.
    """

    kind: str
    prompt: str = "prompt"
    images: tuple[str, ...] = ("image",)
    annotations: tuple[str, ...] = ()
    uids: tuple[str, ...] = ()
    valid: str | None = None
    lower_is_better: bool = False
    positive: str | None = None
    group: str | None = None
    scale: str = "auto"
    choices: tuple[str, ...] = ()
    values: Mapping[str, float | None] | None = None
    first_is_better: bool = False
    told_by: tuple[str, ...] = ()
    source: str | None = SOURCE_COLUMN

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it takes; those of `uids`, `valid`, `group` and `source` may be missing."""
        optional = [name for name in (*self.uids, self.valid, self.group, self.source) if name is not None]
        return tuple(dict.fromkeys([self.prompt, *self.images, *self.annotations, *optional]))

    @property
    def required(self) -> set[str]:
        """The columns without which it is not this layout."""
        named = () if self.source in (None, SOURCE_COLUMN) else (self.source,)
        return {self.prompt, *self.images, *(() if self.first_is_better else self.annotations), *named}

    def check(self) -> None:
        """Raises a ValueError if the columns are not as many as the kind has, or a setting is of another kind."""
        num_images = 2 if self.kind == "pairs" else 1
        annotations = {"pairs": (0, 1, 2), "ranking": (1,), "labels": (1,)}.get(self.kind)
        if len(self.images) != num_images:
            raise ValueError(
                f"`image_columns` are {', '.join(self.images)}, but {self.kind} have {num_images} column(s) of images."
            )
        if len(self.annotations) not in (annotations or range(1, 100)):
            allowed = " or ".join(map(str, annotations or ["1 or more"]))
            raise ValueError(
                f"`annotation_columns` are {', '.join(self.annotations) or 'none'}, but {self.kind} have {allowed}."
            )
        if len(self.uids) not in (0, num_images):
            raise ValueError(
                f"`uid_columns` are {', '.join(self.uids)}, but there must be one for each column of images, "
                f"{', '.join(self.images)}."
            )

        self._check_meanings()

    def _check_meanings(self) -> None:
        is_choice = self.kind == "pairs" and len(self.annotations) == 1
        if self.scale != "auto" and self.kind != "pairs":
            raise ValueError(f"`annotation_scale` is {self.scale!r}, but only pairs have one, not {self.kind}.")
        if self.choices and (not is_choice or len(set(self.choices)) not in (2, 3)):
            raise ValueError(
                f"`choice_labels` are {', '.join(self.choices)}. They are for pairs with one column of choices: two of "
                "them, for the first and the second image, or three, with that for a tie."
            )
        if self.lower_is_better and self.kind != "ranking":
            raise ValueError(f"`lower_is_better` is set, but only rankings have ranks, not {self.kind}.")
        if self.values is not None and self.kind not in ("ratings", "ranking"):
            raise ValueError(
                f"`word_values` is set, but only ratings and ranks have numbers, not {self.kind}. Name the good label "
                "with `positive_label`, or the choices of pairs with `choice_labels`."
            )
        if self.positive is not None and self.kind != "labels":
            raise ValueError(f"`positive_label` is {self.positive!r}, but only labels have one, not {self.kind}.")

    def describe(self) -> str:
        """The columns that are read and, of a ranking, which end is the best, in words."""
        best = "" if self.kind != "ranking" else ", 1 the best" if self.lower_is_better else ", the highest the best"
        return f"from {', '.join(self.columns)}{best}"

    def present_in(self, columns: Collection[str]) -> "Layout":
        """The layout without the optional columns that a data set lacks."""
        return replace(
            self,
            annotations=tuple(name for name in self.annotations if name in columns or not self.first_is_better),
            uids=self.uids if set(self.uids) <= set(columns) else (),
            valid=self.valid if self.valid in columns else None,
            group=self.group if self.group in columns else None,
            source=self.source if self.source in columns else None,
        )


LAYOUTS = {
    # `liuhuohuo2/pick-a-pic-v2`, a copy of `yuvalkirstain/pickapic_v2`, which is no longer on the Hub: columns and
    # types from its card (959,040 rows in `train`; the labels are float64, the images binary); 1 / 0 / 0.5 from code
    # that trains on it. What labels a row without `has_label` has could not be checked: such rows are passed over.
    # `pickapic_v2_no_images` lacks `jpg_0` and `jpg_1`.
    "pickapic_v2": Layout(
        "pairs",
        "caption",
        ("jpg_0", "jpg_1"),
        ("label_0", "label_1"),
        ("image_0_uid", "image_1_uid"),
        "has_label",
        scale="outcomes",
    ),
    "pickapic_v2_no_images": Layout(
        "pairs", "caption", ("image_0_uid", "image_1_uid"), ("label_0", "label_1"), valid="has_label", scale="outcomes"
    ),
    # `ymhao/HPDv2`, `train.json` (1 for the preferred image) and `test.json` (ranks averaged over annotators): columns
    # from its card and from the code of HPSv2, whose evaluation takes the lowest rank for the best.
    "hpdv2_train": Layout("ranking", images=("file_path",), annotations=("human_preference",)),
    "hpdv2_test": Layout("ranking", images=("image_path",), annotations=("rank",), lower_is_better=True),
    # `zai-org/ImageRewardDB`: columns from its loading script, which `datasets` no longer runs. A row is an image; in
    # the `_group` configurations it is a prompt with lists, in the `_pair` ones a pair, the lower rank first.
    "imagerewarddb": Layout(
        "ratings", annotations=("overall_rating", "image_text_alignment_rating", "fidelity_rating", "rank")
    ),
    "imagerewarddb_rank": Layout("ranking", annotations=("rank",), lower_is_better=True, group="prompt_id"),
    "imagerewarddb_pair": Layout("pairs", images=("img_better", "img_worse")),
    # RichHF-18K (`google-research-datasets/richhf-18k`, without images): names from its script, and, from its later
    # readme, that higher is better in all four, artifacts and misalignment included. `caption` and `image` as in the
    # mirror `Exploration/richhf_18k_with_images`, from code that reads it.
    "richhf": Layout(
        "ratings",
        "caption",
        annotations=("overall_score", "aesthetics_score", "artifact_score", "misalignment_score"),
        uids=("filename",),
    ),
    # `Rapidata/700k_Human_Preference_Dataset_FLUX_SD3_MJ_DALLE3`: columns from two projects' notes on rows that they
    # streamed: counts of votes, 26 a pair; the paths are `flux/155_0.jpg` and the like. Its splits are `train_0001` to
    # `train_0026`, from the Hub's viewer.
    "rapidata": Layout(
        "pairs",
        images=("image1", "image2"),
        annotations=("votes_image1", "votes_image2"),
        uids=("image1_path", "image2_path"),
        scale="votes",
    ),
    # Rapidata's newer sets (`HunyuanImage-2.1_t2i_human_preference` and its like): columns and types from the card of
    # that one. They are shares of votes weighted by how reliable each person is: `summedUserScoresRatios` in a script
    # that writes such sets. A pair need not have been judged by all three questions.
    **{
        f"rapidata_{question}": Layout(
            "pairs",
            images=("image1", "image2"),
            annotations=(f"weighted_results_image1_{question}", f"weighted_results_image2_{question}"),
            scale="shares",
        )
        for question in ("preference", "alignment", "coherence")
    },
    # `MizzenAI/HPDv3`, `all.json`, `train.json`, `test.json`: columns from the readme of HPSv3. `path1` is always the
    # preferred image. `choice_dist` counts votes; it is null for pairs of Midjourney and of HPDv2, and the test set has
    # none (name the layout there). HPSv3's own loader sorts it, so its order is not relied on here either. `confidence`
    # is not used.
    "hpdv3": Layout(
        "pairs",
        images=("path1", "path2"),
        annotations=("choice_dist",),
        scale="votes",
        first_is_better=True,
        told_by=("choice_dist", "model1", "model2"),
    ),
    # What Diffusion-KTO trains on, from its readme: `exclusive_win` or `exclusive_lose` for each file.
    "diffusion_kto": Layout("labels", "caption", ("file_path",), ("label",), positive="exclusive_win"),
    # TRL's columns, with images for completions.
    "preference": Layout("pairs", images=("chosen", "rejected")),
    "pairs": Layout("pairs", images=("image_0", "image_1"), annotations=("label_0", "label_1")),
    "ranking": Layout("ranking", annotations=("rank",), lower_is_better=True),
    "labels": Layout("labels", annotations=("label",)),
    "ratings": Layout("ratings", annotations=("rating",)),
}
"""Layouts by name."""


_PROMPTS = ("prompt", "caption")
_IMAGES = (
    ("image1", "image2"), ("image_1", "image_2"), ("image_0", "image_1"), ("image0", "image1"),
    ("image_a", "image_b"), ("image_left", "image_right"), ("left_image", "right_image"), ("img1", "img2"),
)  # fmt: skip
_NUMBERS = {"votes": ("votes", "vote", "vote_count", "num_votes"), "shares": ("shares", "share", "vote_share")}
_CHOICES = ("choice", "preference", "preferred", "preferred_image", "winner", "better")


def find_layout(columns: Collection[str]) -> tuple[str, Layout]:
    """The first of [`LAYOUTS`] whose columns a data set has, or that of pairs with votes, shares or a choice; its name.

    Raises:
        ValueError: if it has the columns of none.
    """
    present = set(columns)
    for name, layout in LAYOUTS.items():
        if layout.required | set(layout.told_by) <= present:
            return name, layout
    for layout in _pairs_like():
        if layout.required <= present:
            return "pairs", layout
    is_scored = {"prompt", "score"} <= present and bool(present & {"image", "video"})
    scored = "It has scores already: `tgo-trl inspect` and `tgo-trl train` take it as it is. To make others of it, set"
    raise ValueError(
        f"A data set with the columns {', '.join(map(repr, columns))} has no layout that is known here. "
        f"{scored if is_scored else 'Set'} `layout` to what a row is ({', '.join(KINDS)}), and name its columns with "
        "`prompt_column`, `image_columns` and `annotation_columns`."
    )


def layout_of_kind(kind: str, columns: Collection[str], given: Mapping[str, Any] | None = None) -> Layout:
    """The layout of a kind of rows under the names that a data set has for its columns, as far as they are known.

    The kind's own columns come first. What a published data set says besides names, such as which end of a ranking is
    the best, holds for its own columns alone, under their own names.

    Args:
        kind: one of [`KINDS`].
        columns: of the data set.
        given: the columns that the user has named, by fields of [`Layout`]; they are looked for instead of a layout's.
    """
    own, present, given = LAYOUTS[kind], set(columns), given or {}
    if "images" in given:  # which of them is the first of a pair no name of another column tells
        return own
    published = (layout for layout in (*LAYOUTS.values(), *_pairs_like()) if layout.kind == kind)
    known = [*(replace(own, prompt=prompt) for prompt in _PROMPTS), *published]
    for layout in known:
        named = replace(layout, **given)
        is_meant = _names(named) == _names(layout) or layout == _renamed(own, layout)
        if is_meant and named.required | set(layout.told_by) <= present:
            return layout
    for layout in known:  # what was said of the images is in columns that have to be named
        if {given.get("prompt", layout.prompt), *layout.images} <= present:
            return replace(own, prompt=layout.prompt, images=layout.images)
    return own


def _names(layout: Layout) -> tuple[object, ...]:
    return layout.prompt, layout.images, layout.annotations


def _renamed(own: Layout, layout: Layout) -> Layout:
    """A kind's own layout under the names of another, with the scale that they tell."""
    prompt, images, annotations = layout.prompt, layout.images, layout.annotations
    return replace(own, prompt=prompt, images=images, annotations=annotations, scale=layout.scale)


def _pairs_like() -> Iterator[Layout]:
    """Pairs under the names that people give such columns: `votes_image1`, `image_a_share`, `choice`."""
    for prompt in _PROMPTS:
        for images in _IMAGES:
            ends = [name.removeprefix("image").removeprefix("img").removesuffix("image").strip("_") for name in images]
            for scale, words in _NUMBERS.items():
                for word in words:
                    for pattern in ("{word}_{name}", "{name}_{word}", "{word}{end}", "{word}_{end}", "{end}_{word}"):
                        names = zip(images, ends, strict=True)
                        numbers = tuple(pattern.format(word=word, name=name, end=end) for name, end in names)
                        yield Layout("pairs", prompt, images, numbers, scale=scale)
            for choice in _CHOICES:
                yield Layout("pairs", prompt, images, (choice,))
