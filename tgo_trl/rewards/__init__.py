"""Rewards: from prompts and images to scores. Models by name, functions of the user's by file or module."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..messages.values import did_you_mean

if TYPE_CHECKING:
    from .base import NoScore, Reward, checked_scores
    from .ensemble import Ensemble, Member

REWARDS = {
    "aesthetic": "aesthetic:Aesthetic",
    "clip_score": "clip_score:ClipScore",
    "editscore": "editscore:EditScore",
    "hpsv2.1": "hpsv2:HPSv2",
    "hpsv3": "hpsv3:HPSv3",
    "imagereward": "imagereward:ImageReward",
    "ocr": "ocr:OCRAccuracy",
    "pickscore": "pickscore:PickScore",
    "unifiedreward2": "unifiedreward:UnifiedReward2",
    "unifiedreward_edit": "editscore:UnifiedRewardEdit",
    "videoreward": "videoreward:VideoReward",
    "videoscore2": "videoscore2:VideoScore2",
    "vlm": "vlm:RubricReward",
}
"""Module and class of each reward model; imported when it is asked for."""

_EXPORTS = {
    "Ensemble": "ensemble", "Member": "ensemble", "NoScore": "base", "Reward": "base", "checked_scores": "base",
}  # fmt: skip

__all__ = ["REWARDS", "Ensemble", "Member", "NoScore", "Reward", "checked_scores", "load_reward", "load_rewards"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def load_reward(spec: str, **kwargs: Any) -> "Reward":
    """A reward by name, or a function of the user's.

    Args:
        spec: a name in `REWARDS`, or `"path/to/file.py:function"`, or `"package.module:function"`. The code that is
            named runs on this machine. A class in place of a function is called once, for an object to call.
        kwargs: for the constructor of a reward model, or of the user's class.

    Returns:
        A callable with `name`, `version` and `license`; weights are loaded when it is first called.

    Raises:
        ValueError: if the name is unknown, the function cannot be imported or is none, a plain function is given
            settings, or a class other ones than it takes.
    """
    if ":" in spec:
        return _load_user_reward(spec, kwargs)
    if spec not in REWARDS:
        raise ValueError(
            f"There is no reward named {spec!r}.{did_you_mean(spec, REWARDS)} Known are {', '.join(REWARDS)}. For a "
            "function of your own write 'path/to/file.py:function' or 'package.module:function'."
        )
    module, _, name = REWARDS[spec].partition(":")
    reward: Reward = _construct(spec, getattr(importlib.import_module(f".{module}", __name__), name), kwargs)
    return reward


def load_rewards(
    specs: Iterable[str], kwargs: Mapping[str, Mapping[str, Any]], have_sources: bool, remedy: str
) -> dict[str, "Reward"]:
    """Rewards by their specs, each as [`load_reward`] gives it.

    Args:
        specs: of the rewards.
        kwargs: settings, by spec.
        have_sources: whether what is scored was made from images, which rewards of edits look at.
        remedy: what to do about a reward that needs them where there are none, as a sentence.

    Raises:
        ValueError: as [`load_reward`], and if a reward judges edits and there are no source images.
    """
    from .base import check_sources

    rewards = {spec: load_reward(spec, **kwargs.get(spec, {})) for spec in specs}
    check_sources(rewards, have_sources, remedy)
    return rewards


def _construct(spec: str, reward_class: type, kwargs: dict[str, Any]) -> Any:
    try:
        return reward_class(**kwargs)
    except TypeError as error:
        names = ", ".join(_argument_names(reward_class))
        raise ValueError(
            f"The reward {spec!r} cannot be made with {', '.join(kwargs) or 'no settings'} ({error}). It takes "
            f"{names or 'no settings'}.{_how_to_set(spec) if names else ''}"
        ) from error


def _how_to_set(spec: str) -> str:
    return f" On a command line, `--reward_kwargs '{json.dumps({spec: {'NAME': 'VALUE'}})}'` sets them."


def _argument_names(reward_class: type) -> list[str]:
    """What the constructor takes, and what it hands on as `**kwargs` to those of the classes it extends."""
    names: dict[str, None] = {}
    kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    for base in reward_class.__mro__[:-1]:  # without `object`
        if "__init__" in vars(base):
            _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names.update(dict.fromkeys(parameter.name for parameter in parameters if parameter.kind in kinds))
            if all(parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
            kinds = {inspect.Parameter.KEYWORD_ONLY}  # a subclass passes the others itself
    return list(names)


def _load_user_reward(spec: str, kwargs: dict[str, Any]) -> "Reward":
    from .base import UserReward

    source, _, name = spec.rpartition(":")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # the user's code may raise anything
        hint = "" if source.endswith(".py") else " If it is a file, write its path: 'path/to/file.py:function'."
        raise ValueError(f"The reward {spec!r} cannot be imported ({type(error).__name__}: {error}).{hint}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        own = [key for key in functions if getattr(vars(module)[key], "__module__", None) == module.__name__]
        raise ValueError(
            f"{source!r} has no function {name!r}. It has {', '.join(own or functions) or 'none'}."
            f"{did_you_mean(name, functions)} Name a function that takes prompts and images and returns a list of "
            "scores."
        )
    if isinstance(function, type):
        function = _construct(spec, function, kwargs)
    elif kwargs:
        raise ValueError(
            f"The reward {spec!r} is a function, which takes no settings ({', '.join(kwargs)}). Leave them out, or "
            "write a class with these arguments and `__call__(self, prompts, images)`."
        )
    return UserReward(function, name, _version(spec, module))


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"tgo_trl_reward_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    spec.loader.exec_module(module)
    return module


def _version(spec: str, module: ModuleType) -> str:
    """The file's name, as paths tell of the user's machine, and its hash; the module's own version if it has one."""
    file = getattr(module, "__file__", None)
    if file is None:
        return spec
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    source, _, name = spec.rpartition(":")
    return f"{Path(source).name if source.endswith('.py') else source}:{name}@sha256:{digest}"
