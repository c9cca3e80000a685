"""The model card, from `model_card_template.md`."""

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from jinja2 import Environment, Template

from ..data.pairs import Pairs
from ..labels.rule import LabelRule
from ..media.types import VideoFormat
from ..policy.named import is_single_file

TEMPLATE_NAME = "model_card_template.md"
PACKAGES = ("tgo_trl", "trl", "transformers", "diffusers", "peft", "accelerate", "datasets", "torch")


@dataclass(frozen=True)
class Paper:
    """Where a method is from.

    Attributes:
        title: of the paper.
        id: its number on arXiv.
        citation: its entry in a bibliography, as BibTeX.
    """

    title: str
    id: str
    citation: str


TGO_PAPER = Paper(
    "Threshold-Guided Optimization for Visual Generative Models",
    "2605.04653",
    """@inproceedings{tgo2026,
    title     = {{Threshold-Guided Optimization for Visual Generative Models}},
    booktitle = {International Conference on Machine Learning},
    year      = 2026,
    eprint    = {2605.04653},
    archivePrefix = {arXiv},
}""",
)
ALIGNPROP_PAPER = Paper(
    "Aligning Text-to-Image Diffusion Models with Reward Backpropagation",
    "2310.03739",
    """@article{prabhudesai2023aligning,
    title     = {{Aligning Text-to-Image Diffusion Models with Reward Backpropagation}},
    author    = {Mihir Prabhudesai and Anirudh Goyal and Deepak Pathak and Katerina Fragkiadaki},
    year      = 2023,
    eprint    = {2310.03739},
    archivePrefix = {arXiv},
}""",
)


@dataclass(frozen=True)
class CardContent:
    """What a card says of a run.

    Attributes:
        model_name: the card's title.
        weights: Hub id or folder of what was trained, for the snippet.
        loading_code: loads an adapter from there.
        base_code: makes the pipeline of a base that `from_pretrained` alone does not load; None for others.
        loading_arguments: what `from_pretrained` is told besides the name, such as `, text_encoder_3=None`.
        video_format: of the training videos; None for images.
        base_model: Hub id or folder of the pipeline that was trained.
        pipeline_class: its class.
        pipeline_package: what the class is imported from.
        task: the Hub's pipeline tag.
        is_adapter: whether an adapter was trained, not the whole network.
        in_comfyui: whether ComfyUI has names for an adapter of such a pipeline.
        rank_and_alpha: of the adapter; None if there is none, or they differ from layer to layer.
        method: how it was trained, after "trained with".
        method_tag: the same as a tag.
        method_paper: where it is from.
        rule: threshold and weights; None without scores.
        pairs: what was compared; None if no pairs were.
        hyperparameters: a name and a value per row of the table.
        prompt: for the snippet.
        negative_prompt: likewise; None for none.
        call: names and Python code of the other arguments of the pipeline's call.
        reads_source: whether one of them is a source image.
        paper: title and arXiv id, or address, of where the loss is from; None for that of TGO.
        grid: path of the sample grid, relative to the card.
        histogram: path of the score histogram, relative to the card.
        evaluated_step: the update after which the weights were what they are.
        evaluation: a name and a value per row of the table of what was measured of them; empty for no table.
        evaluations: path of the picture of all evaluations, relative to the card.
        dataset_name: Hub id of the data set.
        license: overrides the base model's.
        tags: more tags.
    """

    model_name: str
    weights: str
    loading_code: str
    base_code: str | None
    loading_arguments: str
    video_format: VideoFormat | None
    base_model: str
    pipeline_class: str
    pipeline_package: str
    task: str
    is_adapter: bool
    in_comfyui: bool
    rank_and_alpha: tuple[int, float] | None
    method: str
    method_tag: str
    method_paper: Paper
    rule: LabelRule | None
    pairs: Pairs | None
    hyperparameters: Mapping[str, Any]
    prompt: str
    negative_prompt: str | None
    call: Mapping[str, str]
    reads_source: bool
    paper: tuple[str, str] | None
    grid: str | None
    histogram: str | None
    evaluated_step: int
    evaluation: Mapping[str, str]
    evaluations: str | None
    dataset_name: str | None
    license: str | None
    tags: tuple[str, ...]


def build_card(content: CardContent) -> ModelCard:
    """The card of a run."""
    is_file = is_single_file(content.base_model)
    on_hub = bool(content.base_model) and not is_file and not Path(content.base_model).exists()
    license = content.license or base_license(content.base_model)
    tags = ["trl", content.method_tag, *(["lora"] if content.is_adapter else []), "diffusers", *content.tags]
    data = ModelCardData(
        library_name="diffusers",
        base_model=content.base_model if on_hub else None,
        base_model_relation=("adapter" if content.is_adapter else "finetune") if on_hub else None,
        license=license,
        pipeline_tag=content.task,
        datasets=content.dataset_name,
        tags=list(dict.fromkeys(tags)),
    )
    text = _template().render(
        **{**vars(content), "base_model": path_in_card(content.base_model), "license": license},
        media="image" if content.video_format is None else "video",
        card_data=data.to_yaml(),
        on_hub=on_hub,
        **_adapter_scale(content.rank_and_alpha),
        loading_method="from_single_file" if is_file else "from_pretrained",
        versions={name: version for name in PACKAGES if (version := _installed_version(name))},
        title=content.method_paper.title,
        paper_id=content.method_paper.id,
        citation=content.method_paper.citation,
    )
    return ModelCard(text)


@functools.cache
def _template() -> Template:
    # `ModelCard.from_template` would leave a blank line for every tag, which breaks tables.
    return Environment(trim_blocks=True, lstrip_blocks=True).from_string(template_path().read_text("utf-8"))


def _adapter_scale(rank_and_alpha: tuple[int, float] | None) -> dict[str, str]:
    """What an adapter's weights are scaled by, where a program that does not know alpha would scale them by 1."""
    if rank_and_alpha is None or rank_and_alpha[0] == rank_and_alpha[1]:
        return {}
    rank, alpha = rank_and_alpha
    return {
        "adapter_scale": f"{alpha:g} / {rank} = {alpha / rank:g}",
        "adapter_share": f"{rank / alpha:.3g} times" if alpha else "another multiple of",
    }


@functools.cache
def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def template_path() -> Path:
    """The template: inside the package if it was installed from a wheel, beside it in a source tree."""
    package = Path(__file__).parents[1]
    installed = package / TEMPLATE_NAME
    return installed if installed.is_file() else package.parent / TEMPLATE_NAME


def path_in_card(base_model: str) -> str:
    """A Hub id or relative folder as it is; of an absolute one, which names a machine, what is below the current one.

    Elsewhere, only its last part.
    """
    if not base_model:
        return "path/to/the/base/pipeline"
    path = Path(base_model)
    if not path.is_absolute():
        return base_model
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


@functools.cache
def base_license(base_model: str) -> str | None:
    """The license that the base model's card states; None if it cannot be found out."""
    card = Path(base_model) / "README.md"
    if not base_model or is_single_file(base_model) or (Path(base_model).is_dir() and not card.is_file()):
        return None
    try:
        data = ModelCard.load(card if card.is_file() else base_model).data
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        return None
    return str(data.license) if data.license else None
