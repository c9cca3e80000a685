"""What the settings of several commands have in common. Loads no heavy library."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..settings import check_finite


@dataclass(kw_only=True)
class DatasetSettings:
    """What happens to a data set that a command writes.

    Attributes:
        rows_per_shard: rows of each file, which are lost when a run is killed; 64, or 4 of videos, if not set.
        disable_tqdm: show no progress bar.
        license: of the written data set, an identifier of the Hub's; none is claimed if not set.
        push_to_hub: upload the finished data set.
        hub_dataset_id: where to; the folder's name, with the token's user, if not set.
        hub_private_repo: whether a repository that does not exist yet is made private.
        hub_token: to upload with, instead of the one that is logged in. Never recorded.
    """

    rows_per_shard: int | None = field(
        default=None, metadata={"help": "Rows of each file that is written: 64, or 4 of videos, if not set."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})
    license: str | None = field(default=None, metadata={"help": "License of the data set, as the Hub names it."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the finished data set."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Repository to upload to. Defaults to the folder's name."}
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make a new repository private."})
    hub_token: str | None = field(default=None, repr=False, metadata={"help": "Token to upload with."})

    def __post_init__(self) -> None:
        for item in fields(self):
            check_finite(item.name, getattr(self, item.name))
        check_at_least("rows_per_shard", self.rows_per_shard)
        if not self.push_to_hub and self.hub_dataset_id is not None:
            raise ValueError("`hub_dataset_id` is set, but nothing is uploaded. Set `push_to_hub` too.")


def check_at_least(name: str, value: int | None, least: int = 1) -> None:
    """Raises a ValueError for a setting that is set and too small."""
    if value is not None and value < least:
        raise ValueError(f"`{name}` is {value}; it must be at least {least}.")


def as_list(value: Any) -> list[Any] | None:
    """The entries of a setting that is a list, of which a YAML file may give a single one without brackets."""
    if value is None:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]
