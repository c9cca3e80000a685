"""[`BaseTrainer`]: what every trainer of a diffusers pipeline has beside its loss: reference, samples, card, Hub."""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import PeftConfig
from PIL import Image
from torch import Tensor, nn
from transformers import set_seed
from transformers.trainer_utils import HubStrategy, SchedulerType, TrainOutput

from ..cards.model_card import TGO_PAPER, CardContent, Paper, build_card, path_in_card
from ..cards.sections import MARK, with_sections_of
from ..families import Family
from ..families.base_sources import SourceFamily
from ..hub.repositories import Destination, UploadError
from ..hub.uploads import Uploads
from ..media.types import Sample, Size
from ..messages.public import public_text
from ..policy.attention import set_backend
from ..policy.compilation import RepeatedBlocks
from ..policy.denoising import Denoiser
from ..policy.distributed import leave_quantized_weights_to_each_process
from ..policy.draws import stable_seed
from ..policy.encoders import FrozenEncoders
from ..policy.index import Index, class_beside_index
from ..policy.modular import base_code
from ..policy.policy import Policy, build_policy, disable_dropout
from ..policy.reference import AdapterReference, ModelReference, OwnReference, Reference
from ..policy.sampling import cpu_generators, negating, quiet
from ..rewards.base import Reward
from ..settings import files_of
from ..storage.fingerprints import component_fingerprint, tensors_digest, weights_fingerprint
from ..storage.records import CARD_NAME
from . import checkpoints
from .arguments import (
    check_optimizer,
    training_dtype,
    warn_of_unused_settings,
)
from .callbacks import CompilationCallback, EarlyStopping, EpochCallback, InterruptionCallback, SyncReferenceCallback
from .course import OF_THE_BASE, Course, course_settings, weights_digest
from .eval_samples import EvalSamples
from .evaluations import EVALUATIONS_NAME, choose, comparable_evaluations, evaluation_after, read_evaluations
from .loading import TrainedPipeline, load_for_training
from .log_lines import in_lines
from .nonfinite import check_finite_tensors
from .plots import SCORE_HISTOGRAM_NAME, plot_evaluations
from .publishing import folder_upload, open_model_repository, sum_up
from .resumable_trainer import ResumableTrainer
from .sample_grids import SampleGridCallback, last_grid
from .selection import SAMPLES, VARIETY, OutsideBoundsError
from .sources import OF_GRIDS, SampleSources, of_evaluations
from .speed import DEFAULT_BACKEND
from .tgo_config import TGOConfig
from .trackers import log_picture
from .untrained import UntrainedLayersCallback

logger = logging.getLogger(__name__)


class BaseTrainer(ResumableTrainer):
    """What every trainer of a diffusers pipeline has beside its loss.

    A subclass calls, in this order, [`_open_repository`] before anything that takes long, [`_load_pipeline`],
    [`_build_policy`] once its data are prepared, [`_prepare_run`], `Trainer.__init__`, and [`_add_own_callbacks`].

    Attributes:
        denoiser: how the pipeline's networks are asked to denoise.
        encoders: what turns images and prompts into what the networks take.
        sampled_reference: what samples are compared with, also where the loss has no reference; None if that would take
            a copy of the network.
        uploads, destination: to the Hub.
    """

    denoiser: Denoiser
    encoders: FrozenEncoders
    sampled_reference: Reference | None
    _eval_samples: EvalSamples | None = None
    kept_step: int | None = None  # of the best checkpoint, once it is loaded
    _sample_ways: Sequence[tuple[int, dict[str, str]]] = ()  # see `RunRecord`
    _gone_on_from: Path | None = None

    # ---- Set-up ----

    def _open_repository(self, args: TGOConfig) -> None:
        self.uploads = Uploads()
        pushes = args.push_to_hub and args.process_index == 0
        self.destination: Destination | None = open_model_repository(args) if pushes else None

    def _load_pipeline(
        self, model: str | DiffusionPipeline, args: TGOConfig, dtype: torch.dtype, family: Family | None,
        processing_class: Any, quantization_config: Any, has_sources: bool = False, index: Index | None = None,
    ) -> TrainedPipeline:  # fmt: skip
        """Sets `pipeline`, `family`, `denoiser`, `size` and `sizes`, each checked against the settings.

        And what is recorded of the class of a pipeline that is passed, which no setting tells.
        """
        trained = load_for_training(
            model, args, dtype, family, processing_class, quantization_config, has_sources=has_sources, index=index
        )
        self.pipeline, self.family, self.denoiser, self.size, self.sizes = trained
        self._own_class = None if isinstance(model, str) else class_beside_index(self.pipeline)
        return trained

    def _build_policy(
        self, args: TGOConfig, dtype: torch.dtype, peft_config: PeftConfig | None,
        ref_networks: dict[str, nn.Module] | None, needs_reference: bool,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> tuple[Policy, bool]:  # fmt: skip
        """The policy, and whether it begins with an adapter that was trained before; sets the references.

        Called when the data are prepared, so that bad ones leave the user's pipeline without an adapter.
        """
        # An adapter is initialised at random: seed before it is created, as TRL does.
        set_seed(args.seed)
        policy, was_trained = build_policy(self.pipeline, self.family, args, peft_config, dtype)
        if was_trained:
            warn_of_unused_settings(args, str(policy.adapter_name))
        check_optimizer(optimizer, policy)
        if args.disable_dropout:
            disable_dropout(policy)
        keep_copy = was_trained or args.sync_ref_model
        self.reference = _build_reference(policy, keep_copy, ref_networks, args) if needs_reference else None
        if args.attention_backend is not None:
            set_backend(args.attention_backend, self._networks(policy))
        self.sampled_reference = None if isinstance(self.reference, OwnReference) else self.reference
        if self.reference is None and policy.adapter_name is not None:
            self.sampled_reference = AdapterReference(policy, keep_copy=was_trained)
        leave_quantized_weights_to_each_process(policy)
        if was_trained:
            check_finite_tensors(policy.adapter_state(str(policy.adapter_name)).items(), "The pipeline's adapter")
        return policy, was_trained

    def _prepare_compilation(self) -> None:
        """Sets `repeated_blocks`, where they are asked for, of the networks where training wants them."""
        args, policy = self.args, self.policy
        if not args.compile_repeated_blocks:
            return
        backend, mode = args.torch_compile_backend or DEFAULT_BACKEND, args.torch_compile_mode
        self.repeated_blocks = RepeatedBlocks(self._networks(policy), backend, mode, self._has_several_shapes)
        self.add_callback(CompilationCallback(self.repeated_blocks))

    @property
    def _has_several_shapes(self) -> bool:
        """Whether blocks are called with tensors of other shapes from batch to batch."""
        # of several networks each gets some of the rows, and prompts that are masked are as long as the longest
        return len(self.sizes) > 1 or len(self.policy.networks) > 1 or self.family.reads_lengths

    def _networks(self, policy: Policy) -> list[nn.Module]:
        """Those of the policy, and those that the reference has beside them."""
        own = self.reference.networks if isinstance(self.reference, ModelReference) else []
        return [*policy.networks.values(), *own]

    def _describe_course(
        self, policy: Policy, was_trained: bool, args: TGOConfig, settings: Mapping[str, Any], rows: str
    ) -> Course:
        """What the run depends on: settings, a digest of the rows, and the weights that it begins with."""
        public = checkpoints.public_config(args.to_dict())
        fingerprints = {"the rows, their order, images or videos": rows}
        fingerprints |= {f"weights or settings of `{name}`": digest for name, digest in self._part_digests().items()}
        fingerprints[OF_THE_BASE] = weights_digest(dict(policy.networks.items()))
        if was_trained:
            start = policy.adapter_state(str(policy.adapter_name))
            fingerprints["the weights of the adapter that it began with"] = tensors_digest(sorted(start.items()))
        if isinstance(self.reference, ModelReference):
            fingerprints["the reference's weights"] = weights_digest({"": self.reference.model})
        settings = {**course_settings(args, public, policy), "size": list(self.size), **settings}
        return Course(json.loads(json.dumps(settings)), fingerprints)

    def _part_digests(self) -> dict[str, str]:
        """Of the encoders, and of what has no weights, the scheduler above all."""
        parts = {name: part for name, part in self.pipeline.components.items() if part is not None}
        light = {name: part for name, part in parts.items() if not isinstance(part, nn.Module)}
        digests = {name: component_fingerprint(part) for name, part in light.items()}
        return digests | self.encoders.fingerprints

    def _add_own_callbacks(
        self, eval_rewards: Mapping[str, Reward] | None = None, sources: SampleSources | None = None
    ) -> None:
        args, handler = self.args, self.callback_handler
        handler.callbacks = [in_lines(callback) for callback in handler.callbacks]  # the order stays
        self.add_callback(EpochCallback(self.set_epoch, lambda: self.epoch))
        self.add_callback(UntrainedLayersCallback(self))
        if args.sync_ref_model:
            self.add_callback(SyncReferenceCallback(self.sync_reference))
        kwargs = self._sampling_options()
        if args.sample_prompts:
            given = _given(sources, OF_GRIDS)
            self.add_callback(
                SampleGridCallback(self, args.sample_prompts, args.sample_steps, args.seed, **given, **kwargs)
            )
        if args.eval_sample_prompts:
            self._eval_samples = EvalSamples(
                self, eval_rewards or {}, args.eval_sample_prompts, args.eval_samples_per_prompt, args.seed,
                args.eval_batch_size, **_given(sources, of_evaluations(args)), **kwargs,
            )  # fmt: skip
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience))
        self.add_callback(InterruptionCallback(lambda: self.is_interrupted, self.end_if_interrupted))

    def _sampling_options(self) -> dict[str, Any]:
        """How grids and evaluations call the pipeline."""
        options: dict[str, Any] = {"num_inference_steps": self.args.sample_num_inference_steps}
        if self.args.sample_guidance_scale is not None:
            options["guidance_scale"] = self.args.sample_guidance_scale
        return options

    @property
    def num_sources(self) -> int:
        """Source images of each row that is trained on; 0 of a pipeline that reads none, and of a stream."""
        return int(getattr(self.train_dataset, "num_sources", 0))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next pass over the training set draws."""
        if self._row_sampler is not None:
            self._row_sampler.epoch = epoch

    # ---- Reference and samples ----

    @torch.no_grad()
    def sync_reference(self, alpha: float) -> None:
        """Moves the reference: `ref = alpha * policy + (1 - alpha) * ref`, where an averaged policy is its average."""
        if self.reference is None:
            raise ValueError(f"There is no reference to synchronise ({self._objective_name}).")
        policy = self.policy
        name = policy.adapter_name
        with self.optimizer_mode.averaged(), self.strategy.parts(policy, self.reference):
            self.reference.sync(policy.state_dict() if name is None else policy.adapter_state(name), alpha)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        from_reference: bool = False,
        batch_size: int | None = None,
        sources: Sequence[Sequence[Any]] | None = None,
        **kwargs: Any,
    ) -> list[Sample]:
        """One image, or the frames of one video, per prompt, each from its own seed.

        Where weights are sharded, every process has to call it, with the same arguments.

        Args:
            prompts: what to sample.
            seeds: one per prompt.
            from_reference: sample from the reference instead of the policy; without one, as of `loss_type='sft'`, from
                the policy as it was before training.
            batch_size: samples that are drawn at once; all of them if None.
            sources: for pipelines that read them, the source images of each prompt, PIL.
            kwargs: passed to the pipeline; a `negative_prompt` that is a string is that of each prompt.

        Raises:
            ValueError: if there is no reference to sample from.
        """
        if from_reference and self.sampled_reference is None:
            raise ValueError(
                f"{self._objective_name} with `use_peft=False` keeps no copy of the network, so there is no reference "
                "to draw from. Draw before training."
            )
        was_training = self.model.training
        reference = self.sampled_reference if from_reference else None
        sampling = nullcontext() if reference is None else reference.sampling(self.pipeline)
        negative = kwargs.get("negative_prompt")
        called = negating(self.pipeline, kwargs.pop("negative_prompt") if isinstance(negative, str) else None)
        self.encoders.summon()
        eager = nullcontext() if self.repeated_blocks is None else self.repeated_blocks.eager()
        try:
            with self.optimizer_mode.averaged(), sampling, eager, self.encoders.decoding():
                self.model.eval()
                samples: list[Sample] = []
                size = batch_size or len(prompts) or 1
                with quiet(self.pipeline):
                    for start in range(0, len(prompts), size):
                        rows = slice(start, start + size)
                        generators = cpu_generators(seeds[rows])
                        if sources is not None:
                            kwargs["sources"] = sources[rows]
                        samples += self.family.sample(called, prompts[rows], generators, self.size, **kwargs)
                return samples
        finally:
            self.model.train(was_training)
            self._release_encoders()

    def _release_encoders(self) -> None:
        """Makes room on the device, where training does without encoders."""
        self.encoders.release()

    # ---- Which checkpoint is kept ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """As [`ResumableTrainer.train`]; says which checkpoint is kept, where evaluations choose one.

        Raises:
            OutsideBoundsError: if there are bounds, and no evaluation was inside them.
        """
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.args.bounds and self.kept_step is None:
            raise OutsideBoundsError(self._describe_failure())
        if self._is_watched and self.is_world_process_zero():
            print("\n".join(self._describe_choice()))
        return output

    @property
    def _is_watched(self) -> bool:
        """Whether evaluations draw samples, or may end the run."""
        return self._eval_samples is not None or self._is_bounded

    def _begin(self, checkpoint: Path | None) -> None:
        super()._begin(checkpoint)
        self.kept_step, self._gone_on_from = None, checkpoint
        saved = None if checkpoint is None else checkpoints.RunRecord.read(checkpoint)
        ways = {} if self._eval_samples is None else self._eval_samples.ways
        self._sample_ways = [] if saved is None else saved.sample_ways
        if ways != (self._sample_ways[-1][1] if self._sample_ways else {}):
            self._sample_ways = [*self._sample_ways, (0 if saved is None else saved.updates, ways)]
        # Before a checkpoint is loaded: the reference may be what it moves, or what the policy is until then. And
        # before hours of training, so that a reward that does not work says so.
        is_now = checkpoint is None or self.args.sync_ref_model or self.sampled_reference is None
        if self._eval_samples is not None and is_now:
            self._eval_samples.measure_reference()

    def _broken_bounds(self) -> list[str]:
        """A clause for each bound that the evaluation after the last update, if there was one, is outside of."""
        step, bounds = self.state.global_step, self.args.bounds
        evaluations = comparable_evaluations(self.state.log_history, self._sample_ways)
        metrics = next((it.metrics for it in evaluations if it.step == step), {})
        return bounds.broken(metrics) if bounds.covered(metrics) else []

    def _why_stopped(self) -> tuple[str, str] | None:
        """Why the last evaluation ends the run, a clause, and what would let it go on."""
        step, broken = self.state.global_step, self._broken_bounds()
        if broken:
            return f"was ended after update {step}: {', and '.join(broken)}", "Set other bounds"
        stopping = self._early_stopping
        if stopping is not None and stopping.is_over:
            num = stopping.early_stopping_patience_counter
            better = f"{num} evaluation{'s' * (num > 1)} in a row had no better {self.args.metric_for_best_model!r}"
            return f"was ended after update {step}: {better}", "Set a higher `early_stopping_patience`"
        return None

    def _record(self) -> checkpoints.RunRecord:
        return replace(super()._record(), sample_ways=list(self._sample_ways))

    def _restore_choice(self) -> None:
        """Takes up the best checkpoint and the count of evaluations since, or finds them anew in the log.

        They are what the run chose, unless it would have chosen otherwise under the bounds, by the metric and of the
        samples of now, or the best checkpoint is gone.
        """
        args, state, stopping = self.args, self.state, self._early_stopping
        if stopping is not None:
            stopping.restore(state)
        assert self._gone_on_from is not None
        saved, now = checkpoints.RunRecord.read(self._gone_on_from), self._record()
        bounds = ("max_drift", "min_variety", "early_stopping_patience")
        is_used = bool(now.sample_ways) or any(name in it.config for it in (saved, now) for name in bounds)
        if not is_used or args.metric_for_best_model is None:
            return
        metric = args.metric_for_best_model.removeprefix("eval_")
        is_of_others = self._is_measured_otherwise(saved, metric)
        criteria = ("metric_for_best_model", "greater_is_better", *bounds)
        is_gone = bool(state.best_global_step) and state.best_model_checkpoint is None and self._is_bounded
        if not is_of_others and not is_gone and all(saved.config.get(it) == now.config.get(it) for it in criteria):
            return
        folders = self._kept_checkpoints(self._gone_on_from)
        evaluations = comparable_evaluations(state.log_history, self._sample_ways)
        choice = choose(evaluations, metric, bool(args.greater_is_better), args.bounds, list(folders))
        state.best_metric, state.best_global_step = choice.metric, choice.step
        state.best_model_checkpoint = None if choice.step is None else str(folders[choice.step])
        if stopping is not None:
            stopping.count_from(state, choice.num_since)
        if is_of_others and self.is_world_process_zero():
            print(
                f"Samples are drawn or scored otherwise than before update {state.global_step + 1}: the best "
                "checkpoint is chosen anew, of the evaluations from there on."
            )

    def _is_measured_otherwise(self, saved: checkpoints.RunRecord, metric: str) -> bool:
        """Whether the checkpoint's run measured other samples than those by which the best is chosen now."""
        then, now = ({} if not ways else ways[-1][1] for ways in (saved.sample_ways, self._sample_ways))
        used = [metric] if metric.startswith(SAMPLES) else []
        used += [VARIETY] if self.args.min_variety is not None else []
        return any(name in then and then[name] != now.get(name) for name in used)

    def _kept_checkpoints(self, newest: Path) -> dict[int, Path]:
        """The checkpoints of the run up to one that it goes on from, by their update."""
        best = self.state.best_model_checkpoint
        parents = [self.args.output_path, newest.parent, *([] if best is None else [Path(best).parent])]
        found = {checkpoints.checkpoint_step(it): it for parent in parents for it in checkpoints.checkpoints(parent)}
        return {step: path for step, path in found.items() if step <= self.state.global_step}

    @property
    def _is_bounded(self) -> bool:
        """Whether evaluations may end the run; each then has its checkpoint, if it is the best."""
        return bool(self.args.bounds) or self.args.early_stopping_patience is not None

    @property
    def _early_stopping(self) -> EarlyStopping | None:
        return next((it for it in self.callback_handler.callbacks if isinstance(it, EarlyStopping)), None)

    def _why_over(self, max_steps: int) -> tuple[str, str] | None:
        return super()._why_over(max_steps) or self._why_stopped()

    def _over_rows(self, losses: Tensor, valid: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The sum of losses `[B]`, 0 for padding, over the rows of the update, `num_items`, or else the valid ones."""
        total = losses.sum()
        if num_items is None:
            return total / valid.sum().clamp(min=1)
        num_processes: int = self.accelerator.num_processes  # gradients, and logged losses, are averaged over them
        return (total if num_processes == 1 else total * num_processes) / num_items

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = False
        if self.args.bounds.broken(metrics):  # never the best, whatever its metric
            self.control.should_training_stop = True
        else:
            try:
                is_best = super()._determine_best_metric(metrics, trial)
            except KeyError as error:  # of a stream, or of `compute_metrics`: the others were checked
                raise ValueError(str(error.args[0])) from error
        self._show_evaluations()
        return is_best

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.kept_step = checkpoints.checkpoint_step(Path(str(self.state.best_model_checkpoint)))

    def _show_evaluations(self) -> None:
        """Draws what was measured until now, in the folder of the run."""
        if self._is_watched and self.is_world_process_zero():
            path, step = self.args.output_path / EVALUATIONS_NAME, self.state.global_step
            best = self.state.best_global_step or None
            plot_evaluations(read_evaluations(self.state.log_history), self.args.bounds, best, path)
            log_picture(self, "evaluations", path, step)

    def _describe_choice(self) -> list[str]:
        args, state, stopped = self.args, self.state, self._why_stopped()
        lines = [] if stopped is None else [f"The run {stopped[0]}."]
        if self.kept_step is not None:
            best = f"{args.metric_for_best_model!r} is {state.best_metric:.4g}"
            lines.append(f"Kept is checkpoint-{self.kept_step}, whose {best}, of {state.global_step} updates.")
        picture = args.output_path / EVALUATIONS_NAME
        return [*lines, f"The evaluations over the run: {picture}"] if picture.is_file() else lines

    def _describe_failure(self) -> str:
        """Why a run with bounds has no checkpoint to keep, and what to do."""
        args, step, broken = self.args, self.state.global_step, self._broken_bounds()
        if self.state.best_global_step:
            return (
                f"The best checkpoint, checkpoint-{self.state.best_global_step}, is no longer in "
                f"{str(args.output_path)!r}. Bring it back, or begin anew in another `output_dir`."
            )
        if not broken and len(self._sample_ways) > 1:
            return (
                f"No evaluation was inside the bounds since samples are drawn and scored as now, from update "
                f"{self._sample_ways[-1][0] + 1} on, so that there is no model to keep after update {step}. Set "
                "`max_steps` higher, or go on with the samples and rewards of before."
            )
        if not broken:
            return (
                f"`{'max_drift' if args.max_drift is not None else 'min_variety'}` is set, and in {step} updates there "
                f"was no evaluation with a finite {args.metric_for_best_model!r}. Set `eval_steps` lower, and "
                "`eval_delay` to 0."
            )
        return (
            f"No evaluation was inside the bounds, so that there is no model to keep: after update {step}, "
            f"{', and '.join(broken)}. The checkpoints are still in {str(args.output_path)!r}. Train with "
            f"`recipe='robust'` or a lower `learning_rate` (it is {args.learning_rate:g}), bound the scores (`tgo-trl "
            "inspect` shows them), or evaluate sooner (`eval_steps`)."
        )

    # ---- The card and the Hub ----

    def create_model_card(  # type: ignore[override]
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
    ) -> None:
        """Writes `README.md`, the model card, to the output directory.

        What `tgo-trl strength` has put into the card that is there is kept, if it describes the weights that are there.

        Args:
            model_name: title of the card; defaults to the name of the repository or output directory.
            dataset_name: Hub id of the training set.
            tags: added to the card's.
            license: of the trained weights; defaults to the base model's, where its card says so.
        """
        if not self.is_world_process_zero():
            return
        folder = self.args.output_path
        folder.mkdir(parents=True, exist_ok=True)
        grid = last_grid(folder)
        step = self.state.global_step if self.kept_step is None else self.kept_step
        weights = self.hub_model_id or self.args.hub_model_id or path_in_card(str(folder))
        dtype, (negative_prompt, call) = training_dtype(self.args), self._example_call()
        base = public_text(str(self.pipeline.config.get("_name_or_path") or ""))
        content = CardContent(
            model_name=model_name or (self.args.hub_model_id or folder.resolve().name).split("/")[-1],
            base_model=base,
            pipeline_class=type(self.pipeline).__name__,
            pipeline_package=type(self.pipeline).__module__.partition(".")[0],
            weights=weights,
            loading_code=self.family.loading_code(self.pipeline, weights),
            base_code=base_code(self.pipeline, path_in_card(base), dtype),
            loading_arguments="".join(f", {name}=None" for name in self.family.left_out(self.pipeline))
            + ("" if dtype == torch.float32 else f", dtype={dtype}"),
            video_format=self.family.video_format,
            task=self.family.task,
            is_adapter=self.policy.adapter_name is not None,
            in_comfyui=self.policy.adapter_name is not None and self.family.comfyui_prefix is not None,
            rank_and_alpha=self.policy.rank_and_alpha,
            method=self.method,
            method_tag=self.method_tag,
            method_paper=self.method_paper,
            rule=self.label_rule,
            pairs=self.pairs,
            hyperparameters=self.hyperparameters(),
            prompt=self._example_prompt(),
            negative_prompt=negative_prompt,
            call=call,
            reads_source=self.family.most_sources > 0,
            paper=self.paper,
            grid=None if grid is None else grid.relative_to(folder).as_posix(),
            histogram=SCORE_HISTOGRAM_NAME if (folder / SCORE_HISTOGRAM_NAME).is_file() else None,
            evaluated_step=step,
            evaluation=evaluation_after(step, self.state.log_history).rows(self.args.bounds)
            if self._is_watched
            else {},
            evaluations=EVALUATIONS_NAME if (folder / EVALUATIONS_NAME).is_file() else None,
            dataset_name=None if dataset_name is None else public_text(dataset_name),
            license=license,
            tags=(tags,) if isinstance(tags, str) else tuple(tags or ()),
        )
        card = build_card(content)
        path = folder / CARD_NAME
        previous = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        if MARK in previous and not self.is_in_train:  # within training, the card is of weights that are not there yet
            card.content = with_sections_of(previous, card.content, weights_fingerprint(folder))
        card.save(path)

    @property
    def method_tag(self) -> str:
        """How it is trained, as a tag of the card."""
        return self.args.loss_type

    @property
    def method_paper(self) -> Paper:
        """Where the method is from."""
        return TGO_PAPER

    @property
    def _objective_name(self) -> str:
        """What messages call it."""
        return f"`loss_type={self.args.loss_type!r}`"

    @property
    def method(self) -> str:
        """How it is trained, after "trained with", for the card."""
        raise NotImplementedError

    @property
    def negative_prompt(self) -> str | None:
        """What the card's snippet draws away from; None for nothing."""
        return None

    @property
    def paper(self) -> tuple[str, str] | None:
        """Title and arXiv id, or address, of where the loss is from, for the card; None for the paper of TGO."""
        return None

    def hyperparameters(self) -> dict[str, Any]:
        """Name and value of each line of the card's table."""
        args, policy, video_format = self.args, self.policy, self.family.video_format
        shown = {
            "resolution": f"{self.size[1]} x {self.size[0]}"
            + (", in buckets of aspect ratios" if len(self.sizes) > 1 else ""),
            "learning rate": args.learning_rate,
            "schedule": SchedulerType(args.lr_scheduler_type).value,
            "batch size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "updates": self.state.global_step,
            "seed": args.seed,
            "precision": ("bf16" if args.bf16 else "fp16" if args.fp16 else "fp32")
            + ("" if args.bf16_autocast else ", without autocast"),
        }
        if args.ema_decay is not None:
            shown["EMA of the weights"] = f"decay {args.ema_decay:g}"
        if video_format is not None:
            shown["frames"] = f"{video_format.num_frames} at {video_format.fps:g} per second"
        if policy.lora_config is not None:
            shown["LoRA rank, alpha"] = f"{policy.lora_config.r}, {policy.lora_config.lora_alpha}"
        if self.changes:
            shown["changed on the way"] = "; ".join(self.changes)
        return shown

    def _example_prompt(self) -> str:
        """For the card's snippet."""
        prompts = self.args.sample_prompts
        return str(prompts[0]) if prompts else getattr(self.train_dataset, "example_prompt", None) or "a photo"

    def _example_call(self) -> tuple[str | None, dict[str, str]]:
        """Negative prompt, and Python code of the other arguments of the card's snippet: of the grids, if any."""
        height, width = self.size
        options = self._sampling_options() if self.args.sample_prompts else {}
        if self.negative_prompt is not None:
            options["negative_prompt"] = self.negative_prompt
        if isinstance(self.family, SourceFamily):
            blank = Image.new("RGB", (width, height))
            options |= self.family.source_options([blank] * self._num_example_sources())
        call = self.family.call_options(self.pipeline, self.size, **options)
        negative_prompt = call.pop("negative_prompt", None)
        code = {}
        for name, value in call.items():
            code[name] = _source_code("source.png", self.size) if isinstance(value, Image.Image) else repr(value)
            if isinstance(value, list):  # of images, by a family that takes several
                names = ["source.png"] if len(value) == 1 else [f"source{i + 1}.png" for i in range(len(value))]
                code[name] = f"[{', '.join(_source_code(it, self.size) for it in names)}]"
        code["generator"] = f"torch.Generator().manual_seed({stable_seed(self.args.seed, 0)})"
        return negative_prompt, code

    def _num_example_sources(self) -> int:
        """Source images of the card's snippet: as many as those of the first grid's prompt, or of the rows."""
        return len(files_of(self.args.sample_sources[0])) if self.args.sample_sources else self.num_sources

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Opens the repository to push to, unless that was done when the trainer was made."""
        if self.is_world_process_zero():
            self.destination = self.destination or open_model_repository(self.args, token, private)
            self.hub_model_id = self.destination.repo_id  # type: ignore[assignment]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As [`~transformers.Trainer.push_to_hub`]; the files are saved before, and are safe if it fails.

        Raises:
            UploadError: if it fails, and `blocking`; it says what uploads the files.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        assert self.destination is not None
        to = self.destination
        to = replace(to, token=token or to.token, revision=revision or to.revision)
        message, folder = commit_message or "End of training", self.args.output_path
        upload = folder_upload(self.uploads, to, folder, folder, message, is_background=not blocking)
        future = self.uploads.start(upload, is_awaited=blocking)
        return future.result() if blocking else future

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads weights, card and pictures in the background, and the checkpoint itself if `hub_strategy` says so.

        Only a checkpoint holds files that are no safetensors, JSON or pictures: the optimizer's, which a resume needs.
        """
        args, checkpoint, to = self.args, Path(checkpoint_folder), self.destination
        skipped = args.hub_strategy == HubStrategy.END or (self.uploads.is_busy and not args.hub_always_push)
        skipped = skipped or bool(self._broken_bounds())  # nobody is to find a wrecked model there
        if not self.is_world_process_zero() or skipped:
            return
        assert to is not None
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(args.output_dir, _internal_call=True)
        run, message = args.output_path, f"Training in progress, step {self.state.global_step}"
        self.uploads.start(folder_upload(self.uploads, to, run, run, message, is_background=True))
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            message = f"{message}, checkpoint"
            self.uploads.start(folder_upload(self.uploads, to, run, checkpoint, message, name, is_background=True))

    def _unpushed(self) -> str | None:
        """What is not on the Hub although it was to be, once all uploads have ended."""
        self.uploads.finish()
        return sum_up(self.uploads.failures)

    def _finish_current_push(self) -> None:
        failures = self._unpushed()
        if failures is not None:
            logger.warning("%s", failures)

    def check_pushed(self) -> None:
        """Raises an UploadError if something that was to be on the Hub, such as the last checkpoint, is not there."""
        failures = self._unpushed()
        if failures is not None:
            raise UploadError(failures)


def _source_code(name: str, size: Size) -> str:
    return f'ImageOps.fit(load_image("{name}"), ({size[1]}, {size[0]}))'


def _given(sources: SampleSources | None, name: str) -> dict[str, Any]:
    """`sources` for samples, where there are any."""
    return {"sources": sources[name]} if sources and name in sources else {}


def _build_reference(
    policy: Policy, keep_copy: bool, ref_networks: dict[str, nn.Module] | None, args: TGOConfig
) -> Reference:
    if ref_networks is None and policy.adapter_name is not None:
        return AdapterReference(policy, keep_copy)
    if ref_networks is None and args.precompute_ref_log_probs:
        return OwnReference()  # asked before the first update, and not after it
    reference = ModelReference(ref_networks or copy.deepcopy(dict(policy.networks.items())), policy)
    if args.disable_dropout:
        disable_dropout(reference.model)
    return reference
