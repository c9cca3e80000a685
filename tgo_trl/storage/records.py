"""What stands beside the shards of a data set: its card, and the settings that it was made with."""

import json
from pathlib import Path
from typing import Any

CARD_NAME = "README.md"
GENERATION_NAME = "generation.json"
SCORING_NAME = "scoring.json"
CONVERSION_NAME = "conversion.json"
RUN_NAME = "tgo_config.json"
"""Of a run of training, beside its weights."""
RECORD_NAMES = (GENERATION_NAME, SCORING_NAME, CONVERSION_NAME)
"""The settings of whatever the package writes in shards."""


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """The settings that a folder was made with, and what was found out on the way; None if there are none."""
    path = folder / name
    if not path.is_file():
        return None
    record = json.loads(path.read_text("utf-8"))
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ValueError(f"{str(path)!r} holds no settings: it is damaged, or from something else. Delete the folder.")
    return record
