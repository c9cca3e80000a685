"""From the user's data sets to what the trainer reads: checks, threshold, encoding."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from huggingface_hub.constants import HF_HOME
from torch import Tensor

from ..data.encoded import EncodedDataset, ScannedRows, encode_images, encode_with_sources, scan_rows
from ..data.lanes import Share
from ..data.pairs import Pairs, find_pairs, without_unreadable
from ..data.prompts import check_prompt_column, read_prompts
from ..data.rows import BadRows, RowSource
from ..data.sampler import RowSampler
from ..data.score_columns import has_several
from ..data.stream import StreamDataset
from ..labels.combination import CombinedRule
from ..labels.quantiles import ScoreQuantiles
from ..labels.rule import LabelRule, Labels
from ..labels.weights import weight_balance
from ..media.origin import find_origin
from ..media.readers import ImageReader, MediaReader, VideoReader
from ..media.types import Size
from ..messages.values import shown_bytes
from ..policy.draws import EVALUATION_EPOCH
from ..policy.encoders import FrozenEncoders
from ..storage.fingerprints import fingerprint
from ..storage.processes import from_all
from ..storage.shards import ShardWriter
from .label_rules import check_ratio, fit_rule
from .objective import unresolved_loss
from .pair_sources import checked_columns, no_pairs, pair_selection
from .sources import warn_of_other_numbers
from .tgo_config import TGOConfig
from .training_stream import ScannedStream

logger = logging.getLogger(__name__)

PreparedDataset = EncodedDataset | StreamDataset
"""Both have `labels`, `pairs`, `example_prompt` and `fingerprint`."""


@dataclass(frozen=True)
class SurveyedRows:
    """Rows as they would be encoded: read and labelled, with no image decoded.

    Attributes:
        source: where they come from.
        scanned: those that are encoded.
        positions: of those that are trained on or evaluated, among them.
        labels: of the rows at these positions.
        pairs: what they were made of, if they are pairs.
        texts: the prompt of each scanned row, as it would be encoded.
        num_bad: rows that were left out.
    """

    source: RowSource
    scanned: ScannedRows
    positions: list[int]
    labels: Labels
    pairs: Pairs | None
    texts: dict[int, str]
    num_bad: int

    @property
    def sizes(self) -> list[Size]:
        """The size of each row's image, pixels."""
        return [self.scanned.sizes[i] for i in self.positions]


def training_block(args: TGOConfig, num_sizes: int) -> int:
    """How many rows of one image size come together, and are padded to: an update's, or what the processes share."""
    if num_sizes > 1:
        return args.rows_per_update
    return args.train_batch_size * args.world_size if args.world_size > 1 else 1


def evaluation_block(args: TGOConfig, num_sizes: int) -> int:
    """As [`training_block`], without updates."""
    return args.eval_batch_size * args.world_size if num_sizes > 1 or args.world_size > 1 else 1


def training_sampler(args: TGOConfig, rows: EncodedDataset | SurveyedRows, num_sizes: int) -> RowSampler:
    """Which rows the epochs of a run take, and in which order.

    Args:
        args: the run's settings.
        rows: of the training set.
        num_sizes: that images are brought to.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    return RowSampler(
        len(rows.positions), None if args.train_sampling_strategy == "sequential" else seed,
        training_block(args, num_sizes), groups=rows.sizes if num_sizes > 1 else None,
        rows_per_item=1 if rows.pairs is None else 2, is_positive=rows.labels.is_positive.tolist(),
        positive_ratio=args.positive_ratio,
    )  # fmt: skip


class DataPreparer:
    """Prepares training and evaluation sets alike; the label rule is fitted on the training set.

    Args:
        args: the run's settings.
        encoders: of the pipeline.
        sizes: of the images; each is brought to the nearest.

    Attributes:
        weight_balance: of all training rows, see [`~tgo_trl.labels.weights.weight_balance`].
        relative_scores: of scores and prompts, what the loss reads of them; None where it reads labels alone. Fitted on
            the training set too.
        pair_rule: that the images of pairs are compared by, of several columns of scores; likewise.
        num_sources: source images of each training row.
    """

    num_sources = 0

    def __init__(self, args: TGOConfig, encoders: FrozenEncoders, sizes: Sequence[Size]) -> None:
        self.args = args
        self.encoders = encoders
        self.sizes = sizes
        video_format = encoders.family.video_format
        self.reader: MediaReader = ImageReader() if video_format is None else VideoReader(video_format)
        self.loss = unresolved_loss(vars(args))
        self.relative_scores: Callable[[Tensor, Sequence[str]], Tensor] | None = None
        self.weight_balance = 1.0
        self.pair_rule: LabelRule | None = None

    def training_set(self, dataset: Dataset | IterableDataset) -> tuple[PreparedDataset, LabelRule | None]:
        """The training set and the rule fitted on it; None of pairs, which need no threshold."""
        source = self._source(dataset, "training")
        if not isinstance(dataset, IterableDataset):
            return self._encode(source, None)
        return self._training_stream(source, dataset)

    def _training_stream(self, source: RowSource, stream: IterableDataset) -> tuple[StreamDataset, LabelRule]:
        args, bad = self.args, BadRows(source.skip_bad)
        scanned = ScannedStream.of(stream, source.columns, args, bad)
        scores, prompts = scanned.scores, scanned.prompts
        bad.warn(source.name, len(scores) + len(bad.rows))
        rule = self._fit(scores, prompts)
        labels = rule.apply(scores, prompts)
        self._weigh(labels)
        is_used = labels.is_positive.tolist() if self.loss.rows == "positives" else [True] * len(scores)
        num_lanes = scanned.num_lanes(args, is_used)
        block, digest = training_block(args, len(self.sizes)), fingerprint(*scores, *prompts)
        share = Share(args.process_index, args.world_size, args.train_batch_size, args.gradient_accumulation_steps)
        prepared = StreamDataset(
            source, rule, 0, True, self.loss, block, digest, self.relative_scores, scanned.shards, share, num_lanes
        )
        return prepared, rule

    def evaluation_set(self, dataset: Dataset | IterableDataset, rule: LabelRule | None, name: str) -> PreparedDataset:
        """An evaluation set, labelled by the training set's rule."""
        source = self._source(dataset, name)
        if not isinstance(dataset, IterableDataset):
            encoded = self._encode(source, rule)[0]
            encoded.usual_epoch = EVALUATION_EPOCH
            return encoded
        assert rule is not None  # a stream gives no pairs
        if rule.is_per_prompt:
            raise ValueError(
                f"`threshold_type={self.args.threshold_type!r}` needs all images of a prompt at once, which the "
                f"streaming {name} data set does not give. Load it without `streaming=True`."
            )
        if isinstance(self.relative_scores, ScoreQuantiles) and self.relative_scores.scope == "prompt":
            raise ValueError(
                f"Quantiles are of each prompt's own scores (`quantile_scope={self.args.quantile_scope!r}`), which the "
                f"streaming {name} data set does not give at once. Load it without `streaming=True`, or set 'dataset'."
            )
        block = evaluation_block(self.args, len(self.sizes))
        return StreamDataset(
            source, rule, EVALUATION_EPOCH, False, self.loss, block, relative_scores=self.relative_scores
        )

    def _source(self, dataset: Dataset | IterableDataset, name: str) -> RowSource:
        columns = checked_columns(self.args, dataset, name, self.reader.kind)
        if self.encoders.family.most_sources:
            columns = replace(columns, source=self.args.source_column)
        origin = find_origin(dataset, self.args.image_dir, self.args.allow_urls)
        skip_bad = self.args.on_bad_row == "skip"
        return RowSource(dataset, columns, self.reader, self.sizes, origin, name, skip_bad)

    def _encode(self, source: RowSource, rule: LabelRule | None) -> tuple[EncodedDataset, LabelRule | None]:
        bad, name = BadRows(source.skip_bad), source.name
        scanned = self._scan(source, bad)
        if self.loss.rows == "pairs":
            return self._encode_pairs(source, scanned, bad), None
        # fails before hours of encoding, if it fails
        fitted = rule or self._fit(scanned.scores, scanned.tasks)
        self._check_prompts(self._texts(scanned, fitted.apply(scanned.scores, scanned.tasks)), scanned)
        writer, batch_size = shard_writer(self.args), self.args.encode_batch_size
        images, positions = encode_images(source, scanned, bad, self.encoders, writer, batch_size)
        bad.warn(name, len(source.dataset))
        self.encoders.release()  # those of images and of prompts need not be on the device together
        kept = scanned.take(positions)
        if rule is None and len(positions) < len(scanned.rows):  # without the images that could not be read
            fitted = self._fit(kept.scores, kept.tasks)
        labels = self._labels(fitted, kept)
        if rule is None:
            self._weigh(labels)
        rows = zip(positions, kept.prompts, labels.is_positive.tolist(), strict=True)
        texts = {position: self.loss.prompt(prompt, is_positive) for position, prompt, is_positive in rows}
        prompts, sources = encode_with_sources(source, scanned, texts, self.encoders, writer, batch_size)
        _say_where(writer, name)
        encoded = EncodedDataset(scanned, images, prompts, positions, labels, sources=sources).select(self.loss.rows)
        if not len(encoded):
            raise ValueError(self._no_positives(name))
        return encoded, fitted

    def survey(
        self, dataset: Dataset, name: str, rule: LabelRule | None = None
    ) -> tuple[SurveyedRows, LabelRule | None]:
        """What would be encoded of a data set, and its rule, fitted if none is given; raises as encoding does.

        Images that cannot be decoded are among the rows: that shows when they are encoded.
        """
        source = self._source(dataset, name)
        bad = BadRows(source.skip_bad)
        scanned, pairs = self._scan(source, bad), None
        if self.loss.rows == "pairs":
            scanned, compared, pairs = self._find_pairs(source, scanned)
            texts = {i: self.loss.prompt(scanned.prompts[i], True) for i in pairs.flat}
            self._check_prompts(texts, scanned)
            labels = _labels_of(pairs, compared)
            return SurveyedRows(source, scanned, pairs.flat, labels, pairs, texts, len(bad.rows)), None
        fitted = rule or self._fit(scanned.scores, scanned.tasks)
        labels = self._labels(fitted, scanned)
        texts = self._texts(scanned, labels)
        self._check_prompts(texts, scanned)
        positions = [*range(len(scanned.rows))]
        if self.loss.rows == "positives":
            positions = labels.is_positive.nonzero().flatten().tolist()
            labels = labels.take(positions)
        if not positions:
            raise ValueError(self._no_positives(name))
        return SurveyedRows(source, scanned, positions, labels, None, texts, len(bad.rows)), fitted

    def _scan(self, source: RowSource, bad: BadRows) -> ScannedRows:
        state, most = PartialState(), self.encoders.family.most_sources
        progress = self._shows_progress()
        scanned = scan_rows(source, bad, progress, most, state.process_index, state.num_processes, from_all)
        if not scanned.rows:
            reasons = " ".join(bad.reasons[:5])
            raise ValueError(f"The {source.name} data set has no row that can be used. {reasons}".rstrip())
        if source.name == "training":
            self.num_sources = scanned.num_sources
        if most:
            warn_of_other_numbers(self.args, self.num_sources, source.name, scanned.num_sources)
        return scanned

    def _encode_pairs(self, source: RowSource, scanned: ScannedRows, bad: BadRows) -> EncodedDataset:
        """The pairs among scanned images; no others are encoded."""
        args, name = self.args, source.name
        scanned, compared, pairs = self._find_pairs(source, scanned)
        self._check_prompts({i: self.loss.prompt(scanned.prompts[i], True) for i in pairs.flat}, scanned)
        writer, batch_size = shard_writer(args), args.encode_batch_size
        images, readable = encode_images(source, scanned, bad, self.encoders, writer, batch_size)
        bad.warn(name, len(source.dataset))
        self.encoders.release()
        pairs = without_unreadable(pairs, {*readable}, scanned.tasks)
        if not pairs.positions:
            raise ValueError(no_pairs(args.loss_type, name, pairs))
        if pairs.left_out:
            logger.warning("Of the %s data set, there were left out: %s.", name, pairs.describe_left_out())
        texts = {i: self.loss.prompt(scanned.prompts[i], True) for i in pairs.flat}
        prompts, sources = encode_with_sources(source, scanned, texts, self.encoders, writer, batch_size)
        _say_where(writer, name)
        return EncodedDataset(scanned, images, prompts, pairs.flat, _labels_of(pairs, compared), pairs, sources)

    def _find_pairs(self, source: RowSource, scanned: ScannedRows) -> tuple[ScannedRows, list[float], Pairs]:
        """The images that are in pairs, what each is compared by, and the pairs."""
        args = self.args
        selection = pair_selection(args, source.dataset)
        compared = self._compared_scores(scanned, selection)
        pairs = find_pairs(selection, args.pair_margin, scanned.tasks, compared, scanned.keys, scanned.sizes)
        if not pairs.positions:
            raise ValueError(no_pairs(args.loss_type, source.name, pairs))
        used = sorted({*pairs.flat})
        places = {position: i for i, position in enumerate(used)}
        positions = [(places[better], places[worse]) for better, worse in pairs.positions]
        pairs = replace(pairs, positions=positions, compared=_compared_by(self.pair_rule))
        return scanned.take(used), [compared[i] for i in used], pairs

    def _no_positives(self, name: str) -> str:
        return f"`loss_type={self.args.loss_type!r}` uses positive rows only, and the {name} data set has none."

    def _compared_scores(self, scanned: ScannedRows, selection: str) -> Sequence[Any]:
        """What the images of a prompt are compared by: of several columns, the signed scores.

        Their rule is that of the training set, also where others are evaluated.
        """
        if selection == "columns" or not has_several(vars(self.args)):
            return scanned.scores
        if self.pair_rule is None:
            self.pair_rule = self._fit(scanned.scores, scanned.tasks)
        compared: list[float] = self.pair_rule.apply(scanned.scores, scanned.tasks).scores.tolist()
        return compared

    def _texts(self, scanned: ScannedRows, labels: Labels) -> dict[int, str]:
        """The prompt that each of the rows is trained with."""
        rows = zip(scanned.prompts, labels.is_positive.tolist(), strict=True)
        return {i: self.loss.prompt(*row) for i, row in enumerate(rows)}

    def _check_prompts(self, texts: Mapping[int, str], scanned: ScannedRows) -> None:
        self.encoders.family.check_prompts(self.encoders.pipeline, texts.values(), scanned.num_sources)

    def _labels(self, rule: LabelRule, scanned: ScannedRows) -> Labels:
        labels = rule.apply(scanned.scores, scanned.tasks)
        if self.relative_scores is None:
            return labels
        return replace(labels, relative_scores=self.relative_scores(labels.scores, scanned.tasks))

    def _weigh(self, labels: Labels) -> None:
        self.weight_balance = weight_balance(labels.is_positive, labels.weights)

    def _fit(self, scores: Sequence[Any], prompts: list[str]) -> LabelRule:
        args = self.args
        rule = fit_rule(args, scores, prompts)
        check_ratio(args, rule)
        if self.loss.relative_score == "advantage":
            self.relative_scores = rule.advantages
        elif self.loss.relative_score == "quantile":
            signed = rule.apply(scores, prompts).scores
            self.relative_scores = ScoreQuantiles.fit(signed, prompts, args.quantile_scope)
        return rule

    def _shows_progress(self) -> bool:
        return shows_progress(self.args)


def _compared_by(rule: LabelRule | None) -> dict[str, str]:
    if not isinstance(rule, CombinedRule):
        return {}
    return {"compared by": f"the {rule.combination} of {len(rule.columns)} columns", **rule.details()}


def _labels_of(pairs: Pairs, compared: Sequence[float]) -> Labels:
    scores = torch.tensor([compared[i] for i in pairs.flat], dtype=torch.float64)
    return Labels(scores, torch.tensor([True, False]).repeat(len(pairs.positions)), torch.ones(len(scores)))


def training_prompts(dataset: Dataset, args: TGOConfig) -> dict[int, str]:
    """The prompt of each row that can be used, by its index in a data set of which prompts alone are read.

    Raises:
        ValueError: if there is no such column, or no such row.
    """
    check_prompt_column(dataset, args.prompt_column)
    bad = BadRows(args.on_bad_row == "skip")
    texts = read_prompts(dataset, args.prompt_column, bad)
    if not texts:
        raise ValueError(f"The training data set has no row that can be used. {' '.join(bad.reasons[:5])}".rstrip())
    bad.warn("training", len(dataset))
    return texts


def shard_writer(args: TGOConfig) -> ShardWriter:
    """Writes what is encoded to the folder of the settings."""
    folder = Path(args.encoding_cache_dir or Path(HF_HOME) / "tgo_trl" / "encodings")
    state = PartialState()
    return ShardWriter(
        folder, state.process_index, state.num_processes, state.wait_for_everyone, shows_progress(args),
        most=lambda number: max(from_all([number])),
    )  # fmt: skip


def _say_where(writer: ShardWriter, name: str) -> None:
    if PartialState().is_main_process:
        print(f"Encodings of the {name} data set: {shown_bytes(writer.num_bytes)} in {writer.folder}", flush=True)


def shows_progress(args: TGOConfig) -> bool:
    """Whether this process shows bars."""
    return PartialState().is_main_process and not args.disable_tqdm
