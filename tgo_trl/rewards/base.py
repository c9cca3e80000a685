"""What a reward is, and what the reward models here share: batches, devices, Hub files, checked scores."""

import hashlib
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from accelerate import PartialState
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import Tensor, nn

from ..data.rows import check_score
from ..media.images import load_image
from ..messages.public import public_name
from ..precision import as_dtype, default_dtype
from ..storage.files import file_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoScore:
    """In place of a score, where a reward has none for a row and the next rows may have one.

    Attributes:
        reason: as a clause.
    """

    reason: str


Reward: TypeAlias = Callable[..., Sequence[float | NoScore]]
"""`N` prompts and `N` images (for a video reward: lists of frames) to `N` scores, higher is better.

One that judges edits says so with `reads_sources = True`, or with a parameter `sources` without a default: it is also
given `sources`, the images that each row's was made from, as `N` lists of images. One of videos that says
`reads_fps = True`, or has such a parameter `fps`, is given `fps`, how many frames of them are shown a second, a float.
"""


class DifferentiableReward(Protocol):
    """A reward that can also be climbed: it says so, and scores pixels with gradient."""

    differentiable: bool

    def score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """Float32 `[N]`, higher is better, with the gradient of `pixels`, float `[N, 3, H, W]` in [0, 1]."""


class ModelReward(ABC):
    """A reward that is a network: loaded at the first call, called in batches, without gradient.

    The score of a row does not depend on the rows it is called with, up to the rounding of the kernels, which may
    differ with the size of the batch.

    Args:
        model_id: Hub id of the weights, or a local folder.
        revision: branch, tag or commit on the Hub; the newest by default.
        batch_size: rows per forward pass.
        device: where the network runs; by default this process's GPU, else the CPU.
        dtype: of the network, also as a string; by default bfloat16 on a GPU that has it, else float32. What is
            summed at the end (cosines, linear heads) is float32 in any case.

    Attributes:
        name: as in `REWARDS`.
        license: of the weights, or what is known of it.
        differentiable: whether [`score_pixels`] has a gradient.
        reads_sources: whether it judges edits, and so is called with the images that each row's was made from.
    """

    name: ClassVar[str]
    license: str
    differentiable: ClassVar[bool] = False
    reads_sources: ClassVar[bool] = False

    def __init__(
        self,
        model_id: str,
        *,
        revision: str | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
        self.model_id = model_id
        self.revision = revision
        self.batch_size = batch_size
        self.device = torch.device(device) if device is not None else torch.device(PartialState().device)
        self.dtype = as_dtype(dtype) if dtype is not None else default_dtype(self.device)
        self._commit: str | None = None
        self._is_loaded = False

    @property
    def version(self) -> str:
        """`id@commit` once loaded from the Hub, `id@revision` before; of a local folder as [`local_version`] has it."""
        return self._version_of()

    def _version_of(self, *inside: str) -> str:
        """The same, of a local folder with files or folders inside it alone."""
        if Path(self.model_id).exists():
            return local_version(self.model_id, *inside)
        return f"{self.model_id}@{self._commit or self.revision or 'main'}"

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None
    ) -> list[float]:
        """The score of each row.

        Args:
            prompts: `N` prompts.
            images: `N` images, as [`load_image`] takes them.
            sources: `N` lists of images that those were made from, for a reward that [`reads_sources`].

        Raises:
            ValueError: if there are not as many prompts as images, or an image cannot be read.
        """
        check_rows(prompts, images)
        if not prompts:
            return []
        self._make_ready()
        scores: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), self.batch_size):
                rows = slice(start, start + self.batch_size)
                if self.reads_sources and sources is not None:
                    scores += self._score_edits(prompts[rows], images[rows], sources[rows]).tolist()
                else:
                    scores += self._score_batch(prompts[rows], images[rows]).tolist()
        return scores

    def score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """The score of each row, float32 `[N]`, with the gradient of `pixels`; all rows at once.

        As of images with these pixels, but for what rounding to 8 bits does to those: scores differ by as much as they
        would between two images that differ by a shade here and there.

        Args:
            prompts: `N` prompts.
            pixels: float `[N, 3, H, W]` in [0, 1].

        Raises:
            ValueError: if this reward has no gradient.
        """
        check_differentiable(self)
        check_rows(prompts, pixels)
        self._make_ready()
        return self._score_pixels(prompts, pixels.to(self.device, torch.float32)).float()

    def release(self) -> None:
        """Makes room on the device: networks wait on the CPU for the next call."""
        self._place(torch.device("cpu"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_ready(self) -> None:
        if not self._is_loaded:
            try:
                self._load()
            except OSError as error:
                if error.errno is not None:  # of the disk, which says what it is
                    raise
                reason = " ".join(str(error).split()).rstrip(".")
                raise OSError(
                    f"The reward {self.name!r} cannot be loaded ({reason}). Load it once where the Hub can be reached, "
                    "or name folders that have it in its settings."
                ) from error
            self._is_loaded = True
        self._place(self.device)

    def _place(self, device: torch.device) -> None:
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)

    @abstractmethod
    def _load(self) -> None:
        """Loads the weights and puts them on `device`, in `dtype`."""

    @abstractmethod
    def _score_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        """Float `[N]`, the scores of one batch."""

    def _score_edits(self, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]]) -> Tensor:
        """Float `[N]`, the scores of one batch beside what it was made from, if it [`reads_sources`]."""
        raise NotImplementedError

    def _score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """The same of float32 pixels `[N, 3, H, W]` in [0, 1] on `device`, with gradient, if [`differentiable`]."""
        raise NotImplementedError

    def _weights_file(self, filename: str) -> Path:
        """A file of the repository that `model_id` names, or of the folder."""
        path, self._commit = hub_file(self.model_id, filename, self.revision)
        return path


def local_version(name: str, *inside: str) -> str:
    """The name of a local folder or file, without its path, and a digest of its files; a Hub id as it is.

    Hidden files and texts (`.md`) do not count, nor what is in folders within it.

    Args:
        name: a path, or a Hub id.
        inside: what counts instead of the folder's own files: files or folders within it.
    """
    path = Path(name)
    if not path.exists():
        return public_name(name)
    found: list[tuple[str, int, int]] = []
    for place in [path / part for part in inside] or [path]:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        shown = (it for it in files if it.is_file() and not it.name.startswith(".") and it.suffix != ".md")
        found += [(str(it), it.stat().st_size, it.stat().st_mtime_ns) for it in shown]
    return f"{public_name(name)}@sha256:{_files_digest(tuple(found))}"


@lru_cache(maxsize=64)
def _files_digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of names and contents; size and time of change tell whether files are read again."""
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(f"{Path(path).name}:{file_digest(Path(path))};".encode())
    return digest.hexdigest()[:12]


class PromptReward(ModelReward):
    """A reward model that reads the first tokens of prompts, and says of the first prompt it cuts that it does."""

    _tokenizer: Any
    _max_tokens: int
    _has_warned = False

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask, int64 `[N, max_tokens]`: padded to one length, so no row depends on the others'."""
        texts, length = [self._clean(prompt) for prompt in prompts], self._max_tokens
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        cut = [prompt for prompt, e in zip(prompts, tokens.encodings or (), strict=False) if e.overflowing]
        if cut and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s reads the first %d tokens of a prompt and ignores the rest, %s",
                self.name, length, self._name_cut(cut[0]),
            )  # fmt: skip
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _clean(self, prompt: str) -> str:
        """The prompt as the tokenizer gets it."""
        return prompt

    def _name_cut(self, prompt: str) -> str:
        """How the warning ends that a prompt is cut."""
        return f"as of {shorten(prompt)} (said once)."


class UserReward:
    """A function of the user's, with the bookkeeping that the reward models have.

    Args:
        function: the reward.
        name: for messages and cards, where the function has no attribute `name`.
        version: likewise.
    """

    def __init__(self, function: Reward, name: str, version: str) -> None:
        self.function = function
        self.name = str(getattr(function, "name", name))
        self.version = str(getattr(function, "version", version))
        self.license = str(getattr(function, "license", "not stated"))
        self.differentiable, self.score_pixels = is_differentiable(function), getattr(function, "score_pixels", None)
        self.reads_sources, self.reads_fps = reads_sources(function), reads_fps(function)
        self.fps = getattr(function, "fps", None)

    def __call__(self, prompts: Sequence[str], images: Sequence[Any], **given: Any) -> Sequence[float | NoScore]:
        """What the function returns, unchecked."""
        return self.function(prompts, images, **given)


def reads_sources(reward: Any) -> bool:
    """Whether a reward judges edits: it says so by `reads_sources`, or has a parameter `sources` without a default."""
    return _asks_for(reward, "sources")


def reads_fps(reward: Any) -> bool:
    """Whether a reward is to be told the rate of videos: by `reads_fps`, or a parameter `fps` without a default."""
    return _asks_for(reward, "fps")


def _asks_for(reward: Any, name: str) -> bool:
    if hasattr(reward, f"reads_{name}"):
        return bool(getattr(reward, f"reads_{name}"))
    try:
        parameter = inspect.signature(reward).parameters.get(name)
        return parameter is not None and parameter.default is parameter.empty
    except (TypeError, ValueError):  # of what is written in C
        return False


def check_sources(rewards: Mapping[str, Reward], have_sources: bool, remedy: str) -> None:
    """Raises a ValueError if a reward judges edits, and there are no images that they were made from.

    Args:
        rewards: by name.
        have_sources: whether each row has them.
        remedy: what to do, as a sentence.
    """
    for name, reward in rewards.items():
        if reads_sources(reward) and not have_sources:
            raise ValueError(
                f"The reward {name!r} compares an image with the one that it was made from, and there are none. "
                f"{remedy}"
            )


DRAWN_FOR = "the videos are drawn for"
"""Why [`check_rates`] knows of a rate that a pipeline is for."""


def check_rates(rewards: Mapping[str, Reward], rate: float | None, known: str) -> None:
    """Raises a ValueError if a reward takes videos for faster or slower than they are, and would see other frames.

    Also if one asks for a rate that is not known.

    Args:
        rewards: by name.
        rate: of the videos, frames per second; None if it is not known.
        known: why it is known, a clause that the rate ends.
    """
    for name, reward in rewards.items():
        if rate is None and reads_fps(reward):
            raise ValueError(
                f"The reward {name!r} asks for `fps`, the frames per second of videos, which are not known here. Set "
                "`fps` beside the videos, or give its parameter a default where it scores images too."
            )
        own = getattr(reward, "fps", None)
        if rate is not None and isinstance(own, (int, float)) and own != rate:
            raise ValueError(
                f"The reward {name!r} has `fps={own:g}`, and {known} {rate:g} a second. Set its `fps` to {rate:g}."
            )


def checked_scores(
    reward: Reward, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None,
    fps: float | None = None,
) -> list[float]:  # fmt: skip
    """The reward's scores as floats, one per row. A reward is not called without rows.

    Raises:
        ValueError: if it does not return one finite number per row, naming the reward and the row.
    """
    scores = []
    for row, score in enumerate(scores_or_none(reward, prompts, images, sources, fps)):
        if isinstance(score, NoScore):
            name = reward_name(reward)
            raise ValueError(f"The reward {name!r}, row {row} (prompt {shorten(prompts[row])}): {score.reason}.")
        scores.append(score)
    return scores


def scores_or_none(
    reward: Reward, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None,
    fps: float | None = None,
) -> list[float | NoScore]:  # fmt: skip
    """Likewise, with the [`NoScore`] of rows that the reward has none for.

    Args:
        reward: given the sources if it reads them.
        prompts: `N` prompts.
        images: `N` images, or lists of frames.
        sources: `N` lists of images that those were made from; None if there are none.
        fps: of lists of frames, frames per second; None if it is not known.
    """
    check_rows(prompts, images)
    if not prompts:
        return []
    name = reward_name(reward)
    check_rates({name: reward}, fps, "the videos are shown at")
    check_sources({name: reward}, sources is not None, "Score rows that have a column of source images.")
    given: dict[str, Any] = {"sources": sources} if reads_sources(reward) else {}
    given |= {"fps": fps} if reads_fps(reward) else {}
    returned: Any = reward(prompts, images, **given)
    advice = f"A reward takes {len(prompts)} prompts and as many images, and returns a list of as many numbers."
    if isinstance(returned, (str, bytes, dict)) or not hasattr(returned, "__iter__"):
        raise ValueError(f"The reward {name!r} returned a `{type(returned).__name__}`, not a list of scores. {advice}")
    try:
        values = list(returned)
    except TypeError as error:  # a tensor or an array of no dimension
        raise ValueError(f"The reward {name!r} returned one number, not a list of scores. {advice}") from error
    if len(values) != len(prompts):
        raise ValueError(f"The reward {name!r} returned {len(values)} scores for {len(prompts)} rows. {advice}")
    scores: list[float | NoScore] = []
    for row, (value, prompt) in enumerate(zip(values, prompts, strict=True)):
        try:
            scores.append(value if isinstance(value, NoScore) else check_score(value))
        except ValueError as error:
            raise ValueError(f"The reward {name!r}, row {row} (prompt {shorten(prompt)}): {error}. {advice}") from error
    return scores


def check_rows(prompts: Sequence[str], images: Sequence[Any] | Tensor) -> None:
    """Raises a ValueError if there is not one prompt, a string, for each image."""
    if isinstance(prompts, str):
        raise ValueError("`prompts` is a string. Pass a list of prompts, one for each image.")
    if len(prompts) != len(images):
        raise ValueError(f"There are {len(prompts)} prompts but {len(images)} images. Pass one prompt for each image.")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            kind = "missing (None)" if prompt is None else f"a `{type(prompt).__name__}`"
            raise ValueError(f"The prompt of row {row} is {kind}. Pass a list of strings.")


def reward_name(reward: Any) -> str:
    """What messages call a reward."""
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__))


def load_images(images: Sequence[Any]) -> list[Image.Image]:
    """The images as upright RGB.

    Raises:
        ValueError: if one cannot be read, naming its place in the batch.
    """
    loaded = []
    for i, image in enumerate(images):
        try:
            loaded.append(load_image(image))
        except ValueError as error:
            raise ValueError(f"Image {i} of a batch of {len(images)}: {error}.") from error
    return loaded


DIFFERENTIABLE = ("aesthetic", "clip_score", "hpsv2.1", "imagereward", "pickscore")
"""Those rewards of this package that give gradients."""


def is_differentiable(reward: Any) -> bool:
    """Whether a reward says that it is, and has a `score_pixels`; see [`DifferentiableReward`]."""
    return getattr(reward, "differentiable", False) is True and callable(getattr(reward, "score_pixels", None))


def check_differentiable(reward: Any) -> None:
    """Raises a ValueError if a reward cannot give gradients, naming those that can."""
    if is_differentiable(reward):
        return
    raise ValueError(
        f"The reward {reward_name(reward)!r} gives scores without a gradient. Those that can be climbed are "
        f"{', '.join(DIFFERENTIABLE)}, and objects of your own that have `differentiable = True` and "
        "`score_pixels(prompts, pixels)`, which takes a float tensor [N, 3, H, W] in [0, 1] and returns a tensor [N]."
    )


def checked_pixel_scores(reward: DifferentiableReward, prompts: Sequence[str], pixels: Tensor) -> Tensor:
    """The reward's scores of pixels, float32 `[N]`, with gradient; whether they are finite is not looked at.

    Raises:
        ValueError: if it returns anything else, naming the reward.
    """
    scores: Any = reward.score_pixels(prompts, pixels)
    wanted = f"`score_pixels` has to return a floating-point tensor of shape [{len(prompts)}] that holds a gradient"
    if not isinstance(scores, Tensor):
        raise ValueError(f"The reward {reward_name(reward)!r} returned a `{type(scores).__name__}`; {wanted}.")
    if scores.shape != (len(prompts),) or not scores.is_floating_point():
        raise ValueError(
            f"The reward {reward_name(reward)!r} returned {scores.dtype} of shape {list(scores.shape)}; {wanted}."
        )
    if pixels.requires_grad and not scores.requires_grad:
        raise ValueError(
            f"The reward {reward_name(reward)!r} returned scores without a gradient of the pixels, as of a call within "
            f"`torch.no_grad()` or through NumPy; {wanted}."
        )
    return scores.float()


def hub_file(model_id: str, filename: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Where a file of a local folder or of a Hub repository is on this disk, and the commit it is from if known.

    Raises:
        ValueError: if `model_id` is a folder without that file.
    """
    if Path(model_id).is_dir():
        path = Path(model_id, filename)
        if not path.is_file():
            raise ValueError(f"The folder {model_id!r} has no file {filename!r}. Put it there, or name another folder.")
        return path, None
    path = Path(hf_hub_download(model_id, filename, revision=revision))
    parts = path.parts  # .../models--owner--name/snapshots/<commit>/<file>
    return path, parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def load_pt_file(path: Path) -> Any:
    """What a `.pt` or `.pth` file holds, on the CPU. Such files are pickles; only tensors and containers are read.

    Raises:
        ValueError: if the file holds anything else, or is broken.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles fail with anything
        raise ValueError(
            f"{path.name!r} cannot be read as a file of weights ({type(error).__name__}: {error}). Download it again; "
            "a file that holds more than tensors is refused, since to read it would be to run it."
        ) from error


def shorten(prompt: str) -> str:
    """The prompt as a literal of at most about 60 characters, for messages."""
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")
