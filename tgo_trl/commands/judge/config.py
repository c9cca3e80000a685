"""`tgo-trl judge`: lets a model that sees images say whose are better, pair by pair."""

from dataclasses import KW_ONLY, dataclass, field

from ...messages.public import public_name
from ...rewards.chat_settings import ChatSettings, text_or_file
from ...settings import check_choice, check_finite, check_types, shown
from ..generate.config import SOURCE_COLUMN
from ..settings import as_list, check_at_least

CRITERIA = """- First, which image shows better what its prompt asks for: subjects, their number, attributes, relations.
- Then, which one is the better image: nothing distorted, cut off, duplicated or smeared; composition, light and colour.
An image that misses what the prompt asks for does not win by beauty."""

EDIT_CRITERIA = """- First, in which image is all of the edit done that its prompt asks for, and as it says?
- Then, in which one is the rest as before: people, objects, background, style and the cut of the image?
- Then, which one is the better image: nothing distorted, smeared or out of place; light and perspective fit.
An image in which the edit is not done does not win by beauty."""

TIE = "tie"
COMPARE = ("first", "all")
ORDERS = ("random", "both")


@dataclass
class JudgeConfig(ChatSettings):
    """What is judged, and by whom; see [`~tgo_trl.commands.judge.run.judge`] and, for the endpoint, [`ChatSettings`].

    Attributes:
        datasets: two or more data sets of images, one of each model, as `tgo-trl generate` writes them; see
            [`~tgo_trl.storage.sources.open_dataset`]. All have the same prompts, and as many images of each.
        output_dir: where report and pictures go. Answers are kept there: what is answered is not asked again.
        names: of the models, in reports; the last parts of `datasets` if not set.
        compare: `"first"`: the first data set with each of the others, `"all"`: every two.
        order: which image is shown first: `"random"`, from seed, prompt and sample, or `"both"`: each pair is asked
            twice, and only who wins both times wins.
        seed: of the random order.
        criteria: what to look at, in words, or a `.txt` or `.md` file with them. By default [`CRITERIA`], and of edits
            [`EDIT_CRITERIA`].
        dataset_split: of all data sets.
        prompt_column, image_column: of all data sets.
        source_column: of all data sets of edits: the image that each row's was made from, or a list of them, which are
            shown before the two. Without such a column, images are of prompts alone.
        sample_column: which image of its prompt a row has. A data set without it has them in order.
        category_column: of the first data set; results are reported for each category too.
        max_prompts, max_samples_per_prompt: judge the first ones only.
        agreement_with: output folders of other judges, or tables of people's verdicts; see
            [`~tgo_trl.commands.judge.agreements.read_others`].
        price_per_million_prompt_tokens, price_per_million_completion_tokens: in whatever currency, for the costs.
        disable_tqdm: show no progress bar.
    """

    datasets: list[str] = field(metadata={"help": "Two or more data sets, one of each model."})
    output_dir: str = field(metadata={"help": "Folder of report, pictures and answers; a killed run goes on there."})
    _: KW_ONLY
    names: list[str] | None = field(default=None, metadata={"help": "Names of the models, one for each data set."})
    compare: str = field(
        default="first", metadata={"help": "The first with each of the others, or all.", "choices": list(COMPARE)}
    )
    order: str = field(
        default="random", metadata={"help": "Which image comes first; `both` asks twice.", "choices": list(ORDERS)}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the random order."})
    criteria: str | None = field(default=None, metadata={"help": "What to look at: text, or a .txt or .md file."})
    dataset_split: str = field(default="train", metadata={"help": "Split of all data sets."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    source_column: str = field(default=SOURCE_COLUMN, metadata={"help": "Column of what images were made from."})
    sample_column: str = field(default="sample_index", metadata={"help": "Column that numbers the images of a prompt."})
    category_column: str | None = field(default=None, metadata={"help": "Column of categories to report on."})
    max_prompts: int | None = field(default=None, metadata={"help": "Judge the first prompts only."})
    max_samples_per_prompt: int | None = field(default=None, metadata={"help": "Judge the first samples only."})
    agreement_with: list[str] | None = field(
        default=None, metadata={"help": "Folders of other judges, or tables of people's verdicts."}
    )
    price_per_million_prompt_tokens: float | None = field(
        default=None, metadata={"help": "Price of a million prompt tokens, for the report of costs."}
    )
    price_per_million_completion_tokens: float | None = field(
        default=None, metadata={"help": "Price of a million completion tokens, for the report of costs."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.datasets = as_list(self.datasets) or []
        self.names, self.agreement_with = as_list(self.names), as_list(self.agreement_with)
        prices = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")
        limits = ("max_prompts", "max_samples_per_prompt")
        columns = ("prompt_column", "image_column", "source_column", "sample_column", "category_column")
        check_types(
            self, ["output_dir", "seed", "criteria", "dataset_split", "disable_tqdm", *prices, *limits, *columns]
        )
        for name in limits:
            check_at_least(name, getattr(self, name))
        for name in prices:
            check_finite(name, getattr(self, name))
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 0.")
        check_choice("compare", self.compare, COMPARE)
        check_choice("order", self.order, ORDERS)
        if len(self.datasets) < 2:
            raise ValueError(f"`datasets` has {len(self.datasets)}; name two or more, one of each model.")
        self._check_names()
        if self.criteria is not None:
            self.criteria = text_or_file("criteria", self.criteria)

    def model_names(self) -> list[str]:
        """What the models are called, in the order of `datasets`."""
        if self.names is not None:
            return [str(name) for name in self.names]
        return [public_name(str(name)) or str(name) for name in self.datasets]

    def model_pairs(self) -> list[tuple[int, int]]:
        """Which two models are compared, by their places in `datasets`."""
        num = len(self.datasets)
        return [(i, j) for i in range(1 if self.compare == "first" else num) for j in range(i + 1, num)]

    def _check_names(self) -> None:
        if self.names is not None and len(self.names) != len(self.datasets):
            raise ValueError(f"`names` has {len(self.names)} for {len(self.datasets)} `datasets`. Give one for each.")
        names = self.model_names()
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"Two of `datasets` are called {shown(twice)}. Set `names`, one for each.")
        for name in names:
            if not name.strip() or name.lower() == TIE or len(name) > 100 or "\n" in name:
                raise ValueError(
                    f"A model cannot be called {shown(name)}. Set `names`, one short name for each data set."
                )
