"""[`BaseTrainer`]: what every trainer of a diffusers pipeline has beside its loss: policy, reference, samples."""

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import PeftConfig
from torch import Tensor, nn
from transformers import set_seed

from ..families import Family
from ..media.types import Sample
from ..policy.attention import set_backend
from ..policy.compilation import RepeatedBlocks
from ..policy.denoising import Denoiser
from ..policy.distributed import leave_quantized_weights_to_each_process
from ..policy.encoders import FrozenEncoders
from ..policy.index import Index, class_beside_index
from ..policy.policy import Policy, build_policy, disable_dropout
from ..policy.reference import AdapterReference, ModelReference, OwnReference, Reference
from ..policy.sampling import check_asked, cpu_generators, negating, quiet
from ..rewards.base import Reward
from ..storage.fingerprints import component_fingerprint, tensors_digest
from . import checkpoints
from .arguments import check_optimizer, warn_of_unused_settings
from .callbacks import CompilationCallback, EarlyStopping, EpochCallback, InterruptionCallback, SyncReferenceCallback
from .course import OF_THE_BASE, Course, course_settings, weights_digest
from .eval_samples import EvalSamples, rate_of
from .loading import TrainedPipeline, load_for_training
from .log_lines import in_lines
from .nonfinite import check_finite_tensors
from .published_trainer import PublishedTrainer
from .sample_grids import SampleGridCallback
from .sources import OF_GRIDS, SampleSources, of_evaluations
from .speed import DEFAULT_BACKEND
from .tgo_config import TGOConfig
from .untrained import UntrainedLayersCallback


class BaseTrainer(PublishedTrainer):
    """What every trainer of a diffusers pipeline has beside its loss.

    A subclass calls, in this order, [`_open_repository`] before anything that takes long, [`_load_pipeline`],
    [`_build_policy`] once its data are prepared, [`_prepare_run`], `Trainer.__init__`, and [`_add_own_callbacks`].

    Attributes:
        denoiser: how the pipeline's networks are asked to denoise.
        encoders: what turns images and prompts into what the networks take.
    """

    denoiser: Denoiser
    encoders: FrozenEncoders

    # ---- Set-up ----

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
        fingerprints = {"the rows, their order, images or videos": rows}
        fingerprints |= {f"weights or settings of `{name}`": digest for name, digest in self._part_digests().items()}
        fingerprints[OF_THE_BASE] = weights_digest(dict(policy.networks.items()))
        if was_trained:
            start = policy.adapter_state(str(policy.adapter_name))
            fingerprints["the weights of the adapter that it began with"] = tensors_digest(sorted(start.items()))
        if isinstance(self.reference, ModelReference):
            fingerprints["the reference's weights"] = weights_digest({"": self.reference.model})
        self._resolved = {"size": list(self.size), **settings}
        return Course(self._course_settings(args, policy), fingerprints)

    def _course_settings(self, args: TGOConfig, policy: Policy) -> dict[str, Any]:
        """Those of now, and what was resolved when the trainer was made, as JSON has them."""
        public = checkpoints.public_config(args.to_dict())
        settings: dict[str, Any] = json.loads(json.dumps(course_settings(args, public, policy) | self._resolved))
        return settings

    def _begin(self, checkpoint: Path | None) -> None:
        # some settings act if they are changed until now
        self._course = replace(self._course, settings=self._course_settings(self.args, self.policy))
        super()._begin(checkpoint)

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
                args.eval_batch_size, fps=rate_of(self.family), **_given(sources, of_evaluations(args)), **kwargs,
            )  # fmt: skip
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience))
        self.add_callback(InterruptionCallback(lambda: self.is_interrupted, self.end_if_interrupted))

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
            TypeError: for a prompt or a seed that is in no list.
            ValueError: if there is no reference to sample from, or not one seed (and list of sources) for each prompt.
        """
        check_asked(prompts, seeds, sources, batch_size)
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

    def _over_rows(self, losses: Tensor, valid: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The sum of losses `[B]`, 0 for padding, over the rows of the update, `num_items`, or else the valid ones."""
        total = losses.sum()
        if num_items is None:
            return total / valid.sum().clamp(min=1)
        num_processes: int = self.accelerator.num_processes  # gradients, and logged losses, are averaged over them
        return (total if num_processes == 1 else total * num_processes) / num_items


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
