"""Of what kinds the arguments of a trainer are: told before anything is loaded, whatever the settings are."""

from collections.abc import Mapping
from pathlib import Path

from ..families import Family
from ..policy.adapters import check_kind
from ..policy.index import find_index
from ..policy.loading import check_model, check_reference, check_tokenizer
from ..policy.named import is_single_file
from ..settings import check_choice, shown
from .tgo_config import TGOConfig


def check_kinds(
    model: object, ref_model: object = None, processing_class: object = None, peft_config: object = None,
    family: object = None, **functions: object,
) -> None:  # fmt: skip
    """Raises a TypeError for an argument of another kind than it has to be, before anything is loaded.

    Args:
        model: of a trainer.
        ref_model: likewise, as are all that follow; None is not passed.
        processing_class: a tokenizer.
        peft_config: of a LoRA.
        family: an object, not its class.
        functions: other arguments, which are called.
    """
    check_model(model)
    if ref_model is not None:
        check_reference(ref_model)
    if processing_class is not None:
        check_tokenizer(processing_class)
    if peft_config is not None:
        check_kind(peft_config, "peft_config")
    if family is not None and not isinstance(family, Family):
        hint = f"Write `{family.__name__}()`." if isinstance(family, type) else "Leave it out to have it looked up."
        raise TypeError(f"`family` must be an object of a `Family`, got {shown(family)}. {hint}")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"`{name}` must be a function, got `{type(function).__name__}`.")


def check_set_name(name: str, eval_dataset: object) -> None:
    """Raises a ValueError unless an evaluation set of the trainer has this name."""
    if not isinstance(eval_dataset, Mapping):
        raise ValueError(
            f"`eval_dataset` is {name!r}, and the trainer's own evaluation set has no names. Pass the data set, or a "
            "dictionary of them when the trainer is made; None evaluates its own."
        )
    check_choice("eval_dataset", name, tuple(eval_dataset))


def check_named_reference(ref_model: object, args: TGOConfig, family: Family | None) -> None:
    """Raises an OSError if there is no reference of that name, before the policy is loaded."""
    try:
        find_index(ref_model, args.model_init_dict, family)
    except OSError as error:
        raise OSError(f"`ref_model` is {ref_model!r}, which cannot be loaded: {error}") from error
    is_file = isinstance(ref_model, str) and is_single_file(ref_model) and "://" not in ref_model
    if is_file and not Path(str(ref_model)).is_file():
        raise OSError(f"`ref_model` is {ref_model!r}, and there is no such file.")
