"""The adapter's model card: the base that it names, and the section on strength that is put into it."""

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ...cards.sections import with_section
from ...hub.repositories import Destination
from ...hub.uploads import Operation, Upload, Uploads
from ...messages.values import shown_path
from ...storage.files import replace_file, sweep
from ...storage.fingerprints import weights_fingerprint
from ...storage.records import CARD_NAME

SECTION = "strength"
PICTURE_NAME = "strength.png"
_LOADED_FROM = re.compile(r"from_(?:pretrained|single_file)\(\"([^\"\n]+)\"")


def check_adapter(adapter: str) -> None:
    """Raises a ValueError for a folder here that holds no adapter."""
    path = Path(adapter)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ValueError(
            f"`adapter_name_or_path` is {shown_path(adapter)}, a folder without a LoRA adapter (`*.safetensors`). Name "
            "the folder that a training run has saved to. A run with `use_peft=False` has no adapter, and no scale."
        )


def find_base(adapter: str) -> str:
    """Hub id or folder of the base that an adapter's card names.

    Raises:
        ValueError: if there is no card, or none that names a base which is on the Hub or here.
    """
    remedy = "Set `model_name_or_path`."
    card = read_card(adapter)
    if card is None:
        raise ValueError(f"The adapter {shown_path(adapter)} has no card (README.md) that names its base. {remedy}")
    data: Any = ModelCard(card, ignore_metadata_errors=True).data
    named = data.base_model
    named = named[0] if isinstance(named, list) and named else named
    if isinstance(named, str) and named:
        return named
    found = _LOADED_FROM.search(card)
    if found is None:
        raise ValueError(f"The card of the adapter {shown_path(adapter)} names no base. {remedy}")
    if not Path(found[1]).exists():
        raise ValueError(
            f"The card of the adapter {shown_path(adapter)} names the base {shown_path(found[1])}, which is not here. "
            f"{remedy}"
        )
    return found[1]


def read_card(adapter: str) -> str | None:
    """The text of an adapter's card, here or on the Hub; None if it has none, or it cannot be fetched."""
    folder = local_folder(adapter)
    if folder is None:
        try:
            path = Path(hf_hub_download(adapter, CARD_NAME))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled):
            return None
    else:
        path = folder / CARD_NAME
    return path.read_bytes().decode("utf-8") if path.is_file() else None


def local_folder(adapter: str) -> Path | None:
    """The folder of an adapter that is here; None for one on the Hub."""
    path = Path(adapter)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


def write_card(adapter: str, section: str, output_dir: Path) -> Path:
    """Puts the section into the adapter's card, or, of one on the Hub, into a copy of it; returns the path.

    Args:
        adapter: folder, file or Hub id.
        section: Markdown, which shows the picture in `output_dir` as one beside the card.
        output_dir: where the picture is, and the copy goes.
    """
    folder = local_folder(adapter) or output_dir
    card = with_section(read_card(adapter) or "", SECTION, section, weights_fingerprint(folder))
    sweep(folder)  # of what a killed run left
    if folder.resolve() != output_dir.resolve():
        replace_file(folder / PICTURE_NAME, lambda path: shutil.copyfile(output_dir / PICTURE_NAME, path))
    replace_file(folder / CARD_NAME, lambda path: path.write_bytes(card.encode("utf-8")))
    return folder / CARD_NAME


def push_card(card: Path, section: str, destination: Destination) -> None:
    """Uploads card and picture in one commit; the text that the repository's own card has beside the section stays.

    Raises:
        UploadError: if it fails; the files are safe, and the same command tries again.
    """

    def operations(head: str) -> list[Operation]:
        text = card.read_text("utf-8")
        if CARD_NAME in destination.files(head):
            text = with_section(destination.text(CARD_NAME, head), SECTION, section, weights_fingerprint(card.parent))
        picture = CommitOperationAdd(PICTURE_NAME, str(card.with_name(PICTURE_NAME)))
        return [CommitOperationAdd(CARD_NAME, text.encode("utf-8")), picture]

    upload = Upload(
        destination,
        operations,
        message="Add the strength of the adapter",
        num_bytes=card.with_name(PICTURE_NAME).stat().st_size,
        remedy=f"The card is safe in {str(card)!r}; the same command uploads it, without measuring again.",
    )
    Uploads().start(upload, is_awaited=True).result()
