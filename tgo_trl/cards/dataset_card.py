"""The card of a data set that was sampled or scored here."""

from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
from datasets import DatasetInfo, Features, List, SplitDict, SplitInfo, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from ..messages.markdown import markdown_table
from ..storage.parquet import ParquetFolder
from ..storage.records import GENERATION_NAME, SCORING_NAME, read_record

COLUMNS = {
    "prompt": "what was asked for",
    "image": "the image",
    "video": "the frames of the video, in order",
    "source_image": "what it was made from: the file as it was, which is resized and cropped to the size of the sample",
    "prompt_index": "index of the prompt among the distinct ones",
    "sample_index": "index of the sample among those of its prompt",
    "seed": "of the sample's generator: `torch.Generator().manual_seed(seed)`",
}
"""What the columns that are written here hold."""

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "n>1M"


def build_card(shards: ParquetFolder, hub_id: str | None = None, license: str | None = None) -> DatasetCard:
    """The card of a finished folder, from its settings and its shards.

    Args:
        shards: all of them written.
        hub_id: of the data set, which is called after its folder if None.
        license: of the data set, as the Hub names it.
    """
    generation, scoring = (read_record(shards.folder, name) for name in (GENERATION_NAME, SCORING_NAME))
    name = hub_id or shards.folder.resolve().name
    info = dataset_info(shards)
    num_rows = info.splits[shards.split].num_examples
    head = card_head(
        info,
        license=license,
        task_categories=[generation["settings"]["task"]] if generation else None,
        size_categories=size_category(num_rows),
        source_datasets=_source_id(scoring),
        tags=["tgo_trl", *(["synthetic"] if generation else []), *(["reward"] if scoring else [])],
    )
    parts = [
        f"# {name}",
        _introduction(num_rows, generation, scoring),
        f"```python\nfrom datasets import load_dataset\n\n"
        f'dataset = load_dataset("{name}", split="{shards.split}")\n```',
        "## Columns",
        markdown_table(("column", "type", "holds"), _column_rows(info.features, generation, scoring)),
    ]
    if generation:
        parts += ["## Sampling", markdown_table(("setting", "value"), sampling_rows(generation["settings"]))]
    if scoring:
        parts += ["## Scores", _scores_text(scoring)]
    parts += ["## License", license_note(generation, scoring, license)]
    return DatasetCard(head + "\n\n".join(parts) + "\n")


def card_head(info: DatasetInfo, **fields: Any) -> str:
    """What a card begins with: its metadata, in YAML, which an upload needs.

    Args:
        info: as [`dataset_info`] gives it.
        fields: of `DatasetCardData`, such as `license` and `tags`.
    """
    data = DatasetCardData(**fields)
    # No `configs`: the names of the shards say it all, and a folder whose card has `configs` is cached by `datasets`
    # under its card alone, so that other data in the same place would not be seen
    # (https://github.com/huggingface/datasets/pull/6487).
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n\n"


def size_category(num_rows: int) -> str:
    """What the Hub calls a data set of so many rows."""
    return next((name for limit, name in SIZES if num_rows < limit), LARGEST)


def dataset_info(shards: ParquetFolder) -> DatasetInfo:
    """Features, rows and bytes of the shards."""
    paths = list(shards.written().values())
    files = [pq.read_metadata(path) for path in paths]
    num_bytes = sum(file.row_group(i).total_byte_size for file in files for i in range(file.num_row_groups))
    splits = SplitDict()
    splits.add(SplitInfo(shards.split, num_bytes, sum(file.num_rows for file in files)))
    return DatasetInfo(
        features=Features.from_arrow_schema(pq.read_schema(paths[0])),
        splits=splits,
        download_size=sum(path.stat().st_size for path in paths),
        dataset_size=num_bytes,
    )


def sampling_rows(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Name and value of each line of the table of sampling settings."""
    call = dict(settings["call"])
    rows = [
        ("model", settings["model"]),
        ("adapter", settings["adapter"]),
        ("adapter scale", settings.get("adapter_scale")),
        ("pipeline", settings["pipeline"]),
        ("scheduler", settings["scheduler"]),
        ("precision", settings["dtype"]),
        ("size", f"{settings['width']} x {settings['height']}"),
        *((name.replace("_", " "), value) for name, value in {**settings["family"], **call}.items()),
        ("prompts", f"{settings['prompts']['number']:,} of {settings['prompts']['source']}"),
        ("samples per prompt", settings["num_images_per_prompt"]),
        ("seed", settings["seed"]),
        ("samples per call", settings["batch_size"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in settings["versions"].items())),
    ]
    return [(name, value) for name, value in rows if value is not None]


def license_note(generation: Mapping[str, Any] | None, scoring: Mapping[str, Any] | None, license: str | None) -> str:
    """Whose terms bind the data set besides its own."""
    notes = [] if license else ["None is claimed for this data set."]
    if generation:
        model, terms = generation["settings"]["model"], generation.get("model_license")
        known = f" (license: {terms})" if terms else ""
        notes.append(f"The samples were drawn with `{model}`{known}, whose terms may bind their use.")
        if _has_sources(generation):
            prompts = generation["settings"]["prompts"]["source"]
            notes.append(
                f"The source images are those of `{prompts}`; their terms apply, to what was made of them too."
            )
    if scoring:
        source = scoring["settings"]["dataset"]
        if not generation:
            notes.append(f"The rows are those of `{source}`; its terms apply.")
        notes.append("The terms of the reward models are in the table of scores.")
    return " ".join(notes)


def _introduction(num_rows: int, generation: Mapping[str, Any] | None, scoring: Mapping[str, Any] | None) -> str:
    kind = "rows"
    if generation:
        kind = "videos" if generation["settings"]["task"].endswith("-to-video") else "images"
    parts = [f"{num_rows:,} {kind}"]
    if generation:
        parts[0] += f" drawn with `{generation['settings']['model']}`"
        parts[0] += " from source images" if _has_sources(generation) else ""
    elif scoring:
        parts[0] += f" of `{scoring['settings']['dataset']}`"
    if scoring:
        parts.append("scored by " + ", ".join(f"`{reward['name']}`" for reward in scoring["settings"]["rewards"]))
    return ", ".join(parts) + ". Made with tgo_trl."


def _has_sources(generation: Mapping[str, Any]) -> bool:
    return bool(generation["settings"]["task"].startswith("image-"))


def _column_rows(
    features: Features, generation: Mapping[str, Any] | None, scoring: Mapping[str, Any] | None
) -> list[tuple[str, str, str]]:
    meanings = dict(COLUMNS) if generation else {}
    if scoring:
        settings = scoring["settings"]
        scores = {reward["column"]: f"score by {reward['name']}" for reward in _scorers(scoring)}
        meanings = {**meanings, **scores}
        if settings["ensemble"]:
            meanings[settings["ensemble"]["column"]] = "weighted sum of the scores"
    return [(f"`{name}`", _type_name(feature), meanings.get(name, "")) for name, feature in features.items()]


def _type_name(feature: Any) -> str:
    if isinstance(feature, List):
        return f"list of {_type_name(feature.feature)}"
    return str(feature.dtype) if isinstance(feature, Value) else type(feature).__name__


def _scorers(scoring: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*scoring["settings"]["earlier_rewards"], *scoring["settings"]["rewards"]]


def _scores_text(scoring: Mapping[str, Any]) -> str:
    rows = [
        (f"`{reward['column']}`", reward["name"], reward["version"], reward["license"]) for reward in _scorers(scoring)
    ]
    text = markdown_table(("column", "scorer", "version", "license"), rows)
    if scoring.get("ensemble"):
        text += f"\n\n`{scoring['settings']['ensemble']['column']}` is {scoring['ensemble']}."
    if scoring.get("num_left_out"):
        text += f"\n\n{scoring['num_left_out']:,} rows without a readable prompt and sample were left out."
    return text


def _source_id(scoring: Mapping[str, Any] | None) -> list[str] | None:
    source = scoring["settings"]["dataset"] if scoring else ""
    return [source] if "/" in source else None
