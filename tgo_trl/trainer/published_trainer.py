"""[`PublishedTrainer`]: what is published of a run: the card, and uploads to the Hub."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.trainer_utils import HubStrategy, SchedulerType

from ..cards.model_card import TGO_PAPER, CardContent, Paper, build_card, path_in_card
from ..cards.sections import MARK, with_sections_of
from ..families.base_sources import SourceFamily
from ..hub.repositories import Destination, UploadError
from ..hub.uploads import Uploads
from ..media.types import Size
from ..messages.public import public_text
from ..policy.draws import stable_seed
from ..policy.modular import base_code
from ..settings import files_of
from ..storage.fingerprints import weights_fingerprint
from ..storage.records import CARD_NAME
from .arguments import training_dtype
from .evaluations import EVALUATIONS_NAME, evaluation_after
from .plots import SCORE_HISTOGRAM_NAME
from .publishing import folder_upload, open_model_repository, sum_up
from .sample_grids import last_grid
from .selecting_trainer import SelectingTrainer
from .tgo_config import TGOConfig

logger = logging.getLogger(__name__)


class PublishedTrainer(SelectingTrainer):
    """Describes what it trains in a card, and brings it to the Hub.

    A subclass calls [`_open_repository`] before anything that takes long.

    Attributes:
        uploads, destination: to the Hub.
    """

    def _open_repository(self, args: TGOConfig) -> None:
        self.uploads = Uploads()
        pushes = args.push_to_hub and args.process_index == 0
        self.destination: Destination | None = open_model_repository(args) if pushes else None

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
