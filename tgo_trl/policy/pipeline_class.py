"""The class that a pipeline is loaded under, where the settings name another one than its `model_index.json` does."""

import inspect
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch import nn

from ..families import FAMILIES, Family, find_published_family
from ..messages.values import did_you_mean, shown, shown_path
from ..settings import PIPELINE_CLASS
from ..storage.records import RUN_NAME
from .part_class import class_in_index, is_part

logger = logging.getLogger(__name__)


def find_pipeline_class(name: object) -> type[DiffusionPipeline]:
    """The class of diffusers that has a name; raises a ValueError if there is none, or no family for it."""
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, DiffusionPipeline):
        known = [family for family in FAMILIES if hasattr(diffusers, family)]
        raise ValueError(
            f"`pipeline_class` is {shown(name)}, which is no pipeline of diffusers {diffusers.__version__}."
            f"{did_you_mean(name, known)} Write the name of its class, such as 'WanImageToVideoPipeline', or leave it "
            "out."
        )
    return found


def check_pipeline_class(
    name: object, index: Mapping[str, Any], given: Mapping[str, Any], model: str, family: type[Family] | None = None
) -> type[DiffusionPipeline]:
    """The class, which takes the parts that a pipeline has.

    Args:
        name: of the class.
        index: the pipeline's `model_index.json`.
        given: keyword arguments that it is loaded with, parts among them.
        model: Hub id or folder, for messages.
        family: that the user gives; looked up if None.

    Raises:
        ValueError: if there is no such class, no family for it, or parts are missing, left over, or of other networks.
    """
    found = find_pipeline_class(name)
    if family is None:
        try:
            family = find_published_family(found.__name__)
        except ValueError as error:
            raise ValueError(f"`pipeline_class` is {shown(name)}. {error}") from error
    why = _why_unfit(found, family, index, given)
    if why is not None:
        raise ValueError(
            f"`pipeline_class` is {shown(name)}, and {shown_path(model)}, a `{index.get('_class_name')}`, {why}. Name "
            "a class that takes the same parts, another model, or leave it out."
        )
    return found


def _why_unfit(
    found: type[DiffusionPipeline], family: type[Family], index: Mapping[str, Any], given: Mapping[str, Any]
) -> str | None:
    """A clause; None if parts and class go together."""
    parameters = {name: it for name, it in inspect.signature(found.__init__).parameters.items() if name != "self"}
    parts = {name: entry for name, entry in index.items() if is_part(entry)} | dict(given)
    required = [name for name, it in parameters.items() if it.default is it.empty and it.kind is not it.VAR_KEYWORD]
    missing = [name for name in required if name not in parts and name not in found._optional_components]
    if missing:
        return f"has no {', '.join(f'`{name}`' for name in missing)}, which that class needs"
    networks = {name: network for name, entry in parts.items() if (network := _network_class(entry)) is not None}
    unread = [name for name in networks if name not in parameters]
    if unread:
        return f"has a `{unread[0]}`, which that class does not take"
    types: Any = found._get_signature_types()
    for name, network in networks.items():
        taken = tuple(it for it in types[name] if isinstance(it, type) and issubclass(it, nn.Module))
        if name in family.network_names and taken and not issubclass(network, taken):
            return f"has a `{network.__name__}` as its `{name}`, which that class does not call"
    return None


def _network_class(entry: Any) -> type[nn.Module] | None:
    """The class of a part that is a network of diffusers."""
    named = class_in_index(entry)
    return named if named is not None and issubclass(named, nn.Module) else None


def check_instance(pipeline: DiffusionPipeline, init_kwargs: Mapping[str, Any] | None) -> None:
    """Raises a ValueError if a pipeline that is passed is not of the class that the settings name."""
    name = (init_kwargs or {}).get(PIPELINE_CLASS)
    if name is not None and name != type(pipeline).__name__:
        raise ValueError(
            f"`pipeline_class` is {shown(name)}, and the pipeline that was passed is a `{type(pipeline).__name__}`. "
            f"Pass one that was loaded by `{name}.from_pretrained`, or leave `pipeline_class` out."
        )


def chosen_class(name: str | None, adapter: str | None) -> str | None:
    """The class that the settings name, else the one that [`recorded_class`] finds; raises as that one."""
    return name or recorded_class(adapter)


def recorded_class(adapter: str | None) -> str | None:
    """The class of a run's pipeline, as the record beside its adapter says; None if it is the one that its index names.

    Another one was set, or the run was passed a pipeline of it.

    Args:
        adapter: folder, file or Hub id. Of a Hub that cannot be reached, a warning says that the record is not known.

    Raises:
        ValueError: if the Hub refuses to say whether there is a record.
    """
    path = None if adapter is None else _record(adapter)
    try:
        record = json.loads(path.read_text("utf-8")) if path is not None and path.is_file() else {"config": {}}
        name = record["config"].get(PIPELINE_CLASS) or record.get(PIPELINE_CLASS)
    except (AttributeError, KeyError, TypeError, ValueError):  # of another program, or damaged
        return None
    return name if isinstance(name, str) else None


def _record(adapter: str) -> Path | None:
    path = Path(adapter)
    if path.exists():
        return (path if path.is_dir() else path.parent) / RUN_NAME
    try:
        return Path(hf_hub_download(adapter, RUN_NAME))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):  # the first is an EntryNotFoundError too
        _warn_of_unread(adapter)
        return None
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
    except HfHubHTTPError as error:
        why = error.server_message or f"status {error.response.status_code}"
        raise ValueError(
            f"The Hub does not say what {adapter} was trained under ({RUN_NAME}): {why.rstrip('.')}. Mend "
            "that, or set `pipeline_class`."
        ) from error


@cache
def _warn_of_unread(adapter: str) -> None:
    """Warns once: commands ask several times."""
    logger.warning(
        "%s of %s is neither in the cache nor, now, to be had from the Hub. Set `pipeline_class` if the adapter was "
        "trained under another class than that of the model's index.",
        RUN_NAME,
        adapter,
    )
