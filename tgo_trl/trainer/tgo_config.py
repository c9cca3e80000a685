"""[`TGOConfig`]: every setting of a run, checked when it is made."""

import copy
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils.import_utils import is_torch_cuda_available

from ..data.pairs import SELECTIONS
from ..data.score_columns import USUAL_COLUMN, check_score_columns, has_several, score_names, usual_normalization
from ..labels import COMBINATIONS, NORMALIZATIONS
from ..labels.checks import MAX_FLOAT32
from ..labels.fitting import THRESHOLD_TYPES
from ..labels.quantiles import QUANTILE_SCOPES
from ..losses import LOSSES
from ..losses.diffusion_kto import UTILITIES
from ..losses.dspo import DSPO_BETAS
from ..losses.tgo import ERROR_SCALES, NEGATIVES
from ..messages.public import without_secrets
from ..noise import DENSITIES
from ..policy.deepspeed_config import whole_when_loaded
from ..policy.launch import check_launched_precision, precision_of_settings, read_switch
from ..policy.targets import check_target_names
from ..precision import dtype_names, has_bfloat16, with_dtypes
from ..settings import (
    Several,
    as_dictionary,
    check_choice,
    check_finite,
    check_types,
    numbers_of,
    several,
    shown,
    take_plain_numbers,
    with_pipeline_class,
)
from .objective import (
    RECIPES,
    USUAL_DRAWS,
    check_effect_of_recipe,
    check_objective,
    check_precomputing,
    negative_weight,
    recipe_settings,
)
from .ranges import check_ranges
from .selection import (
    SAMPLES_PER_PROMPT,
    Bounds,
    check_prompts,
    check_rewards,
    check_selection,
    check_source_files,
    draws_samples,
    prompts_of,
    sample_metrics,
)
from .speed import check_attention, check_compilation, check_recomputation

FAMILY_SETTINGS = (
    "max_sequence_length", "train_guidance_scale", "timestep_density", "logit_mean", "logit_std", "mode_scale",
    "timestep_shift", "num_frames", "fps",
)  # fmt: skip
"""The settings that a model family's fields of the same names take, where it has them."""

_WHOLE = (
    "resolution", "height", "width", "num_frames", "max_sequence_length", "num_likelihood_samples",
    "ref_model_sync_steps", "lora_r", "encode_batch_size", "sample_steps", "sample_num_inference_steps",
    "eval_samples_per_prompt", "early_stopping_patience", "stream_lanes",
    "num_ref_draws", "precompute_ref_batch_size",
)  # fmt: skip
_POSITIVE = (
    *_WHOLE, "lora_alpha", "beta", "fps", "logit_std", "timestep_shift", "mirror_strength", "negative_margin",
    "desirable_weight", "undesirable_weight", "advantage_clip",
)  # fmt: skip


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` is {value}; it must be greater than 0 and finite.")


@dataclass
class TGOConfig(TrainingArguments):
    r"""
    Configuration class for the [`TGOTrainer`].

    This class includes only the parameters that are specific to TGO training. For a full list of training arguments,
    please refer to the [`~transformers.TrainingArguments`] documentation. Note that default values in this class may
    differ from those in [`~transformers.TrainingArguments`].

    Using [`~transformers.HfArgumentParser`] or `trl.TrlParser` we can turn this class into command-line arguments.

    Parameters
    ----------
        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for `DiffusionPipeline.from_pretrained`, used when the `model` argument of the
            [`TGOTrainer`] is a string.
        pipeline_class (`str`, *optional*):
            The diffusers class that the pipeline is loaded under, where it is to be another one than its
            `model_index.json` names, of the same parts: `"WanImageToVideoPipeline"` for Wan 2.2 TI2V-5B, which says
            text to video. It is recorded beside the adapter, from where `tgo-trl train` takes it that goes on with one.
        use_peft (`bool`, *optional*, defaults to `True`):
            Train a LoRA adapter. `False` trains all weights of the network and keeps a frozen copy as the reference.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the adapter, if no `peft_config` is passed to the trainer.
        lora_alpha (`int`, *optional*, defaults to `32`):
            The adapter's output is multiplied by `lora_alpha / lora_r`.
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout in the adapter. It makes policy and reference differ in training mode, so it is off.
        lora_target_modules (`str` or `list[str]`, *optional*):
            The modules that get an adapter: names (the ends of them: `"to_q"`, `"attn.to_out.0"`), or alone a regular
            expression for whole names, or `"all-linear"`. Defaults to the model family's choice.
        bf16_autocast (`bool`, *optional*, defaults to `True`):
            With `bf16=True`, call policy and reference under autocast. `False` calls them in bfloat16 as they are, as
            a pipeline in bfloat16 samples, and casts LoRA's factors, which stay float32 with their gradients and their
            optimizer, whenever they are computed with. It launches fewer kernels, and rounds in other places:
            `docs/performance.md` has both. Errors, losses and noise are float32 either way.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the trained network and its reference.

        > Parameters that control how fast it trains; `docs/performance.md` says when which pays

        speed (`str`, *optional*):
            `"auto"` chooses, on a GPU, `gradient_checkpointing` (of no block, of every n-th, of all) and
            `compile_repeated_blocks` by the memory that a step needs and by what was measured, and says why. What you
            set stays as it is.
        compile_repeated_blocks (`bool`, *optional*, defaults to `False`):
            Compile the blocks that the network repeats, of policy and reference, in training and in evaluations, with
            `torch_compile_backend` (`"inductor"` if not set) and `torch_compile_mode`, which alone do not turn
            `torch_compile` on then. Results differ by rounding. Samples are drawn with blocks that are not compiled.
        attention_backend (`str`, *optional*):
            What computes attention, of policy and reference, by diffusers' names (`"flash"`, `"_native_cudnn"`, ...).
            Defaults to PyTorch's own. It is tried before training, forward and backward; those without a gradient are
            refused, and networks for which diffusers has no choice, as UNets. Results differ by rounding.

        > Parameters that control the data

        prompt_column, image_column, video_column, score_column (`str`, *optional*):
            Names of the columns of the data set: `"prompt"`, `"image"`, `"video"` and `"score"` by default. A pipeline
            that makes videos trains on the video column.
        score_columns (`list[str]`, *optional*):
            Several columns of scores instead, each with a threshold of its own; `docs/score_columns.md` has an example.
            A column that is high where another is low holds that one back. Their order does not matter.
        score_combination (`str`, *optional*, defaults to `"sum"`):
            Of several columns, what makes a row positive: that the `"sum"` of how far its scores lie above their
            thresholds, each in the units of `score_normalization`, is at least 0; or that more columns `"vote"` for it
            than against it, of which the sum settles a tie. The row's weight is `1 + c |s|`, where `s` is the sum, or
            the lead of the majority as a share of all votes.
        score_weights (`list[float]`, *optional*):
            What each of the `score_columns` counts, in the order in which they are named; 1 each if not set.
        source_column (`str`, *optional*, defaults to `"source_image"`):
            For pipelines that make an image or video from others, as FLUX.1 Kontext: the column of the source image of
            each row, or of a list of them. FLUX.2 and Qwen-Image 2.1 are trained on edits where it is there, and else
            from prompts alone. Other pipelines read none, and say so where there is one.
        chosen_column, rejected_column (`str`, *optional*):
            For losses of pairs, the columns of the better and of the worse images or videos: `"chosen"` and
            `"rejected"` by default, as TRL names them. There is no score then.
        pairs (`str`, *optional*, defaults to `"auto"`):
            Where losses of pairs find them. `"columns"`: each row has a chosen and a rejected image. `"best_worst"`: of
            the scored images of each prompt, the best against the worst. `"all"`: all pairs of them. `"auto"`:
            `"columns"` if the data set has both columns, else `"best_worst"`. Equal scores are no pair.
        pair_margin (`float`, *optional*, defaults to `0.0`):
            In score units: the two scores of a pair have to be further apart.
        image_dir (`str`, *optional*):
            Folder of the images or videos whose paths the data set has: where relative paths begin, and out of which
            none may lead. `tgo-trl train` takes the data set's own folder if not set. A data set that is given as an
            object may name any file on this machine if not set.
        allow_urls (`bool`, *optional*, defaults to `False`):
            Fetch images and videos whose URLs the data set has.
        resolution (`int`, *optional*):
            Images are resized so that the shorter side has this many pixels, then cropped to a centred square. Defaults
            to the size the pipeline was trained at.
        height, width (`int`, *optional*):
            Instead of `resolution`, where images or videos are not square: resized until both sides are large enough,
            then cropped to the centre.
        aspect_ratio_buckets (`bool`, *optional*, defaults to `False`):
            Keep the aspect ratio of each image: it is brought to the nearest of several sizes that have about as many
            pixels as `resolution` asks for. The rows of an update share one size; every size's last update of an epoch
            is smaller. A streaming data set keeps up to an update's rows of each size in memory.
        max_aspect_ratio (`float`, *optional*, defaults to `2.0`):
            Of the buckets, longer side to shorter. More extreme images are cropped.
        num_frames (`int`, *optional*):
            Frames of each training video, from its start. Defaults to the model's: 81 for Wan, 121 for Wan 2.2
            TI2V-5B.
        fps (`float`, *optional*):
            Frames per second that are taken of a video file; lists and arrays of frames are taken as they are. Defaults
            to the model's: 16 for Wan, 24 for Wan 2.2 TI2V-5B.
        on_bad_row (`str`, *optional*, defaults to `"error"`):
            `"error"` stops at a row with an unreadable image, an empty prompt or a score that is no finite number, and
            names it; `"skip"` leaves such rows out, counts and reports them. Likewise where a row's loss or an update's
            gradient is NaN or infinite: `"error"` ends the run before the weights are touched, `"skip"` leaves the
            update out.
        stream_lanes (`int`, *optional*):
            In how many lanes a streaming training set of several shards is read, each by the processes that train on
            its rows. It has to divide the rows of an update. Defaults to as many as are about equally long, up to 16;
            `1` reads the stream in its order, and whole in every process.
        encode_batch_size (`int`, *optional*, defaults to `8`):
            Images and prompts per forward pass of the frozen encoders.
        encoding_cache_dir (`str`, *optional*):
            Folder of the encoded images and prompts. Defaults to `tgo_trl/encodings` in the Hugging Face cache.

        > Parameters that control the threshold and the weights

        threshold_type (`str`, *optional*, defaults to `"percentile"`):
            - `"percentile"`: `threshold_percentile` of all scores (the paper: the median).
            - `"mean"`: the mean of all scores.
            - `"value"`: `threshold_value`.
            - `"prompt_mean"`: per prompt, the mean of its scores; every prompt needs several images. For data whose
              prompts differ more than the images of one prompt do.
            - `"prompt_baseline"`: likewise `beta log mean exp(s / beta)`, an estimate of the ideal threshold that noise
              in the scores pushes up: for scores whose noise is small beside `beta`.
        threshold_percentile (`float`, *optional*, defaults to `50.0`):
            In percent, 0 to 100.
        threshold_value (`float`, *optional*):
            In score units. A row is positive if its score is at least the threshold.
        threshold_values (`list[float]`, *optional*):
            Instead, of several `score_columns`: one of each, in the order in which they are named.
        confidence_coef (`float`, *optional*, defaults to `5.0`):
            `c` in the row weight `1 + c |score - threshold|`. It acts in score units: 5 is little for scores between
            0.2 and 0.3, and much for scores between -2 and 2.
        score_normalization (`str`, *optional*):
            `"zscore"` or `"robust"` (median, interquartile range) make `confidence_coef` independent of score units;
            `"none"` does not. `"none"` if not set, but `"zscore"` with several `score_columns`, of which the one with
            the largest units would drown the others.

        > Parameters that control the training

        loss_type (`str`, *optional*, defaults to `"tgo"`):
            `docs/losses.md` has the equation of each, and when to use it.

            - `"tgo"`: the weighted logistic loss.
            - `"sft"`: plain denoising error on the positive rows only, without a reference, as a baseline.
            - `"csft"`: the same on all rows, whose prompts say how good they are.
            - `"diffusion_kto"`: the expected utility of likely good rows and unlikely bad ones.
            - `"nft"`: offline DiffusionNFT: the reference is drawn to good rows, and to mirror images of bad ones.
            - `"qrpo"`: the implicit reward is fitted to the quantile of the score.
            - `"diffusion_dpo"`, `"dspo"`: on pairs of images of one prompt, without a threshold.
        beta (`float`, *optional*):
            `beta`, deviation from the reference model. Where neither you nor a `recipe` set it, 1; of `"diffusion_dpo"`
            5000, of `"dspo"` 0.001 or 5000, as in their released code. Refused where neither loss nor threshold has it.
        dspo_form (`str`, *optional*, defaults to `"sd15"`):
            Which of the two objectives that were released as DSPO: that for SD 1.5, `"sd15"`, or for SDXL, `"sdxl"`.
        temperature (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            `T` of the log-likelihood surrogate `-error / T`. `"auto"`, or `None`, is 0.001 for latents of 16,384
            numbers, as in the paper (Stable Diffusion 1.5 at 512 pixels), and moves inversely with the number of
            numbers; 2 for losses of pairs, whose published equations have `beta / 2` and no `T`.
        recipe (`str`, *optional*):
            A named combination of the settings below. `"robust"` was measured as a whole (`docs/results.md`), and keeps
            nearer to the data: `error_scale="relative"`, `negative_weight="balanced"`, `beta=0.3`.
            `"diffusion_kto_paper"` and `"diffusion_kto_code"` are what was published of `loss_type="diffusion_kto"`.
            What you set stays, and the table before training says what came of it.
        error_scale (`str`, *optional*):
            `"absolute"`: errors over `T`, as in the paper. `"relative"`: over `T e_ref`, the reference's error of the
            row at that time, so that a step near the noise, where errors are tiny, is no larger than elsewhere.
            `"absolute"`, where neither you nor a `recipe` set it.
        negatives (`str`, *optional*, defaults to `"repel"`):
            `"repel"`: negative rows are made less likely, as in the paper. `"mirror"`: their mirror image at the
            reference's prediction is made more likely, which is bounded.
        mirror_strength (`float`, *optional*, defaults to `1.0`):
            `s`, with `negatives="mirror"` or `loss_type="nft"`: how far the policy may go, in steps that the data ask
            for.
        negative_weight (`float` or `"balanced"`, *optional*):
            Times which negative rows count. `"balanced"` is the weight of all positive rows over that of all negative
            ones, at most 1. Near 0, what is left is close to supervised fine-tuning. 1, where neither you nor a
            `recipe` set it.
        negative_margin (`float`, *optional*):
            `m`: negative rows whose implicit reward is below `-m` give no gradient any more.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            The share of labels that may be wrong, below 0.5.
        trust_region (`float`, *optional*, defaults to `0.0`):
            `lambda` in the penalty `lambda beta / T` times the mean squared difference of the predictions.
        sft_weight (`float`, *optional*, defaults to `0.0`):
            `gamma` in the term `gamma beta / T` times weight and error of the positive rows.
        utility (`str`, *optional*, defaults to `"sigmoid"`):
            With `loss_type="diffusion_kto"`: `"sigmoid"`, the value function of KTO, `"loss_averse"` (`log sigmoid(v)`)
            or `"risk_seeking"` (`-log sigmoid(-v)`).
        desirable_weight, undesirable_weight (`float`, *optional*, defaults to `1.0`):
            With `loss_type="diffusion_kto"`: times which positive and negative rows count.
        positive_ratio (`float`, *optional*):
            The share of positive rows in each epoch, by leaving out rows of the side that has too many, others in each
            epoch; an epoch is that much shorter. All rows are taken if it is not set.
        positive_prefix, negative_prefix (`str`, *optional*, defaults to `""` and `"Weird image. "`):
            With `loss_type="csft"`: what the prompts of positive and of negative rows begin with. Samples are drawn
            with `positive_prefix`, or, if it is empty, with `negative_prefix` as the negative prompt.
        advantage_clip (`float`, *optional*, defaults to `1.0`):
            With `loss_type="nft"`: the distance to the threshold, in standard deviations of the scores, from which on a
            row counts in full.
        quantile_scope (`str`, *optional*, defaults to `"auto"`):
            With `loss_type="qrpo"`: whether quantiles are of the scores of each `"prompt"`, or of all of the
            `"dataset"`. `"auto"` is the former, if every prompt has several rows.
        time_range (`list[float]`, *optional*):
            Two shares of the way from data to noise, between which training looks; all of it by default.
        num_likelihood_samples (`int`, *optional*, defaults to `1`):
            Draws of time and noise per row and step, averaged inside the sigmoid. They share one forward pass, so
            memory grows with them.
        ema_decay (`float`, *optional*):
            Keep an exponential moving average of the trained weights, `average = d average + (1 - d) weights` after
            each update, where `d = min(ema_decay, n / (n + 9))` after the `n`-th, but 0 after the first: the warm-up of
            `diffusers.training_utils.EMAModel`. Steps are taken from the raw weights, and training metrics are of them.
            Samples, evaluations, what is saved or pushed, the best model, a reference that moves, and the network at
            the end of training are of the average. It takes another copy of the trained weights, and is refused with
            optimizers that average by themselves (schedule-free ones).
        sync_ref_model (`bool`, *optional*, defaults to `False`):
            Whether to move the reference towards the policy during training. With LoRA, the parameters of the adapter
            are mixed.
        ref_model_mixup_alpha (`float`, *optional*, defaults to `0.6`):
            `ref = alpha * policy + (1 - alpha) * ref`. 1 replaces the reference, as the paper does.
        ref_model_sync_strategy (`str`, *optional*, defaults to `"steps"`):
            `"steps"`: every `ref_model_sync_steps` updates. `"epoch"`: at the start of every epoch but the first.
        ref_model_sync_steps (`int`, *optional*, defaults to `512`):
            Updates between two synchronisations.
        num_ref_draws (`int`, *optional*):
            Draws of time and noise that each row has, of which epoch `e` takes that of epoch `e mod num_ref_draws`. If
            not set, every epoch has new ones, or, with `precompute_ref_log_probs`, there are 4.
        precompute_ref_log_probs (`bool`, *optional*, defaults to `False`):
            Compute the reference's errors of each row and draw once before training, and keep them beside the
            encodings: training then asks the policy alone, and with `use_peft=False` or a `ref_model` no second network
            stays in memory. Refused for losses that read the reference's predictions, for a reference that moves, and
            for streams.
        precompute_ref_batch_size (`int`, *optional*):
            Rows per forward pass of it. Defaults to `per_device_train_batch_size` in training, and to
            `per_device_eval_batch_size` in evaluation; others change the errors by rounding.
        resume_with_changes (`bool`, *optional*, defaults to `False`):
            Go on from a checkpoint of a run with other settings or data, which is refused otherwise. The model card
            says from which update on what was changed.

        > Parameters that control how the network is called; the defaults are the model family's

        max_sequence_length (`int`, *optional*):
            Tokens of each prompt, for text encoders that take any number.
        train_guidance_scale (`float`, *optional*):
            Guidance that a guidance-distilled network is told in training: by default 3.5 of FLUX.1 [dev], 4 of FLUX.2
            [dev].
        timestep_density (`str`, *optional*):
            Where on the way from data to noise a flow-matching network is trained: `"uniform"`, `"logit_normal"`
            (mostly in the middle) or `"mode"`.
        logit_mean, logit_std, mode_scale (`float`, *optional*):
            Of these densities, as in diffusers' training scripts: 0, 1 and 1.29 if not set.
        timestep_shift (`float`, *optional*):
            `s` in `sigma -> s sigma / (1 + (s - 1) sigma)`: above 1, more noise. Defaults to the scheduler's own.

        > Parameters that control the sample grids

        sample_prompts (`list[str]`, *optional*):
            Prompts drawn from reference and policy during training. `None` draws no grids.
        sample_sources (`list[str]`, *optional*):
            For pipelines that make an image from another: the file of the source image of each of the `sample_prompts`,
            or a list of files, where a pipeline takes several; on a command line, `'["first.png", "second.png"]'`.
        sample_steps (`int`, *optional*, defaults to `100`):
            Updates between two grids; one is also drawn at the end of training.
        sample_num_inference_steps (`int`, *optional*, defaults to `30`):
            Denoising steps of each sample.
        sample_guidance_scale (`float`, *optional*):
            Classifier-free guidance of each sample. Defaults to the pipeline's.

        > Parameters that control which checkpoint is kept, and when a run ends early

        eval_rewards (`list[str]`, *optional*):
            Rewards of samples that each evaluation draws: names of reward models, or `path/to/file.py:function`, or
            `package.module:function`, as `tgo-trl score` takes them. Logged as `eval_samples/<name>`, the mean of all
            samples, beside the reference's mean on the same prompts and seeds, `eval_samples/<name>_reference`. With
            `load_best_model_at_end=True` the first of them is the default of `metric_for_best_model`. Where one of them
            is, more is better, also for `lr_scheduler_type="reduce_lr_on_plateau"`.
        eval_prompts (`list[str]`, *optional*):
            Prompts of these samples, the same at each evaluation. Defaults to `sample_prompts`. Samples have
            `sample_num_inference_steps` and `sample_guidance_scale`; `per_device_eval_batch_size` are drawn at once.
        eval_sources (`list[str]`, *optional*):
            The file of the source image of each of the `eval_prompts`, as `sample_sources`.
        eval_samples_per_prompt (`int`, *optional*, defaults to `4`):
            Samples of each prompt, each from a seed of its own that stays the same. With two or more,
            `eval_samples/variety` is logged: how different they are, as a share of how different the reference's are.
        max_drift (`float`, *optional*):
            Bound on the largest `eval_drift/quartile_*`, above 1; 1.2 is a sensible value. An evaluation outside of it
            is never the best, and ends the run.
        min_variety (`float`, *optional*):
            Likewise on `eval_samples/variety`, from 0 to 1: a share of the reference's.
        early_stopping_patience (`int`, *optional*):
            End the run when so many evaluations in a row were not better than the best one.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `learning_rate`: Defaults to `1e-4` with LoRA, and to the paper's `1e-5` for all weights, instead of `5e-5`. A
    >   copy with another `use_peft` (`dataclasses.replace`) has to set it too.
    > - `accelerator_config`: Batches are copied to the GPU without waiting for it (`non_blocking`), unless it is set.
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `gradient_checkpointing`: Defaults to `True` instead of `False`. Of each kind of block, every `n`-th is
    >   recomputed with `gradient_checkpointing_kwargs={"every_n_layers": n}`.
    > - `bf16`: Defaults to `True` on a GPU that has it, if `fp16` is not set, instead of `False`. The two decide
    >   also where accelerate's configuration has another `mixed_precision`.
    > - `logging_nan_inf_filter`: Defaults to `False` instead of `True`: a NaN loss is shown, and not looking for one
    >   saves a wait for the GPU at every step.
    > - `ddp_find_unused_parameters`: Defaults to `False`.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 (the base class has it so)
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "The initial learning rate for AdamW: 1e-4, or 1e-5 without LoRA, if not set."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every X update steps, or ratio if below 1."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass. `True` if not set."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Use bfloat16 mixed precision. Defaults to `True` on a GPU that has it."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and infinite losses in logs."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Passed to `DistributedDataParallel`."}
    )

    # Parameters that control the model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `DiffusionPipeline.from_pretrained`."}
    )
    pipeline_class: str | None = field(
        default=None, metadata={"help": "diffusers class to load the pipeline under, if not the one that it names."}
    )
    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapter is scaled by `lora_alpha / lora_r`."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in the adapter."})
    lora_target_modules: list[str] | None = field(  # or one string, of which `HfArgumentParser` would make letters
        default=None,
        metadata={
            "help": "Modules that get an adapter: names, a regular expression, or all-linear. Defaults to the "
            "model family's choice."
        },
    )
    bf16_autocast: bool = field(default=True, metadata={"help": "With `bf16`, call the networks under autocast."})
    disable_dropout: bool = field(default=True, metadata={"help": "Disable dropout in policy and reference."})

    # Parameters that control how fast it trains
    speed: str | None = field(
        default=None,
        metadata={"help": "Choose settings that make training fast, of those that are not set.", "choices": ["auto"]},
    )
    compile_repeated_blocks: bool | None = field(
        default=None, metadata={"help": "Compile the blocks that the network repeats. `False` if not set."}
    )
    attention_backend: str | None = field(
        default=None, metadata={"help": "What computes attention, as diffusers names it."}
    )

    # Parameters that control the data
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    video_column: str = field(default="video", metadata={"help": "Column of the videos."})
    score_column: str = field(default=USUAL_COLUMN, metadata={"help": "Column of the scores."})
    score_columns: list[str] | None = field(
        default=None, metadata={"help": "Several columns of scores instead, each with a threshold of its own."}
    )
    score_combination: str = field(
        default="sum",
        metadata={"help": "How several columns of scores label a row together.", "choices": list(COMBINATIONS)},
    )
    score_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each of several columns of scores; 1 if not set."}
    )
    source_column: str = field(
        default="source_image", metadata={"help": "Column of the images that a pipeline of edits makes others from."}
    )
    chosen_column: str = field(default="chosen", metadata={"help": "Of pairs, column of the better images."})
    rejected_column: str = field(default="rejected", metadata={"help": "Of pairs, column of the worse images."})
    pairs: str = field(
        default="auto", metadata={"help": "Where losses of pairs find them.", "choices": list(SELECTIONS)}
    )
    pair_margin: float = field(
        default=0.0, metadata={"help": "Pairs whose scores are no more than this apart are left out."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder that paths of images are relative to. Defaults to the data set's."}
    )
    allow_urls: bool = field(default=False, metadata={"help": "Fetch images whose URLs the data set has."})
    resolution: int | None = field(
        default=None, metadata={"help": "Side of the square images, in pixels. Defaults to the pipeline's."}
    )
    height: int | None = field(default=None, metadata={"help": "Height in pixels, instead of `resolution`."})
    width: int | None = field(default=None, metadata={"help": "Width in pixels, instead of `resolution`."})
    aspect_ratio_buckets: bool = field(default=False, metadata={"help": "Keep the aspect ratios of the images."})
    max_aspect_ratio: float = field(default=2.0, metadata={"help": "Longer side to shorter, of the buckets."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames of each training video."})
    fps: float | None = field(default=None, metadata={"help": "Frames per second of the training videos."})
    on_bad_row: str = field(
        default="error",
        metadata={"help": "Stop at a row that cannot be used, or leave such rows out.", "choices": ["error", "skip"]},
    )
    stream_lanes: int | None = field(
        default=None, metadata={"help": "How many parts of a training stream are read side by side (lanes)."}
    )
    encode_batch_size: int = field(default=8, metadata={"help": "Rows per forward pass of the encoders."})
    encoding_cache_dir: str | None = field(default=None, metadata={"help": "Folder of the encoded data."})

    # Parameters that control the threshold and the weights
    threshold_type: str = field(
        default="percentile", metadata={"help": "How the threshold is found.", "choices": list(THRESHOLD_TYPES)}
    )
    threshold_percentile: float = field(default=50.0, metadata={"help": "Percentile of the scores, 0 to 100."})
    threshold_value: float | None = field(default=None, metadata={"help": "Threshold, in score units."})
    threshold_values: list[float] | None = field(
        default=None, metadata={"help": "Threshold of each of several columns of scores, in its units."}
    )
    confidence_coef: float = field(default=5.0, metadata={"help": "c in the weight 1 + c |score - threshold|."})
    score_normalization: str = field(  # type: ignore[assignment]  # None is "not set", as of `beta`
        default=None,
        metadata={
            "help": "Normalisation of the scores: 'none', or 'zscore' of several columns, if not set.",
            "choices": list(NORMALIZATIONS),
        },
    )

    # Parameters that control the training
    loss_type: str = field(default="tgo", metadata={"help": "Type of loss to use.", "choices": list(LOSSES)})
    # None is "not set", for a recipe to tell; `__post_init__` leaves none.
    beta: float = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "How closely the policy is held to the reference; the loss's or recipe's if not set."},
    )
    dspo_form: str = field(
        default="sd15", metadata={"help": "Which of the two published objectives of DSPO.", "choices": list(DSPO_BETAS)}
    )
    temperature: float | str | None = field(  # of `float | str` HfArgumentParser would take the float alone
        default="auto", metadata={"help": "T of the log-likelihood surrogate -error / T, or 'auto'."}
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "A named combination of settings; those that you set yourself stay.",
            "choices": list(RECIPES),
        },
    )
    error_scale: str = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "What errors are measured by: 'absolute', or the recipe's.", "choices": list(ERROR_SCALES)},
    )
    negatives: str = field(
        default="repel",
        metadata={
            "help": "Push away from negative rows, or pull towards their mirror images.",
            "choices": list(NEGATIVES),
        },
    )
    mirror_strength: float = field(default=1.0, metadata={"help": "How far mirrored negatives may lead."})
    negative_weight: float | str | None = field(  # as `temperature`
        default=None, metadata={"help": "Times which negative rows count, or 'balanced': 1, or the recipe's."}
    )
    negative_margin: float | None = field(
        default=None, metadata={"help": "Negative rows whose reward is below minus this give no gradient."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of labels that may be wrong."})
    trust_region: float = field(default=0.0, metadata={"help": "Weight of the distance to the reference."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the error of positive rows."})
    utility: str = field(default="sigmoid", metadata={"help": "Utility of Diffusion-KTO.", "choices": list(UTILITIES)})
    desirable_weight: float = field(default=1.0, metadata={"help": "Times which positive rows count in Diffusion-KTO."})
    undesirable_weight: float = field(
        default=1.0, metadata={"help": "Times which negative rows count in Diffusion-KTO."}
    )
    positive_ratio: float | None = field(default=None, metadata={"help": "Share of positive rows in each epoch."})
    positive_prefix: str = field(default="", metadata={"help": "Begins the prompts of positive rows in CSFT."})
    negative_prefix: str = field(
        default="Weird image. ", metadata={"help": "Begins the prompts of negative rows in CSFT."}
    )
    advantage_clip: float = field(
        default=1.0, metadata={"help": "Standard deviations from which on a row counts in full in NFT."}
    )
    quantile_scope: str = field(
        default="auto", metadata={"help": "Whose scores QRPO's quantiles are of.", "choices": list(QUANTILE_SCOPES)}
    )
    time_range: list[float] | None = field(
        default=None, metadata={"help": "Two shares of the way from data to noise, to train between."}
    )
    num_likelihood_samples: int = field(default=1, metadata={"help": "Draws of time and noise per row and step."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay of an exponential moving average of the trained weights."}
    )
    sync_ref_model: bool = field(default=False, metadata={"help": "Move the reference towards the policy."})
    ref_model_mixup_alpha: float = field(default=0.6, metadata={"help": "Share of the policy in the new reference."})
    ref_model_sync_strategy: str = field(
        default="steps", metadata={"help": "When to synchronise the reference.", "choices": ["steps", "epoch"]}
    )
    ref_model_sync_steps: int = field(default=512, metadata={"help": "Updates between two synchronisations."})
    num_ref_draws: int | None = field(
        default=None, metadata={"help": "Draws of each row that epochs take in turns; new ones each if not set."}
    )
    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "Compute the reference's errors once, before training."}
    )
    precompute_ref_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows per forward pass of `precompute_ref_log_probs`. Defaults to the batch sizes."},
    )
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Go on from a checkpoint of a run with other settings or data."}
    )

    # Parameters that control how the network is called
    max_sequence_length: int | None = field(
        default=None, metadata={"help": "Tokens that a prompt may have, of pipelines that let one choose."}
    )
    train_guidance_scale: float | None = field(
        default=None, metadata={"help": "Guidance that a guidance-distilled network is told in training."}
    )
    timestep_density: str | None = field(
        default=None,
        metadata={
            "help": "Density of the times that a flow-matching network is trained at.",
            "choices": list(DENSITIES),
        },
    )
    logit_mean: float | None = field(default=None, metadata={"help": "Mean of the logit-normal density of times."})
    logit_std: float | None = field(
        default=None, metadata={"help": "Standard deviation of the logit-normal density of times."}
    )
    mode_scale: float | None = field(default=None, metadata={"help": "Scale of the mode density of times."})
    timestep_shift: float | None = field(
        default=None, metadata={"help": "Shift of the times of a flow-matching network towards noise."}
    )

    # Parameters that control the sample grids
    sample_prompts: list[str] | None = field(default=None, metadata={"help": "Prompts of the sample grids."})
    sample_sources: list[Several] | None = field(
        default=None, metadata={"help": "File of the source image of each of the sample prompts."}
    )
    sample_steps: int = field(default=100, metadata={"help": "Updates between two sample grids."})
    sample_num_inference_steps: int = field(default=30, metadata={"help": "Denoising steps of each sample."})
    sample_guidance_scale: float | None = field(default=None, metadata={"help": "Guidance scale of each sample."})

    # Parameters that control which checkpoint is kept, and when a run ends early
    eval_rewards: list[str] | None = field(
        default=None, metadata={"help": "Rewards of samples at each evaluation: names, or `file.py:function`."}
    )
    eval_prompts: list[str] | None = field(
        default=None, metadata={"help": "Prompts of the samples at each evaluation. Defaults to `sample_prompts`."}
    )
    eval_sources: list[Several] | None = field(
        default=None, metadata={"help": "File of the source image of each of the evaluation prompts."}
    )
    eval_samples_per_prompt: int = field(
        default=SAMPLES_PER_PROMPT, metadata={"help": "Samples of each prompt at each evaluation."}
    )
    max_drift: float | None = field(
        default=None, metadata={"help": "End the run once `eval_drift` of a quartile is above this, such as 1.2."}
    )
    min_variety: float | None = field(
        default=None, metadata={"help": "End the run once samples keep less of the reference's variety, such as 0.7."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations in a row that may be no better than the best one."}
    )

    def __post_init__(self) -> None:
        take_plain_numbers(self)
        if self.learning_rate is None:
            self.learning_rate = 1e-4 if self.use_peft else 1e-5
        is_precision_open = self.bf16 is None and not self.fp16
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and has_bfloat16()
        check_launched_precision(self.bf16, self.fp16, is_precision_open)
        # transformers is renaming the field; either name, if set, decides.
        for name in ("model_init_kwargs", "lr_scheduler_kwargs"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, as_dictionary(name, getattr(self, name)))
        with_dtypes(as_dictionary("model_init_kwargs", self.model_init_kwargs))
        with_pipeline_class(as_dictionary("model_init_kwargs", self.model_init_kwargs), self.pipeline_class)
        check_score_columns(vars(self))
        if self.score_normalization is None:
            self.score_normalization = usual_normalization(vars(self))
        self._apply_recipe()
        self._check_types()
        check_ranges(vars(self))
        check_rewards(self.eval_rewards)
        check_prompts(self.eval_prompts)
        self._prefer_rewards()
        for name in ("logging_steps", "eval_steps", "save_steps"):  # of which transformers makes whole numbers
            check_finite(name, getattr(self, name))
        if self.accelerator_config is None and self.dataloader_pin_memory is True and is_torch_cuda_available():
            self.accelerator_config = {"non_blocking": True}
        self._init_inherited()
        if self.lora_target_modules is not None:
            check_target_names("lora_target_modules", self.lora_target_modules)
        self._check_choices()
        self._check_numbers()
        self._check_length()
        for item in fields(self):  # computed with in float32
            check_finite(item.name, getattr(self, item.name))
        self._check_combinations()

    def _check_types(self) -> None:
        inherited = {item.name for item in fields(TrainingArguments)}
        check_types(self, [item.name for item in fields(self) if item.name not in inherited])
        if self.max_grad_norm is None:  # which transformers takes for no clipping
            self.max_grad_norm = 0.0
        check_types(self, [name for name in numbers_of(TrainingArguments) if getattr(self, name) is not None])

    def _init_inherited(self) -> None:
        """As `TrainingArguments` does, where some settings are to mean something else, or to stay open."""
        names = [name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(self, name)]
        is_unset = all(getattr(self, name) is None for name in names)  # the newer and the older name
        has_options = any("every_n_layers" in (getattr(self, f"{name}_kwargs") or ()) for name in names)
        is_open = is_unset and self.speed is not None and not has_options
        if is_unset and not is_open:
            setattr(self, names[0], True)
        if self.compile_repeated_blocks is None and self.speed is None:
            self.compile_repeated_blocks = False
        of_blocks = check_compilation(vars(self))
        for name in of_blocks:  # by either of which transformers would compile the whole network
            setattr(self, name, None)
        self.fsdp = read_switch(self.fsdp)
        with precision_of_settings():
            super().__post_init__()  # type: ignore[no-untyped-call]
        whole_when_loaded(self)
        for name, value in of_blocks.items():
            setattr(self, name, value)
        for name in names if is_open else ():
            setattr(self, name, None)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them, without secrets: for records, reporters and logs."""
        plain = copy.copy(self)
        plain.model_init_kwargs = None  # into which transformers would write, and fail at dtypes by part
        values: dict[str, Any] = super(TGOConfig, plain).to_dict()  # type: ignore[no-untyped-call]
        kwargs: Any = dtype_names(self.model_init_kwargs)
        quantization = (kwargs or {}).get("quantization_config")
        if quantization is not None and hasattr(quantization, "to_dict"):
            kwargs["quantization_config"] = quantization.to_dict()
        values["model_init_kwargs"] = kwargs
        values |= {name: None for name in values if name.endswith("_token") and getattr(self, name) is None}
        public: dict[str, Any] = json.loads(json.dumps(without_secrets(values), default=lambda it: type(it).__name__))
        return public

    def __repr__(self) -> str:
        """As [`to_dict`]: what is printed or logged holds no secrets."""
        return f"{type(self).__name__}({self.to_dict()})"

    __str__ = __repr__

    @property
    def family_settings(self) -> dict[str, Any]:
        """The settings that belong to the model family, of those that are set."""
        values = {name: getattr(self, name) for name in FAMILY_SETTINGS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def score_names(self) -> list[str]:
        """The columns of scores that are read, in the order of their names."""
        return score_names(vars(self))

    @property
    def rows_per_update(self) -> int:
        """Rows of one update, over all accumulated batches and processes."""
        return int(self.train_batch_size * self.gradient_accumulation_steps * self.world_size)

    @property
    def output_path(self) -> Path:
        """`output_dir`, which is always set once the configuration is made."""
        assert self.output_dir is not None
        return Path(self.output_dir)

    @property
    def model_init_dict(self) -> dict[str, Any] | None:
        """`model_init_kwargs`, which is no longer a string once the configuration is made, with `pipeline_class`."""
        assert not isinstance(self.model_init_kwargs, str)
        return with_pipeline_class(self.model_init_kwargs, self.pipeline_class)

    @property
    def eval_sample_prompts(self) -> list[str]:
        """What evaluations draw samples of; empty if they draw none."""
        return prompts_of(vars(self)) if draws_samples(vars(self)) else []

    @property
    def bounds(self) -> Bounds:
        """What an evaluation has to keep to."""
        return Bounds(self.max_drift, self.min_variety)

    def _prefer_rewards(self) -> None:
        # transformers would take the loss for the metric, which the rewards are there not to trust
        if self.eval_rewards and self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = sample_metrics(vars(self))[0]
        # and less for better of whatever ends in "loss"
        metric = str(self.metric_for_best_model).removeprefix("eval_")
        if self.greater_is_better is None and metric in sample_metrics(vars(self)):
            self.greater_is_better = True
            # torch's schedule follows the same metric, and would cut the rate because it rises
            kwargs = self.lr_scheduler_kwargs or {}
            if self.lr_scheduler_type == "reduce_lr_on_plateau" and isinstance(kwargs, dict):
                self.lr_scheduler_kwargs = {"mode": "max", **kwargs}

    def _apply_recipe(self) -> None:
        loss = LOSSES.get(self.loss_type) if isinstance(self.loss_type, str) else None  # not checked yet
        if self.recipe is None and self.beta is None and loss is not None:
            self.beta = loss.usual_beta(vars(self))
        usual = recipe_settings(self.recipe)
        check_effect_of_recipe(vars(self))
        for name, value in usual.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _check_choices(self) -> None:
        check_choice("on_bad_row", self.on_bad_row, ("error", "skip"))
        check_choice("threshold_type", self.threshold_type, THRESHOLD_TYPES)
        check_choice("score_normalization", self.score_normalization, NORMALIZATIONS)
        check_choice("loss_type", self.loss_type, tuple(LOSSES))
        check_choice("pairs", self.pairs, SELECTIONS)
        if self.speed is not None:
            check_choice("speed", self.speed, ("auto",))
        check_choice("ref_model_sync_strategy", self.ref_model_sync_strategy, ("steps", "epoch"))
        if self.timestep_density is not None:
            check_choice("timestep_density", self.timestep_density, DENSITIES)
        check_choice("train_sampling_strategy", self.train_sampling_strategy, ("random", "sequential"))

    def _check_numbers(self) -> None:
        if self.temperature is None:
            self.temperature = "auto"
        if self.temperature != "auto":
            self.temperature = _number("temperature", self.temperature)
            _positive("temperature", self.temperature)
            if not max(self.beta, 1) / self.temperature <= MAX_FLOAT32:
                raise ValueError(
                    f"`temperature` is {self.temperature}, by which errors and `beta` ({self.beta}) are divided: the "
                    "quotient is infinite in float32. Values around 0.001 are usual."
                )
        self.negative_weight = negative_weight(self.negative_weight)
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None:
                _positive(name, value)
                if name in _WHOLE and not isinstance(value, int):
                    raise ValueError(f"`{name}` is {value}; it must be a whole number.")

    def _check_length(self) -> None:
        self.max_steps = int(self.max_steps)
        if self.max_steps == 0:  # of which transformers makes one update
            raise ValueError("`max_steps` is 0; it must be at least 1, or -1 to train for `num_train_epochs`.")
        if self.max_steps < 0:
            _positive("num_train_epochs", self.num_train_epochs)

    def _check_combinations(self) -> None:
        check_objective(vars(self), DEFAULTS)
        self._check_autocast()
        self._check_workers()
        self._check_size()
        self._check_density()
        if isinstance(self.sample_prompts, str):
            raise ValueError(f"`sample_prompts` is a string; it must be a list: [{shown(self.sample_prompts)}].")
        prompts = self.sample_prompts
        if prompts is not None and not (prompts and all(isinstance(text, str) and text.strip() for text in prompts)):
            raise ValueError(
                f"`sample_prompts` is {shown(prompts)}; it must be a list of prompts. Leave it out for no sample grids."
            )
        check_selection(vars(self))
        for name in ("sample_sources", "eval_sources"):
            if isinstance(getattr(self, name), (list, tuple)):
                setattr(self, name, [several(entry) for entry in getattr(self, name)])
        check_source_files("sample_sources", self.sample_sources, "sample_prompts", prompts)
        check_source_files("eval_sources", self.eval_sources, "eval_prompts", self.eval_prompts)
        setting = "threshold_values" if has_several(vars(self)) else "threshold_value"
        if (getattr(self, setting) is not None) != (self.threshold_type == "value"):
            raise ValueError(
                f"`threshold_type` is {self.threshold_type!r} and `{setting}` is {shown(getattr(self, setting))}. Set "
                f"both `threshold_type='value'` and `{setting}` for a threshold of your own, or neither."
            )
        if self.threshold_percentile != 50 and self.threshold_type != "percentile":
            raise ValueError(
                f"`threshold_percentile` is {self.threshold_percentile}, which "
                f"`threshold_type={self.threshold_type!r}` does not use. Set one of the two."
            )
        if self.sync_ref_model and not LOSSES[self.loss_type].needs_reference:
            raise ValueError(
                f"`loss_type={self.loss_type!r}` has no reference, so `sync_ref_model=True` has nothing to synchronise."
            )

        check_attention(vars(self))
        check_recomputation(vars(self))
        check_precomputing(vars(self))
        if self.precompute_ref_log_probs and self.num_ref_draws is None:
            self.num_ref_draws = USUAL_DRAWS

    def _check_autocast(self) -> None:
        if self.bf16_autocast:
            return
        why = None
        if not self.use_peft:
            why = (
                "`use_peft=False` trains all weights, which are float32 then, and compute in bfloat16 by autocast "
                "alone. Leave it out, or train an adapter"
            )
        elif self.fp16:
            why = "with `fp16=True` norms and losses overflow without autocast. Leave it out, or set `bf16=True`"
        elif not self.bf16:
            why = "`bf16` is False, so that there is no autocast to be without. Set `bf16=True`, or leave it out"
        if why is not None:
            raise ValueError(f"`bf16_autocast` is False, and {why}.")

    def _check_workers(self) -> None:
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise ValueError(
                "`dataloader_persistent_workers` is True, and `dataloader_num_workers` is 0, so that there are no "
                "workers to keep. Set that too, or leave it out."
            )

    def _check_size(self) -> None:
        if (self.height is None) != (self.width is None):
            raise ValueError(f"`height` is {self.height} and `width` is {self.width}. Set both, or `resolution` alone.")
        if self.height is not None and self.resolution is not None:
            raise ValueError(
                f"`resolution` is {self.resolution}, and `height` and `width` are {self.height} and {self.width}. Set "
                "`resolution` for squares, or `height` and `width`."
            )
        if self.max_aspect_ratio != 2 and not self.aspect_ratio_buckets:
            raise ValueError(
                f"`max_aspect_ratio` is {self.max_aspect_ratio}, which is of the buckets. Set "
                "`aspect_ratio_buckets=True`, or leave it out."
            )

    def _check_density(self) -> None:
        for name, density in (("logit_mean", "logit_normal"), ("logit_std", "logit_normal"), ("mode_scale", "mode")):
            if getattr(self, name) is not None and self.timestep_density != density:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, which `timestep_density={self.timestep_density!r}` does not "
                    f"use. Set `timestep_density={density!r}`, or leave `{name}` out."
                )


DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(TGOConfig)}
"""The settings as they are where nobody sets them, by name."""


def _number(name: str, value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"`{name}` is {value!r}; it must be a number or 'auto'.") from None
