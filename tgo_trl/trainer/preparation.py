"""From the user's data sets to what the trainer reads: checks, threshold, encoding."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from huggingface_hub.constants import HF_HOME

from ..data.encoded import EncodedDataset, encode_images, encode_prompts, scan_rows
from ..data.rows import BadRows, Columns
from ..data.stream import StreamDataset, scan_stream
from ..labels.rule import PER_PROMPT, LabelRule, fit_label_rule
from ..media.origin import Origin, find_origin
from ..media.readers import ImageReader, MediaReader, VideoReader
from ..media.types import Size
from ..policy.draws import EVALUATION_EPOCH
from ..policy.encoders import FrozenEncoders
from ..storage.fingerprints import fingerprint
from ..storage.shards import ShardWriter
from .tgo_config import TGOConfig

PreparedDataset = EncodedDataset | StreamDataset


def training_block(args: TGOConfig, num_sizes: int) -> int:
    """How many rows of one image size come together, and are padded to: an update's, or what the processes share."""
    if num_sizes > 1:
        return args.rows_per_update
    return args.train_batch_size * args.world_size if args.world_size > 1 else 1


def evaluation_block(args: TGOConfig, num_sizes: int) -> int:
    """As [`training_block`], without updates."""
    return args.eval_batch_size * args.world_size if num_sizes > 1 or args.world_size > 1 else 1


class DataPreparer:
    """Prepares training and evaluation sets alike; the label rule is fitted on the training set.

    Args:
        args: the run's settings.
        encoders: of the pipeline.
        sizes: of the images; each is brought to the nearest.
    """

    def __init__(self, args: TGOConfig, encoders: FrozenEncoders, sizes: Sequence[Size]) -> None:
        self.args = args
        self.encoders = encoders
        self.sizes = sizes
        video_format = encoders.family.video_format
        self.reader: MediaReader = ImageReader() if video_format is None else VideoReader(video_format)
        argument = f"{self.reader.kind}_column"
        self.columns = Columns(args.prompt_column, getattr(args, argument), args.score_column, argument)

    def training_set(self, dataset: Dataset | IterableDataset) -> tuple[PreparedDataset, LabelRule]:
        """The training set and the rule fitted on it."""
        self.columns.check(dataset, "training")
        positives_only = self.args.loss_type == "sft"
        if isinstance(dataset, IterableDataset):
            bad = self._bad_rows()
            scores, prompts = scan_stream(dataset, self.columns, bad)
            bad.report("training", len(scores) + len(bad.rows))
            rule = self._fit(scores, prompts)
            block = training_block(self.args, len(self.sizes))
            digest = fingerprint(*scores, *prompts)
            return self._stream(dataset, rule, 0, True, positives_only, block, digest), rule
        return self._encode(dataset, "training", None, positives_only)

    def evaluation_set(self, dataset: Dataset | IterableDataset, rule: LabelRule, name: str) -> PreparedDataset:
        """An evaluation set, labelled by the training set's rule."""
        self.columns.check(dataset, name)
        positives_only = self.args.loss_type == "sft"
        if isinstance(dataset, IterableDataset):
            if rule.threshold_type in PER_PROMPT:
                raise ValueError(
                    f"`threshold_type='{rule.threshold_type}'` needs all images of a prompt at once, which the "
                    f"streaming {name} data set does not give. Load it without `streaming=True`."
                )
            block = evaluation_block(self.args, len(self.sizes))
            return self._stream(dataset, rule, EVALUATION_EPOCH, False, positives_only, block)
        return self._encode(dataset, name, rule, positives_only)[0]

    def _encode(
        self, dataset: Dataset, name: str, rule: LabelRule | None, positives_only: bool
    ) -> tuple[EncodedDataset, LabelRule]:
        bad = self._bad_rows()
        origin = self._origin(dataset)
        progress = self._shows_progress()
        scanned = scan_rows(dataset, self.columns, bad, self.reader, self.sizes, origin, name, progress)
        if not scanned.rows:
            raise ValueError(f"The {name} data set has no row that can be used. {' '.join(bad.reasons[:5])}".rstrip())
        # fails before hours of encoding, if it fails
        fitted = rule or self._fit(scanned.scores, scanned.prompts)
        writer = self._writer()
        batch_size = self.args.encode_batch_size
        images, positions = encode_images(
            dataset, scanned, self.columns, bad, self.reader, origin, self.encoders, writer, batch_size, name
        )
        self.encoders.release()  # those of images and of prompts need not be on the device together
        prompts = encode_prompts(scanned, self.encoders, writer, batch_size, name)
        bad.report(name, len(dataset))
        scores = [scanned.scores[i] for i in positions]
        texts = [scanned.prompts[i] for i in positions]
        if rule is None and len(positions) < len(scanned.rows):  # without the images that could not be read
            fitted = self._fit(scores, texts)
        encoded = EncodedDataset(scanned, images, prompts, positions, fitted.apply(scores, texts))
        if positives_only and not encoded.labels.is_positive.any():
            raise ValueError(f"`loss_type='sft'` uses positive rows only, and the {name} data set has none.")
        return encoded.positives() if positives_only else encoded, fitted

    def _stream(
        self, dataset: IterableDataset, rule: LabelRule, epoch: int, repeat: bool, positives_only: bool, block: int,
        digest: str = "",
    ) -> StreamDataset:  # fmt: skip
        skip = self.args.on_bad_row == "skip"
        origin = self._origin(dataset)
        return StreamDataset(
            dataset,
            self.columns,
            rule,
            self.reader,
            self.sizes,
            origin,
            skip,
            epoch,
            repeat,
            positives_only,
            block,
            digest,
        )

    def _origin(self, dataset: Dataset | IterableDataset) -> Origin:
        return find_origin(dataset, self.args.image_dir, self.args.allow_urls)

    def _fit(self, scores: list[float], prompts: list[str]) -> LabelRule:
        args = self.args
        return fit_label_rule(
            scores,
            prompts,
            threshold_type=args.threshold_type,
            percentile=args.threshold_percentile,
            value=args.threshold_value,
            beta=args.beta,
            confidence_coef=args.confidence_coef,
            normalization=args.score_normalization,
        )

    def _bad_rows(self) -> BadRows:
        return BadRows(skip=self.args.on_bad_row == "skip")

    def _writer(self) -> ShardWriter:
        folder = Path(self.args.encoding_cache_dir or Path(HF_HOME) / "tgo_trl" / "encodings")
        state = PartialState()
        return ShardWriter(
            folder, state.process_index, state.num_processes, state.wait_for_everyone, self._shows_progress()
        )

    def _shows_progress(self) -> bool:
        return PartialState().is_main_process and not self.args.disable_tqdm
