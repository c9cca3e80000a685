"""[`AlignPropTrainer`]: climbs a reward by its gradient, through the sampler. Knows no model."""

import os
from typing import Any

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline, ModularPipeline
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import TrainerCallback

from ..cards.model_card import ALIGNPROP_PAPER, Paper
from ..data.batch import FIELDS
from ..data.collator import RowCollator
from ..data.encoded import encode_prompts
from ..data.prompts import PromptDataset
from ..data.sampler import RowSampler
from ..families import Family
from ..families.base_latents import LatentFamily
from ..measures import THUMBNAIL, Moments
from ..media.readers import ImageReader
from ..policy.adapters import check_policy
from ..policy.draws import draw_samples
from ..policy.encoders import FrozenEncoders
from ..policy.gradient_sampling import GradientSampler, check_sampler, step_options
from ..policy.index import find_family_class, find_index
from ..policy.launch import sharding_of
from ..policy.modular import as_standard
from ..rewards import load_reward
from ..rewards.base import (
    DRAWN_FOR,
    DifferentiableReward,
    check_differentiable,
    check_rates,
    check_sources,
    checked_pixel_scores,
    reward_name,
)
from ..storage.sources import open_dataset
from .alignprop_config import AlignPropConfig
from .arguments import check_launch, run_name_of, training_dtype
from .base_trainer import BaseTrainer
from .callbacks import check_callbacks
from .course import describe_optimizer
from .eval_samples import load_eval_rewards, rate_of
from .feasibility import check_run, check_sample_metric
from .kinds import check_kinds
from .nonfinite import UpdateGuard
from .preparation import shard_writer, training_block, training_prompts
from .resuming import check_resumed_settings
from .sources import check_drawn_prompts, warn_of_unread


class AlignPropTrainer(BaseTrainer):
    """
    Trainer that makes samples score higher by the gradient of a reward, through the autoencoder and the last steps of
    the sampler: [AlignProp](https://huggingface.co/papers/2310.03739), and, with the gradient of the last step alone,
    [DRaFT-1](https://huggingface.co/papers/2309.17400). This class is a wrapper around the
    [`~transformers.Trainer`] class and inherits all of its attributes and methods.

    Nothing holds the policy near to where it began: it finds what the reward overrates. Watch `variety`, and samples
    under another reward (`eval_rewards`); `docs/alignprop.md` has both.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from tgo_trl import AlignPropConfig, AlignPropTrainer

    >>> trainer = AlignPropTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ...     "aesthetic",
    ...     AlignPropConfig("sd15-alignprop", max_steps=100),
    ...     Dataset.from_dict({"prompt": ["a red fox in the snow", "a lighthouse at dusk"]}),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, `PathLike` or [`~diffusers.DiffusionPipeline`]):
            Pipeline to be trained, as of the [`TGOTrainer`], of a family that has a sampler with gradient.
        reward (`str` or object):
            What is climbed: the name of a reward that gives gradients, `path/to/file.py:object`, or an object with
            `differentiable = True` and `score_pixels(prompts, pixels)`, which takes a float tensor `[B, 3, H, W]` in
            [0, 1] and returns a tensor `[B]`.
        args ([`AlignPropConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or `str`):
            Rows of a prompt, or a Hub id, folder or file of them, of which the split `train` is read.
        processing_class, callbacks, optimizers, optimizer_cls_and_kwargs, quantization_config, peft_config, family:
            As of the [`TGOTrainer`].
    """

    args: AlignPropConfig
    model: nn.Module

    # `compute_loss` normalises over all rows of an accumulated batch.
    loss_is_scaled_for_ga = True
    method = "reward backpropagation (AlignProp)"
    method_tag = "alignprop"
    method_paper: Paper = ALIGNPROP_PAPER
    _objective_name = "AlignProp"

    def __init__(
        self,
        model: str | os.PathLike[str] | DiffusionPipeline | ModularPipeline,
        reward: str | DifferentiableReward,
        args: AlignPropConfig | None = None,
        train_dataset: Dataset | str | None = None,
        *,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        family: Family | None = None,
    ) -> None:
        # Whatever can be refused is, before anything is loaded.
        check_kinds(model, None, processing_class, peft_config, family)
        model = as_standard(model)
        args = _default_args(model) if args is None else args
        texts = training_prompts(_check_arguments(args, train_dataset), args)
        check_sample_metric(args)
        check_run(args, optimizers, optimizer_cls_and_kwargs)
        check_callbacks(args, callbacks)
        check_resumed_settings(args)
        self.reward = _find_reward(reward)
        eval_rewards = load_eval_rewards(args.eval_rewards, have_sources=False)
        index = find_index(model, args.model_init_dict, family)
        family_class = find_family_class(model, args.model_init_dict, family, index)
        if family_class is not None:
            check_sampler(family_class, model if isinstance(model, str) else type(model).__name__)
        dtype = training_dtype(args)
        self._open_repository(args)  # before anything that takes long

        # The pipeline, and whether settings fit it.
        self._load_pipeline(model, args, dtype, family, processing_class, quantization_config, index=index)
        check_sampler(self.family, type(self.pipeline).__name__)
        check_drawn_prompts(args, self.pipeline, self.family)
        check_rates(eval_rewards, rate_of(self.family), DRAWN_FOR)
        check_policy(self.pipeline, self.family, args, peft_config)
        encoder_dtype = dtype if args.use_peft else torch.float32
        self.encoders = FrozenEncoders(self.family, self.pipeline, args.device, encoder_dtype)
        self.sampler = self._build_sampler(args)
        self._try_reward(next(iter(texts.values())))
        prompts = encode_prompts(texts, self.encoders, shard_writer(args), args.encode_batch_size, "training")
        train_set = PromptDataset(texts, prompts)
        self._release_encoders()

        # What is trained.
        policy, was_trained = self._build_policy(args, dtype, peft_config, None, False, optimizers[0])
        policy.recomputes_calls = bool(
            args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)  # the newer name
        )
        if policy.recomputes_calls:
            self.encoders.recompute_decoding()
        settings = {
            "reward": f"{reward_name(self.reward)} ({getattr(self.reward, 'version', 'no version')})",
            "samples": self._sampling_options(),
            "optimizer": describe_optimizer(optimizers, optimizer_cls_and_kwargs),
        }
        self._course = self._describe_course(policy, was_trained, args, settings, train_set.fingerprint)
        self._rewards, self._pictures = Moments(), Moments()
        self._prepare_run(args)

        # The loop.
        super().__init__(
            model=policy,
            args=args,
            data_collator=RowCollator(),
            train_dataset=train_set,
            eval_dataset=None if args.eval_strategy == "no" else train_set,  # of which nothing is read
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self._guard = UpdateGuard(self.accelerator, args.on_bad_row == "skip")
        self._prepare_compilation()
        self._add_own_callbacks(eval_rewards)

    # ---- Set-up ----

    def _build_sampler(self, args: AlignPropConfig) -> GradientSampler:
        """How samples are drawn in training; raises a ValueError if the pipeline does not draw in this way."""
        assert isinstance(self.family, LatentFamily)
        scale = self.family.guidance(self.pipeline, args.sample_guidance_scale)
        step_options(self.pipeline.scheduler, args.sample_eta, [])
        pixels, geometry = ImageReader().blank(self.size)
        image = self.encoders.images(pixels[None], geometry[None])
        sampler = GradientSampler(
            self.encoders, image, self.encoders.nothing(), args.sample_num_steps, scale, args.sample_eta
        )
        self.family.schedule(self.pipeline, sampler.num_steps, sampler.shape, torch.device("cpu"))  # which may refuse
        return sampler

    def _try_reward(self, prompt: str) -> None:
        """Raises a ValueError if the reward of a grey image has no gradient: rather now than in the first update."""
        pixels = torch.full((1, 3, *self.size), 0.5, device=self.encoders.device, requires_grad=True)
        with torch.enable_grad():
            scores = checked_pixel_scores(self.reward, [prompt], pixels)
        if torch.autograd.grad(scores.sum(), pixels, allow_unused=True)[0] is None:
            raise ValueError(
                f"The reward {reward_name(self.reward)!r} has a gradient, and none of the pixels: its `score_pixels` "
                "detaches them, or makes something else of them. Compute with the tensor that it is given."
            )

    def _sampling_options(self) -> dict[str, Any]:
        """As in training, so that what is shown is what is trained."""
        sampler = self.sampler
        options = {"num_inference_steps": sampler.num_steps, **sampler.family.guidance_options(sampler.guidance_scale)}
        return options | ({"eta": sampler.eta} if sampler.eta else {})

    # ---- Batches ----

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(FIELDS)  # type: ignore[assignment]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        assert isinstance(self.train_dataset, PromptDataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        shuffle_seed = None if self.args.train_sampling_strategy == "sequential" else seed
        return self._use_sampler(RowSampler(len(self.train_dataset), shuffle_seed, training_block(self.args, 1)))

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Minus the reward of a sample of each row: their sum over the number of rows of the whole update.

        Args:
            model: the policy as wrapped for training.
            inputs: a batch of prepared rows.
            return_outputs: also return `{"reward": float32 [B]}`.
            num_items_in_batch: rows of the update over all processes; None for a mean over the batch.
        """
        valid = inputs["valid"]
        draw = draw_samples(
            self.args.seed, inputs["epoch"], inputs["row"], self.sampler.shape, self.args.last_steps, valid.device
        )
        pixels = self.sampler(model, inputs["prompt"], draw)
        reward = checked_pixel_scores(self.reward, inputs["prompt_text"], pixels).to(valid.device)
        losses, valid = self._guard.add(inputs["row"], -reward, valid)
        self._rewards.add(reward.detach()[:, None], valid)
        self._pictures.add(F.adaptive_avg_pool2d(pixels.detach(), THUMBNAIL).flatten(1), valid)
        loss = self._over_rows(losses, valid, num_items_in_batch)
        return (loss, {"reward": reward.detach()}) if return_outputs else loss

    # ---- Metrics and evaluation ----

    def _training_metrics(self) -> dict[str, float]:
        """Mean and standard deviation of rewards, and how far two samples are apart, whatever their prompts."""
        rewards, pictures = (moments.pop(self.accelerator.reduce) for moments in (self._rewards, self._pictures))
        metrics = {} if rewards is None else {"reward": rewards.mean.item(), "reward_std": rewards.deviation}
        if pictures is not None:
            metrics["variety"] = pictures.distance
        return metrics

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Draws the samples of an evaluation, and measures them; there is no loss.

        Raises:
            ValueError: if a data set is passed, or neither `eval_rewards` nor `eval_prompts` are set.
        """
        if self._eval_samples is None or eval_dataset not in (None, self.eval_dataset):
            raise ValueError(
                "An evaluation draws the samples of `eval_prompts` and asks `eval_rewards`, and of a data set nothing "
                "is measured. Set these, and pass none."
            )
        self.optimizer_mode.settle()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._eval_samples.metrics().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- The card ----

    def hyperparameters(self) -> dict[str, Any]:
        """Name and value of each line of the card's table."""
        sampler, (fewest, most) = self.sampler, self.args.last_steps
        through = f"the last {most}" if fewest == most else f"the last {fewest} to {most}, drawn for each sample"
        return {
            "reward": f"`{reward_name(self.reward)}`, {getattr(self.reward, 'version', 'no version')}",
            "denoising steps": sampler.num_steps,
            "steps with a gradient": through,
            **{name.replace("_", " "): value for name, value in self._sampling_options().items() if "num" not in name},
            **super().hyperparameters(),
        }


def _default_args(model: str | DiffusionPipeline) -> AlignPropConfig:
    return AlignPropConfig(run_name_of(model, "AlignProp"))


def _check_arguments(args: object, train_dataset: object) -> Dataset:
    """The data set of prompts; raises a TypeError or ValueError for arguments that cannot work."""
    if not isinstance(args, AlignPropConfig):
        raise TypeError(
            f"`args` must be an `AlignPropConfig`, got `{type(args).__name__}`. The order of arguments is "
            "`AlignPropTrainer(model, reward, args, train_dataset)`; pass everything else by keyword."
        )
    if train_dataset is None:
        raise ValueError("`train_dataset` is required")
    check_launch(args)
    sharding = sharding_of(args)
    if sharding is not None:
        raise ValueError(
            f"{sharding} is not supported by AlignProp, whose gradient goes through the steps of a sampler and through "
            f"whole weights. Leave `{sharding.lower()}` unset, also in accelerate's configuration."
        )
    dataset = open_dataset(train_dataset) if isinstance(train_dataset, str) else train_dataset
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"`train_dataset` must be a `Dataset`, or a Hub id, got `{type(dataset).__name__}`. Prompts are read "
            "whole: load them without `streaming=True`."
        )
    warn_of_unread(args, "train_dataset", dataset, "AlignPropTrainer", "Train on edits with `TGOTrainer`.")
    return dataset


def _find_reward(reward: str | DifferentiableReward) -> DifferentiableReward:
    """The reward, which has been found to say that it has a gradient."""
    try:
        found: Any = load_reward(reward) if isinstance(reward, str) else reward
        check_differentiable(found)
        check_sources({reward_name(found): found}, False, "Take another reward: samples are of prompts alone.")
    except ValueError as error:
        raise ValueError(f"`reward`: {error}") from error
    differentiable: DifferentiableReward = found
    return differentiable
