"""[`TGOTrainer`]: wires data, policy, reference and loss into `transformers.Trainer`. Knows no model."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from diffusers import DiffusionPipeline, ModularPipeline, PipelineQuantizationConfig
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from ..data.batch import FIELDS
from ..data.collator import DrawingCollator, draw_of
from ..data.encoded import EncodedDataset
from ..data.reference_errors import ReferencePass, plan_reference_errors
from ..data.sampler import RowSampler
from ..data.score_columns import by_name, has_several
from ..data.stream import StreamDataset
from ..families import Family
from ..labels.quantiles import ScoreQuantiles
from ..labels.rule import LabelRule, Labels
from ..losses import LossInputs, RowErrors, build_loss
from ..media.types import Sample, Size
from ..policy.compilation import accelerate_compiles
from ..policy.denoising import Corrupted
from ..policy.draws import EVALUATION_EPOCH, Draw, DrawPlan
from ..policy.encoders import FrozenEncoders
from ..policy.errors import row_errors
from ..policy.index import readable_index
from ..policy.known_digests import remember_digests
from ..policy.launch import check_shardable
from ..policy.loading import load_reference_networks
from ..policy.memory import Footprint, device_memory, footprint, has_usual_adapter
from ..policy.modular import as_standard
from ..policy.policy import Policy
from ..policy.reference import AdapterReference, ModelReference, PastReference
from ..policy.sampling import check_asked
from ..settings import shown
from ..storage.processes import from_all
from . import checkpoints
from .arguments import default_args, training_dtype
from .base_trainer import BaseTrainer
from .callbacks import ScoreLogCallback
from .course import describe_optimizer
from .feasibility import check_best_metric_of, check_drift_of
from .kinds import check_kinds, check_named_reference, check_set_name
from .metrics import LossMetrics, MetricRows
from .nonfinite import UpdateGuard
from .objective import BALANCED, OF_THE_OBJECTIVE, has_beta
from .padding import drop_padding, without_padding
from .preparation import DataPreparer, PreparedDataset, evaluation_block, shard_writer, training_sampler
from .reference_recipe import active_dropout, reference_digest, reference_recipe
from .refusals import check_datasets, check_pipeline, check_settings
from .resuming import check_resumed_settings
from .speed_choice import SpeedFacts, apply_choice, choose_speed, common_facts
from .summary import pair_rows, print_summary, summary_rows
from .tgo_config import FAMILY_SETTINGS, TGOConfig

RawDataset: TypeAlias = Dataset | IterableDataset


MADE_ONCE = (
    *OF_THE_OBJECTIVE, "num_likelihood_samples", "num_ref_draws", "lora_r", "lora_alpha", "lora_dropout",
    "lora_target_modules", "use_peft", "seed", *FAMILY_SETTINGS,
)  # fmt: skip
"""Settings that are read when the trainer is made, and not again."""


class TGOTrainer(BaseTrainer):
    """
    Trainer for Threshold-Guided Optimization (TGO), from the paper [Threshold-Guided Optimization for Visual Generative
    Models](https://huggingface.co/papers/2605.04653). This class is a wrapper around the [`~transformers.Trainer`]
    class and inherits all of its attributes and methods.

    Example:
    ```python
    >>> from datasets import load_dataset
    >>> from tgo_trl import TGOConfig, TGOTrainer

    >>> trainer = TGOTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ...     TGOConfig("sd15-tgo", learning_rate=1e-4),
    ...     load_dataset("username/scored-images", split="train"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, `PathLike` or [`~diffusers.DiffusionPipeline`]):
            Pipeline to be trained: a Hub id, a folder, or an object. A string is loaded with the keyword arguments in
            `args.model_init_kwargs`, in float32 unless they say otherwise. Frozen weights are then put into the dtype
            of `args.bf16` / `args.fp16`, trained weights into float32. A pipeline that already has a LoRA adapter goes
            on training that adapter.
        args ([`TGOConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows of a prompt, an image or a video, and a score; or, for a `loss_type` that takes pairs, of a prompt, a
            chosen and a rejected image or video. A streaming data set needs `args.max_steps`.
        eval_dataset (the same, or a dictionary of them, *optional*):
            Labelled with the training set's threshold, and evaluated on the same draws every time.
        ref_model (`str`, `PathLike`, [`~diffusers.DiffusionPipeline`] or `torch.nn.Module`, *optional*):
            Reference model. If `None`, the reference is the policy as it is before training: the network with its
            adapter off, a frozen copy of an adapter trained before, or a copy of the network if all of it is trained.
        data_collator (`Callable`, *optional*):
            Function to form a batch from a list of prepared rows. Defaults to
            [`~tgo_trl.data.collator.DrawingCollator`], which also draws their noise, ahead of the step; with another
            one it is drawn in the step, to the same numbers.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Takes the place of the pipeline's tokenizer.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            Computes metrics at evaluation from the log-ratio of each row (`predictions`, `[N]`) and its score
            (`label_ids`, `[N]`).
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Added to the list of default callbacks.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            The optimizer and the scheduler to use.
        optimizer_cls_and_kwargs (`tuple`, *optional*):
            The class of the optimizer and its arguments, where there are no parameters yet to make one from.
        preprocess_logits_for_metrics (`Callable`, *optional*):
            Called on the log-ratios before they are gathered.
        quantization_config (*optional*):
            A diffusers `PipelineQuantizationConfig`, or a quantization config for the trained network, applied when the
            model is loaded from an id.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The adapter. If `None`, one is made from `args.lora_*`.
        family ([`~tgo_trl.families.Family`], *optional*):
            How the pipeline's networks are called. Looked up by the pipeline's class if `None`, with the settings of
            `args` that it has.
    """

    args: TGOConfig
    model: nn.Module
    label_rule: LabelRule | None
    temperature: float
    levers = "`learning_rate`, `confidence_coef` or the ratio of `beta` to `temperature`"

    # `compute_loss` normalises over all rows of an accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | os.PathLike[str] | DiffusionPipeline | ModularPipeline,
        args: TGOConfig | None = None,
        train_dataset: RawDataset | None = None,
        eval_dataset: RawDataset | Mapping[str, RawDataset] | None = None,
        *,
        ref_model: str | os.PathLike[str] | DiffusionPipeline | ModularPipeline | nn.Module | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        processing_class: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        family: Family | None = None,
    ) -> None:
        # Whatever can be refused is, before anything is loaded.
        check_kinds(
            model, ref_model, processing_class, peft_config, family, data_collator=data_collator,
            compute_metrics=compute_metrics, preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )  # fmt: skip
        is_same, model = ref_model is model, as_standard(model)
        ref_model = model if is_same else as_standard(ref_model)
        args = default_args(model) if args is None else args
        eval_rewards = check_settings(
            args, model, ref_model, train_dataset, eval_dataset, quantization_config, compute_metrics, callbacks,
            optimizers, optimizer_cls_and_kwargs,
        )  # fmt: skip
        check_named_reference(ref_model, args, family)
        check_resumed_settings(args)
        dtype = training_dtype(args)
        self._open_repository(args)  # before anything that takes long

        # The pipeline, and whether settings fit it.
        index = readable_index(model, args.model_init_dict)
        sources = check_datasets(args, model, family, train_dataset, eval_dataset, index)
        trained = self._load_pipeline(
            model, args, dtype, family, processing_class, quantization_config, sources.are_read, index
        )
        of_samples = check_pipeline(
            args, trained, sources.of_samples, train_dataset, eval_dataset, peft_config, ref_model is not None,
            eval_rewards,
        )  # fmt: skip
        ref_networks = None
        if ref_model is not None:
            ref_networks = load_reference_networks(
                ref_model, self.pipeline, self.family, args.model_init_dict, quantization_config, dtype
            )
            check_shardable(args, None, ref_networks)

        # From the user's rows to encoded ones. With all weights trained, in float32, the saved pipeline loads in one
        # dtype.
        encoder_dtype = dtype if args.use_peft else torch.float32
        self.encoders = FrozenEncoders(self.family, self.pipeline, args.device, encoder_dtype)
        self.preparer = DataPreparer(args, self.encoders, self.sizes)
        train_set, self.label_rule = self.preparer.training_set(train_dataset)
        self.pair_rule = self.preparer.pair_rule
        self.train_labels: Labels | None = train_set.labels
        self.pairs = train_set.pairs
        self.temperature = self._resolve_temperature(args, train_set)
        resolved = {"temperature": self.temperature, "negative_weight": self._resolve_negative_weight(args)}
        self.loss = build_loss(args.loss_type, {**vars(args), **resolved})
        self._as_made = {name: getattr(args, name) for name in MADE_ONCE}
        eval_set = self._prepare_evaluation(eval_dataset)
        is_whole = not isinstance(quantization_config, PipelineQuantizationConfig)  # whose encoders may be quantised
        if isinstance(model, str) and is_whole and args.process_index == 0:
            remember_digests(shard_writer(args).folder, model, args.model_init_dict, self.encoders)
        check_best_metric_of(args, eval_set)
        check_drift_of(args, eval_set)
        self._keep_encoders = isinstance(train_set, StreamDataset)
        self._release_encoders()

        # What is trained, and what it is compared with.
        policy, was_trained = self._build_policy(
            args, dtype, peft_config, ref_networks, self.loss.needs_reference, optimizers[0]
        )
        reference_weights = self._digest_reference(policy) if args.precompute_ref_log_probs else None
        settings = {
            "temperature": self.temperature,
            "optimizer": describe_optimizer(optimizers, optimizer_cls_and_kwargs),
        }
        self._course = self._describe_course(policy, was_trained, args, settings, train_set.fingerprint)
        self._metrics = {"train": self._new_metrics(), "eval": self._new_metrics()}
        self._samples_prefix: str | None = None  # of the metrics of samples, as long as they are to be drawn
        self._statistic: Tensor | None = None
        self._prepare_run(args)

        # The loop.
        self._draw_plan = DrawPlan(
            args.seed, args.num_likelihood_samples, self.loss.rows == "pairs", args.num_ref_draws,
            self.family.reads_posterior_noise,
        )  # fmt: skip
        if isinstance(data_collator, DrawingCollator) and data_collator.plan != self._draw_plan:
            raise ValueError(
                "`data_collator` draws for another run (another `seed`, `num_likelihood_samples`, `num_ref_draws`, or "
                "pairs). Leave it out, so that each trainer has its own."
            )
        is_pinned = args.dataloader_pin_memory and args.device.type == "cuda"
        super().__init__(
            model=policy,
            args=args,
            data_collator=data_collator or DrawingCollator(self._draw_plan, self.family.latent_shape, is_pinned),
            train_dataset=train_set,
            eval_dataset=eval_set,
            compute_metrics=None if compute_metrics is None else without_padding(compute_metrics),
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._guard = UpdateGuard(self.accelerator, args.on_bad_row == "skip")
        self.strategy.prepare_policy(policy)
        self.strategy.prepare_reference(self.reference)
        if args.speed is not None:
            self._choose_speed(train_set)
        self._prepare_compilation()
        if reference_weights is not None:
            self._precompute_reference(train_set, eval_set, reference_weights)
        if self.label_rule is not None:
            are_weighed = self.loss.weighs_rows
            self.add_callback(ScoreLogCallback(self, self.label_rule, self.train_labels, are_weighed))
        self._add_own_callbacks(eval_rewards, of_samples)
        if self.is_world_process_zero():
            objective = self._objective() | ({} if args.recipe is None else {"recipe": args.recipe})
            print_summary(self._summary_rows(objective))

    # ---- Set-up ----

    def _summary_rows(self, objective: Mapping[str, Any]) -> list[tuple[str, str]]:
        beta, temperature = getattr(self.loss, "beta", None), self.temperature
        if self.pairs is not None:
            return pair_rows(self.pairs, beta, temperature, objective)
        assert self.label_rule is not None
        weighed = self.train_labels if self.loss.weighs_rows else None
        stream = self.train_dataset if isinstance(self.train_dataset, StreamDataset) else None
        reading = None if stream is None else stream.describe_reading()
        return summary_rows(self.label_rule, weighed, beta, temperature, objective, reading)

    def _resolve_temperature(self, args: TGOConfig, train_set: PreparedDataset) -> float:
        if isinstance(args.temperature, float):
            return args.temperature
        usual = self.preparer.loss.usual_temperature
        if usual is not None:
            return usual
        if isinstance(train_set, EncodedDataset):
            size = train_set.sizes[0]
            image = {name: tensor[None] for name, tensor in train_set[0]["image"].items()}
        else:
            size = self.size
            pixels, geometry = self.preparer.reader.blank(size)
            image = self.encoders.images(pixels[None], geometry[None])
        num_elements = math.prod(self.family.latent_shape(image))
        return self.denoiser.noise_process.temperature(num_elements * math.prod(self.size) // math.prod(size))

    def _resolve_negative_weight(self, args: TGOConfig) -> float:
        if isinstance(args.negative_weight, float):
            return args.negative_weight
        return min(1.0, self.preparer.weight_balance)

    def _choose_speed(self, train_set: PreparedDataset) -> None:
        """Sets what makes the run fast, of what is not set, and says why."""
        facts = from_all([self._speed_facts(train_set, device_memory(self.args.device))])
        lines = apply_choice(self.args, choose_speed(common_facts(facts)))
        if self.is_world_process_zero():
            print("\n".join(lines))

    def _speed_facts(self, train_set: PreparedDataset, memory: int | None) -> SpeedFacts:
        """What the choice depends on, with a memory of so many bytes; None of no GPU."""
        args = self.args
        if args.max_steps > 0:
            batches = args.max_steps * args.gradient_accumulation_steps
        else:
            assert isinstance(train_set, EncodedDataset)
            batches = math.ceil(len(train_set) * args.num_train_epochs / (args.train_batch_size * args.world_size))
        rows = args.train_batch_size * args.num_likelihood_samples
        is_chosen = memory is not None and args.gradient_checkpointing is None
        found = self._footprint(train_set) if is_chosen else None
        return SpeedFacts(args.device.type, memory, found, rows, batches, self._why_uncompiled())

    @torch.no_grad()
    def _footprint(self, train_set: PreparedDataset) -> Footprint | None:
        """What training takes of the memory; None where that was not measured.

        That is of a stream, which has encoders beside it, with all weights trained, with an average of them, and of
        adapters on other modules than the family's.
        """
        is_measured = self.args.ema_decay is None and has_usual_adapter(self.policy)
        if not isinstance(train_set, EncodedDataset) or not is_measured:
            return None
        sizes = [math.prod(size) for size in train_set.sizes]
        largest = sizes.index(max(sizes))
        items: list[Any] = [train_set[0, largest]] * train_set.rows_per_item
        corrupted = self._corrupt(self._prepare_inputs(self.data_collator(items)))[0]
        fixed = self.strategy.fixed_bytes(self._networks(self.policy))
        with self.accelerator.autocast():
            return footprint(self.policy, corrupted, fixed)

    def _why_uncompiled(self) -> str | None:
        """What speaks against compiling blocks that nobody asked to have compiled, a clause."""
        networks = list(self.policy.networks.values())
        if self.strategy.shards:
            return "it was not measured on shards"
        if self.args.torch_compile or accelerate_compiles():
            return "the whole network is"
        if not all(getattr(it, "_repeated_blocks", None) for it in networks):
            return f"`{type(networks[0]).__name__}` does not say which of its blocks are repeated"
        if any(getattr(it, "hf_quantizer", None) is not None for it in networks):
            return "it was not measured with quantised weights"
        return "batches are of several shapes, for which it was not measured" if self._has_several_shapes else None

    def _digest_reference(self, policy: Policy) -> str:
        """Of all weights of the reference whose errors are to be computed, while they are whole.

        Raises:
            ValueError: if its errors differ from step to step.
        """
        assert self.reference is not None
        layer = active_dropout(self.reference, policy)
        if layer is not None:
            raise ValueError(
                f"`precompute_ref_log_probs` is True, and the reference has dropout (`{layer}`), so that its errors "
                "differ from step to step. Leave `precompute_ref_log_probs` out, or load the adapter without dropout."
            )
        return reference_digest(self.reference, policy)

    def _precompute_reference(
        self, train_set: PreparedDataset, eval_set: PreparedDataset | dict[str, PreparedDataset] | None, weights: str
    ) -> None:
        """Computes the reference's errors of all rows and draws, after which its networks are not needed.

        Args:
            train_set: of the run.
            eval_set: likewise.
            weights: a digest of the reference's.
        """
        args, reference = self.args, self.reference
        assert reference is not None
        assert args.num_ref_draws is not None
        sets = eval_set if isinstance(eval_set, dict) else {} if eval_set is None else {"evaluation": eval_set}
        self._remember_errors("training", train_set, weights, range(args.num_ref_draws), args.train_batch_size)
        for name, dataset in sets.items():
            self._remember_errors(name, dataset, weights, [EVALUATION_EPOCH], args.eval_batch_size)
        if not isinstance(reference, AdapterReference):  # which takes no memory of its own
            self.reference = PastReference()
            if isinstance(reference, ModelReference) and self.repeated_blocks is not None:
                self.repeated_blocks.forget(reference.networks)
            if not (args.sample_prompts or args.eval_sample_prompts):
                self.sampled_reference = None
                self.strategy.forget_reference(reference)

    def _remember_errors(
        self, name: str, dataset: PreparedDataset, weights: str, draws: Sequence[int], batch_size: int
    ) -> None:
        args = self.args
        assert isinstance(dataset, EncodedDataset)
        size = args.precompute_ref_batch_size or batch_size
        reader = self.preparer.reader
        recipe = reference_recipe(weights, self.denoiser, self.encoders, reader, args, size)
        errors = functools.partial(self._reference_errors, dataset)
        shape = (size, args.num_likelihood_samples)
        how = ReferencePass(errors, recipe, *shape, reader.kind, in_step=self.strategy.shards)
        rows = zip(dataset.prompt_texts, dataset.labels.is_positive.tolist(), strict=True)
        texts = [self.loss.prompt(*row) for row in rows]
        announcement, compute = plan_reference_errors(dataset, draws, how, shard_writer(args), name, texts)
        if self.is_world_process_zero():
            print(announcement)
        dataset.reference_errors = compute()

    @torch.no_grad()
    def _reference_errors(self, dataset: EncodedDataset, rows: Sequence[tuple[int, int]]) -> Tensor:
        """The reference's error of rows by (draw, position), `[n, K]`."""
        assert self.reference is not None
        items: list[Any] = [dataset[row] for row in rows]
        inputs = self._prepare_inputs(self.data_collator(items))
        was_training = self.model.training
        self.model.eval()
        corrupted = self._corrupt(inputs)[0]
        # accelerate puts `autocast` around the policy once training begins
        with self._compiled(), self.accelerator.autocast():
            predictions = self.reference.predictions(self.model, corrupted)
        self.model.train(was_training)
        return corrupted.errors(predictions.float()).T

    def _prepare_evaluation(
        self, dataset: RawDataset | Mapping[str, RawDataset] | None
    ) -> PreparedDataset | dict[str, PreparedDataset] | None:
        if dataset is None:
            return None
        if isinstance(dataset, Mapping):
            return {name: self.preparer.evaluation_set(part, self.label_rule, name) for name, part in dataset.items()}
        return self.preparer.evaluation_set(dataset, self.label_rule, "evaluation")

    # ---- Batches ----

    def _set_signature_columns_if_needed(self) -> None:
        # The policy's `forward` takes tensors that only exist after the draw; these are the fields of a prepared row.
        self._signature_columns = list(FIELDS)  # type: ignore[assignment]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, EncodedDataset):
            return None
        return self._use_sampler(training_sampler(self.args, dataset, len(self.sizes)))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        if not isinstance(eval_dataset, EncodedDataset):
            return None
        block = evaluation_block(self.args, len(self.sizes))
        return RowSampler(len(eval_dataset), None, block, EVALUATION_EPOCH, self._groups(eval_dataset))

    def _groups(self, dataset: EncodedDataset) -> list[Size] | None:
        return dataset.sizes if len(self.sizes) > 1 else None

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """As [`ResumableTrainer.get_batch_samples`], with what the loss asks of all of them."""
        batches, num_rows = super().get_batch_samples(epoch_iterator, num_batches, device)
        if num_rows is not None and self.loss.has_statistic:
            self._statistic = self._update_statistic(batches, device)
        return batches, num_rows

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch: its rows' sum over the number of rows of the whole update, or their mean in evaluation.

        Args:
            model: the policy as wrapped for training.
            inputs: a batch of prepared rows.
            return_outputs: also return `{"log_ratio": float32 [B]}`.
            num_items_in_batch: rows of the update over all processes; None for a mean over the batch.
        """
        valid, is_positive = inputs["valid"], inputs["is_positive"]
        errors, draw = self._errors(model, inputs)
        is_training = self.model.training
        statistic = self._statistic if is_training else None  # an evaluation is a function of the weights
        relative_score = inputs.get("relative_score")
        rows = self.loss(LossInputs(errors, is_positive, inputs["weight"], statistic, relative_score))
        assert (rows.reward is None) == (errors.reference is None)
        losses, valid = self._guard.add(inputs["row"], rows.loss, valid, is_training)
        kept = MetricRows(
            valid, is_positive, inputs["weight"], draw.quantile.reshape(errors.policy.shape), errors.policy,
            errors.reference, errors.prediction_difference, rows.reward, None if is_training else rows.loss,
        )  # fmt: skip
        self._metrics["train" if is_training else "eval"].keep(kept)
        loss = self._over_rows(losses, valid, num_items_in_batch)
        return (loss, {"log_ratio": rows.output.detach()}) if return_outputs else loss

    def _errors(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[RowErrors, Draw]:
        """Errors of policy and reference on the draw of each row, `[K, B]`, and the draw."""
        corrupted, draw = self._corrupt(inputs)
        known = inputs["reference_error"].T.contiguous() if "reference_error" in inputs else None
        return row_errors(model, self.reference, corrupted, self.loss.reads_predictions, known), draw

    def _corrupt(self, inputs: dict[str, Any]) -> tuple[Corrupted, Draw]:
        image, prompt = self._conditions(inputs)
        device = inputs["valid"].device
        draw = draw_of(inputs)
        if draw is None:  # of a collator of the user's own, or a stream of which nothing was encoded yet
            shape = self.family.latent_shape(image)
            draw = self._draw_plan.draw(inputs["epoch"], inputs["row"], shape, device.type == "cuda")
            if "pixels" in inputs and isinstance(self.data_collator, DrawingCollator):
                self.data_collator.known_shapes[tuple(inputs["pixels"].shape[1:])] = shape
        draw = self._draw_plan.place(draw, device)
        if self.args.time_range is not None:
            first, last = self.args.time_range
            draw = replace(draw, quantile=first + (last - first) * draw.quantile)
        return self.denoiser.corrupt(image, prompt, draw), draw

    @torch.no_grad()
    def _update_statistic(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """The mean of what the loss asks of each row, over the rows of an update in all processes."""
        self.model.train()  # as in the step, which has not begun
        self.optimizer_mode.unsettle()
        sums = torch.zeros(2, device=device)
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                values = self.loss.row_statistic(self._errors(self.model_wrapped, inputs)[0])
            kept = inputs["valid"] & values.isfinite() if self._guard.skip else inputs["valid"]
            sums += torch.stack([values.where(kept, 0).sum(), kept.sum()])
        totals: Tensor = self.accelerator.reduce(sums, "sum")
        return totals[0] / totals[1]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As [`Trainer`]; a batch that the data loader has put onto the device is passed on as it is."""
        is_there = inputs["valid"].device == self.accelerator.device
        return inputs if is_there else super()._prepare_inputs(inputs)

    def _begin(self, checkpoint: Path | None) -> None:
        self._check_as_made()
        super()._begin(checkpoint)

    def _record(self) -> checkpoints.RunRecord:
        record = super()._record()  # also of what a callback has set since, to no effect
        made = checkpoints.public_config({name: self._as_made[name] for name in self._as_made.keys() & record.config})
        return replace(record, config=record.config | made)

    def _check_as_made(self) -> None:
        """Raises a ValueError if what loss, draws and adapter were made of has been set to something else since."""
        for name, value in self._as_made.items():
            now = getattr(self.args, name)
            if now != value:
                raise ValueError(
                    f"`args.{name}` was {shown(value)} when the trainer was made, is {shown(now)}, "
                    "and loss, draws and adapter are as they were made: none would follow. Make another "
                    "`TGOTrainer` with a configuration of its own."
                )

    def _conditions(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if "image" in inputs:
            is_told = self.family.reads_lengths and "prompt_length" in inputs
            known = {"lengths": tuple(inputs["prompt_length"])} if is_told else {}
            return inputs["image"], {**inputs["prompt"], **known}
        image = self.encoders.images(inputs["pixels"], inputs["geometry"])
        return image, self.encoders.prompts(inputs["prompt_text"])

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, log-ratio and score of a batch, without gradient."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        kept = inputs["valid"] & outputs["log_ratio"].isfinite() if self._guard.skip else inputs["valid"]
        return loss, outputs["log_ratio"], inputs["score"].where(kept, math.nan)

    # ---- Metrics and evaluation ----

    def _new_metrics(self) -> LossMetrics:
        return LossMetrics(self.temperature, self.loss.rows == "pairs", self.loss.weighs_rows)

    def _training_metrics(self) -> dict[str, float]:
        return self._metrics["train"].pop_means(self.accelerator)

    def evaluate(
        self,
        eval_dataset: RawDataset | Mapping[str, RawDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates; a data set that is passed here is prepared as the trainer's own are, and no samples are drawn."""
        self.policy.check_owner()
        if eval_dataset is None:
            self._samples_prefix = metric_key_prefix  # once, however many data sets there are
            try:
                return super().evaluate(None, ignore_keys, metric_key_prefix)
            finally:
                self._samples_prefix = None
        if isinstance(eval_dataset, str):
            check_set_name(eval_dataset, self.eval_dataset)
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]
        prepared = self._prepare_evaluation(eval_dataset)
        if not isinstance(prepared, dict):
            return super().evaluate(prepared, ignore_keys, metric_key_prefix)
        metrics: dict[str, float] = {}
        for name, dataset in prepared.items():
            metrics.update(super().evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}"))
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds the metrics of the evaluated rows; the loss is their mean, not a mean of batch means."""
        self._metrics["eval"] = self._new_metrics()
        self._guard.begin_evaluation()
        self.optimizer_mode.settle()
        names = (prediction_loss_only, ignore_keys, metric_key_prefix)
        with self._compiled():
            output = super().evaluation_loop(dataloader, description, *names)
        means = self._metrics["eval"].pop_means(self.accelerator)
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        self._release_encoders()
        self._guard.check_evaluated()
        if self._eval_samples is not None and self._samples_prefix is not None:
            prefix, self._samples_prefix = self._samples_prefix, None
            of_samples = self._eval_samples.metrics()
            output.metrics.update({f"{prefix}_{name}": value for name, value in of_samples.items()})
        if output.label_ids is None:
            return output
        predictions, scores = drop_padding(output.predictions, output.label_ids)
        return output._replace(predictions=predictions, label_ids=scores)

    def predict(
        self, test_dataset: RawDataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Log-ratio (`predictions`) and score (`label_ids`) of each row of a data set, and its metrics."""
        prepared = self.preparer.evaluation_set(test_dataset, self.label_rule, metric_key_prefix)
        return super().predict(prepared, ignore_keys, metric_key_prefix)

    # ---- Samples ----

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        from_reference: bool = False,
        batch_size: int | None = None,
        sources: Sequence[Sequence[Any]] | None = None,
        **kwargs: Any,
    ) -> list[Sample]:
        """As [`BaseTrainer.sample`], of policy and reference alike with the prompts that the loss gives good rows."""
        check_asked(prompts, seeds, sources, batch_size)  # before a text is taken for a list of letters
        prompts = [self.loss.prompt(prompt, True) for prompt in prompts]
        if self.negative_prompt is not None:
            kwargs = {"negative_prompt": self.negative_prompt, **kwargs}
        return super().sample(prompts, seeds, from_reference, batch_size, sources, **kwargs)

    # ---- The card ----

    @property
    def negative_prompt(self) -> str | None:
        """What samples are drawn away from; None unless the loss has taught it."""
        return self.loss.negative_prompt

    @property
    def paper(self) -> tuple[str, str] | None:
        """Title and arXiv id, or address, of where the loss is from, for the card; None for the paper of TGO."""
        return self.loss.paper

    def _example_prompt(self) -> str:
        return self.loss.prompt(super()._example_prompt(), True)

    @property
    def method(self) -> str:
        """How it is trained, after "trained with", for the card."""
        settings = {item.name: getattr(self.loss, item.name) for item in fields(self.loss)}
        return self.loss.method.format(media=self.family.medium, **settings)

    def _objective(self) -> dict[str, Any]:
        """The settings of the loss that are not the paper's, by name."""
        values = {item.name: (getattr(self.loss, item.name), item.default) for item in fields(self.loss)}
        told = {name: _told(it) for name, (it, usual) in values.items() if usual is not MISSING and it != usual}
        if self.args.negative_weight == BALANCED:  # also where it came to 1, as by default
            told["negative_weight"] = f"{told.get('negative_weight', 1)} (balanced)"
        if self.args.time_range is not None:
            told["time_range"] = "{:g} to {:g}".format(*self.args.time_range)
        if self.args.num_ref_draws is not None:
            told["num_ref_draws"] = self.args.num_ref_draws
        if self.args.positive_ratio is not None:
            told["positive_ratio"] = _told(self.args.positive_ratio)
        if has_several(vars(self.args)) and (self.pairs is None or self.pairs.selection != "columns"):
            told["score_columns"] = _told_columns(self.args)
        if isinstance(self.preparer.relative_scores, ScoreQuantiles):
            told["quantile_scope"] = self.preparer.relative_scores.scope
        return {name.replace("_", " "): value for name, value in told.items()}

    def hyperparameters(self) -> dict[str, Any]:
        """Name and value of each line of the card's table."""
        args = self.args
        of_scores: dict[str, Any] = {}
        if self.loss.weighs_rows:
            of_scores["confidence coefficient"] = args.confidence_coef
        if self.loss.weighs_rows or args.score_normalization != "none":
            of_scores["score normalisation"] = args.score_normalization
        return {
            "loss": args.loss_type,
            **({"beta": args.beta} if has_beta(vars(args)) else {}),
            "temperature": f"{self.temperature:.6g}",
            **of_scores,
            "likelihood samples": args.num_likelihood_samples,
            **self._objective(),
            **super().hyperparameters(),
        }

    def _release_encoders(self) -> None:
        if not self._keep_encoders:  # a stream needs them at every step
            self.encoders.release()


def _told(value: Any) -> Any:
    """A setting's value for a cell of a table: a number rounded, text of the user's as a literal."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(value).replace("|", r"\|") if isinstance(value, str) and not value.isidentifier() else value


def _told_columns(args: TGOConfig) -> str:
    """The columns of scores with what they count, and how they become one, for a cell of a table."""
    weights = by_name(vars(args), "score_weights") or {}
    names = [f"{weights[name]:g} {name}" if weights.get(name, 1) != 1 else name for name in args.score_names]
    return f"{args.score_combination} of {', '.join(names)}".replace("|", r"\|")
