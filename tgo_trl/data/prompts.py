"""Rows of a prompt alone, of which the policy draws the images."""

from collections.abc import Mapping

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from ..media.embedding import ColumnError
from ..storage.fingerprints import fingerprint
from .batch import PreparedRow
from .classes import check_no_classes
from .columns import check_columns, known_columns, undecoded
from .encoded import EncodedPrompts
from .rows import BadRows, check_prompt, read_cell
from .sampler import Index, padding_like


def check_prompt_column(dataset: Dataset, column: str) -> None:
    """Raises a ValueError if a data set for training has no such column, or codes of classes there."""
    remedy = "Rename the column, or set `prompt_column` in the `AlignPropConfig`."
    check_columns("The training data set", known_columns(dataset), [column], remedy)
    if known_columns(dataset) is not None:
        check_no_classes(dataset.features, {"prompt_column": [column]})


def read_prompts(dataset: Dataset, column: str, bad: BadRows) -> dict[int, str]:
    """The prompt of each good row, by its index in the data set."""
    texts = {}
    for row, example in enumerate(undecoded(dataset, column)):
        try:
            texts[row] = read_cell(example, column, check_prompt)
        except ColumnError as error:
            bad.add(row, error.column, str(error))
    return texts


class PromptDataset(TorchDataset[PreparedRow]):
    """Encoded prompts as the trainer takes them, indexed as an [`~tgo_trl.data.encoded.EncodedDataset`] is.

    Args:
        texts: the prompts, by their index in the user's data set.
        prompts: encoded, by the same index.

    Attributes:
        usual_epoch: as of [`~tgo_trl.data.encoded.EncodedDataset`].
    """

    usual_epoch: int = 0

    def __init__(self, texts: Mapping[int, str], prompts: EncodedPrompts) -> None:
        self.texts, self.prompts = dict(texts), prompts
        self._rows = list(texts)

    @property
    def example_prompt(self) -> str:
        """The first row's prompt."""
        return self.texts[self._rows[0]]

    @property
    def fingerprint(self) -> str:
        """A digest of the prompts in their order."""
        return fingerprint(*self.texts.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index | int) -> PreparedRow:
        epoch, position = index if isinstance(index, tuple) else (self.usual_epoch, index)
        valid = position >= 0
        row = self._rows[position if valid else padding_like(position)]
        return {
            "row": row,
            "epoch": epoch,
            "valid": valid,
            "prompt": self.prompts[row],
            "prompt_text": self.texts[row],
        }
