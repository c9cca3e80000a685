"""Digests that tell whether rows, tensors, settings or the parts of a pipeline are what they were."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def fingerprint(*parts: object) -> str:
    """A hex digest of the text or bytes of all parts."""
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def task_of(prompt: str, sources: Iterable[object]) -> str:
    """What tells a prompt for some source images from the same one for others: the prompt itself, without any."""
    parts = list(sources)
    return f"{prompt}\n{fingerprint(*parts)}" if parts else prompt


def component_fingerprint(component: Any) -> str:
    """A digest of a pipeline's component.

    Of weights and configuration of a model, of vocabulary and settings of a tokenizer, of the settings of others.
    """
    if isinstance(component, nn.Module):
        tensors = stored_tensors(sorted(component.state_dict().items()))
        return fingerprint(type(component).__name__, _config_text(component), tensors_digest(tensors))
    if hasattr(component, "get_vocab"):
        return fingerprint(type(component).__name__, _tokenizer_text(component))
    config = component.to_dict() if hasattr(component, "to_dict") else getattr(component, "config", {})
    return config_fingerprint(type(component).__name__, config)


def config_fingerprint(name: str, config: Mapping[str, Any]) -> str:
    """A digest of settings, without what `from_pretrained` notes for itself: folders, versions, names of defaults."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return fingerprint(name, json.dumps(kept, sort_keys=True, default=str))


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hex digest of tensors, with their names, dtypes and shapes, in the order given."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in tensors:
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str | None:
    """A digest of the tensors in a folder's `*.safetensors`; None if it has none.

    Not of the files: the header of the same weights, saved again, may be in another order.
    """
    digests = [(path.name, tensors_digest(sorted(load_file(path).items()))) for path in folder.glob("*.safetensors")]
    return fingerprint(*sorted(digests)) if digests else None


def stored_tensors(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors behind quantised ones."""
    for name, tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            parts = tensor.__tensor_flatten__()[0]
            yield from stored_tensors((f"{name}.{part}", getattr(tensor, part)) for part in parts)
        else:
            yield name, tensor


def _tokenizer_text(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    rules.update(truncation=None, padding=None)  # no settings of its own: each call leaves its arguments here
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    sides = [tokenizer.padding_side, tokenizer.truncation_side]
    return json.dumps([rules, special, sides, tokenizer.model_max_length], sort_keys=True)


def _config_text(component: nn.Module) -> str:
    config: Any = getattr(component, "config", {})
    values: Iterable[tuple[str, Any]] = (config.to_dict() if hasattr(config, "to_dict") else dict(config)).items()
    return str(sorted((name, str(value)) for name, value in values if not name.startswith("_")))
