"""A data set's upload: its shards, its card and its settings, beside the other splits that the repository has."""

import re
from pathlib import Path
from typing import Any

from datasets.data_files import sanitize_patterns
from datasets.info import DatasetInfo, DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import CardData, CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetCardData

from ..cards.dataset_card import size_category
from ..storage.records import CARD_NAME, RECORD_NAMES
from .repositories import Destination, UploadError
from .uploads import Operation, Upload, Uploads, folder_operations

SHARD = re.compile(r"data/(?P<split>\w+(\.\w+)*)-\d{5,}(-of-\d{5,})?\.parquet")
"""Paths of shards; names of splits are as `datasets` allows them."""
OWN_TEXT = re.compile(r"(Made with|, by) tgo_trl\.$", re.MULTILINE)
"""What the first paragraph of a card that this package wrote ends with."""
OWN_FIELDS = ("license", "task_categories", "size_categories", "source_datasets", "tags")
"""What the cards of this package state besides the data themselves."""


def publish(folder: Path, destination: Destination) -> str:
    """Uploads shards, card and settings to the Hub, and nothing else, in one commit; returns the repository's id.

    Shards of an earlier upload of the same split that are not among these are deleted there; everything else stays,
    and what its card says of other splits and configurations is kept.

    Raises:
        UploadError: if the upload fails; the same command tries again, without doing the work again. Also if the
            repository has other splits, with other columns.
    """
    shards = sorted((folder / "data").glob("*.parquet"))
    upload = Upload(
        destination,
        lambda head: _operations(folder, destination, head),
        message="Upload data set",
        num_bytes=sum(path.stat().st_size for path in shards),
        remedy=f"The data set is safe in {str(folder)!r}; the same command uploads it, without making it again.",
    )
    Uploads().start(upload, is_awaited=True).result()
    return destination.repo_id


def _operations(folder: Path, destination: Destination, head: str) -> list[Operation]:
    added = folder_operations(folder, allow=["data/*.parquet", *RECORD_NAMES])
    paths = {operation.path_in_repo for operation in added}
    splits = {match["split"] for match in map(SHARD.fullmatch, paths) if match}
    there = destination.files(head)
    kept = [path for path in there if not _is_shard_of(path, splits)]
    stale = [path for path in there if path not in kept and path not in paths]
    card = DatasetCard((folder / CARD_NAME).read_text("utf-8"))
    other = DatasetCard(destination.text(CARD_NAME, head) if CARD_NAME in there else "---\n{}\n---\n")
    card_operation = CommitOperationAdd(CARD_NAME, str(merge_cards(card, other, kept)).encode("utf-8"))
    return [*map(CommitOperationDelete, stale), *added, card_operation]


def _is_shard_of(path: str, splits: set[str]) -> bool:
    match = SHARD.fullmatch(path)
    return match is not None and match["split"] in splits


def merge_cards(card: DatasetCard, other: DatasetCard, kept: list[str]) -> DatasetCard:
    """A card with what the repository's says of other splits and configurations, and what others wrote there.

    Its text stays unless this package wrote it. Merging what comes out with the same card changes nothing.

    Args:
        card: of the data set that is uploaded.
        other: the repository's.
        kept: paths of the files that stay there.

    Raises:
        UploadError: if other splits have other columns.
    """
    infos = DatasetInfosDict.from_dataset_card_data(other.data)
    configs = MetadataConfigs.from_dataset_card_data(other.data)
    ours = DatasetInfosDict.from_dataset_card_data(card.data)["default"]
    theirs = infos.get("default", DatasetInfo())
    described = {name for name in theirs.splits or {} if name not in ours.splits}
    others = described | {match["split"] for match in map(SHARD.fullmatch, kept) if match}
    is_ours = OWN_TEXT.search(other.text) is not None

    merged = _merged_fields(card.data, other.data, is_ours and not others)
    for name in ("dataset_info", "configs"):
        merged.pop(name, None)
    if others == described:  # of the rows of a split that nobody described, nothing can be stated
        infos["default"] = _merged_info(ours, theirs, described)
        merged["size_categories"] = size_category(sum(s.num_examples for s in infos["default"].splits.values()))
    else:
        infos.pop("default", None)
    infos.to_dataset_card_data(merged)
    _with_split(configs, set(ours.splits)).to_dataset_card_data(merged)
    text = card.text if is_ours or not other.text.strip() else other.text
    if others and text == card.text:
        text += f"\nThe repository also holds other splits: {', '.join(sorted(others))}.\n"
    return DatasetCard(f"---\n{merged.to_yaml()}\n---\n{text}")


def _merged_fields(ours: CardData, theirs: CardData, replaces: bool) -> DatasetCardData:
    """Their fields, and ours over them; if it `replaces` theirs, what is not stated any more goes."""
    values: dict[str, Any] = {**theirs.to_dict(), **ours.to_dict()}  # type: ignore[no-untyped-call]
    if replaces:
        values = {name: value for name, value in values.items() if name not in OWN_FIELDS or ours.get(name) is not None}
    values["tags"] = list(dict.fromkeys([*(theirs.get("tags") or []), *(ours.get("tags") or [])]))
    return DatasetCardData(**values)


def _merged_info(ours: DatasetInfo, theirs: DatasetInfo, described: set[str]) -> DatasetInfo:
    if not described:
        return ours
    if theirs.features is not None and theirs.features != ours.features:
        differing = sorted(
            name for name in {*ours.features, *theirs.features} if ours.features.get(name) != theirs.features.get(name)
        )
        raise UploadError(
            f"The repository has the split {min(described)!r} with other columns (different: {', '.join(differing)}), "
            "and the splits of a data set must have the same. Set another `hub_dataset_id`."
        )
    merged = ours.copy()
    for name in sorted(described):
        merged.splits[name] = theirs.splits[name]
    merged.dataset_size = sum(split.num_bytes or 0 for split in merged.splits.values())
    merged.download_size = None  # of files of which some have just been replaced
    return merged


def _with_split(configs: MetadataConfigs, splits: set[str]) -> MetadataConfigs:
    """With our shards among the files of the default configuration, if a card lists any; names tell them else."""
    if configs:
        default = configs.setdefault("default", {})
        files = {name: list(paths) for name, paths in sanitize_patterns(default.get("data_files", {})).items()}
        files |= {split: [f"data/{split}-*"] for split in splits}
        default["data_files"] = [{"split": str(name), "path": paths} for name, paths in files.items()]
    return configs
