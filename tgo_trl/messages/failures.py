"""Which failures the user can mend, and how they are said in one line. Loads no heavy library.

Everything else is a fault of the program, and keeps its traceback.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER_ERRORS = (ValueError, OSError, ImportError)
"""What the package raises for settings and data that cannot work; most of what libraries raise for them derives from
these too: damaged JSON and Parquet, text in another encoding, errors of the Hub and of the connection."""

FOREIGN = frozenset(
    {
        "SafetensorError", "DatasetsError", "DatasetGenerationError", "ArrowException", "HTTPError", "RequestError",
        "OutOfMemoryError", "BadZipFile", "TarError", "LZMAError", "YAMLError",
    }
)  # fmt: skip
"""Classes of libraries, by name, which derive from none of [`USER_ERRORS`]."""

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed writing file")
"""What writers in other languages make of a full disk."""

EXTRAS = {
    "av": "tgo_trl[video]", "ftfy": "tgo_trl[video]", "onnxruntime": "tgo_trl[ocr]", "rapidocr": "tgo_trl[ocr]",
    "sklearn": "tgo_trl[demo]", "tensorboard": "tgo_trl[tensorboard]",
}  # fmt: skip
"""Packages that come with one of this package's extras."""


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for any other."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names or isinstance(error, MemoryError):
        return (
            f"{_line(error) or 'Out of memory'}. Make batches smaller (`per_device_train_batch_size` with "
            "`gradient_accumulation_steps`, `encode_batch_size`, `batch_size`), or the images."
        )
    if not isinstance(error, USER_ERRORS) and not names & FOREIGN:
        return None
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tgo_trl"):
        package = error.name.partition(".")[0]
        return f"{_line(error)}. Install it with `pip install {EXTRAS.get(package, package)}`."
    if names & {"DatasetsError", "DatasetGenerationError"} and error.__cause__ is not None:
        return f"{_line(error)} {type(error.__cause__).__name__}: {_line(error.__cause__)}"
    return _line(error) or type(error).__name__


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Within, a disk that is full is an error that names what was being written.

    Raises:
        OSError: in place of what the writer raised.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) or getattr(error, "filename", None) is not None:
            raise
        number = error.errno if isinstance(error, OSError) and error.errno in FULL else errno.ENOSPC
        raise OSError(number, f"{os.strerror(number)}: the disk is full, or a quota is used up", str(path)) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, of whatever class, is of a disk without space."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error).lower()
    return any(part in text for part in FULL_TEXTS)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
