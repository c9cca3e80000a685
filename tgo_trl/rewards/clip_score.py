"""CLIP score: the cosine between the embeddings of a prompt and an image, and what other CLIP rewards share with it."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from ..messages.public import public_name
from .base import PromptReward, load_images
from .networks import load_complete, normalize, resized_square


class ClipScore(PromptReward):
    r"""`cos(text, image) = t \cdot v / (|t| |v|)`, without factor and without clipping at 0.

    Peers differ in the backbone and in factors (2.5 in the CLIPScore paper, 100 in torchmetrics, which also clips).
    Prompts are cut after 77 tokens, with a warning at the first. Images are resized so that the shorter side fits
    (bicubic, in Pillow, whether or not torchvision is installed) and cropped to the centre.

    Args:
        backbone: a CLIP model of transformers, by Hub id or folder.
        processor: where tokenizer and image settings are, if not with the backbone.
        kwargs: as for [`ModelReward`].
    """

    name = "clip_score"
    differentiable = True
    license = "MIT (code of openai/CLIP; no licence found for the weights)"

    def __init__(
        self, backbone: str = "openai/clip-vit-large-patch14", *, processor: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.processor = processor or backbone
        if type(self) is ClipScore and backbone != "openai/clip-vit-large-patch14":
            self.license = f"see {public_name(backbone)}"
        self._scale = 1.0

    def _load(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(**self._processor_source())
        self._load_preprocessing()
        self._model = self._load_model()
        self._max_tokens = self._model.config.text_config.max_position_embeddings
        self._scale = self._read_scale(self._model)  # before bfloat16 rounds it
        self._model.requires_grad_(False).eval().to(device=self.device, dtype=self.dtype)

    def _load_model(self) -> Any:
        """The network in float32, on the CPU."""
        config = AutoConfig.from_pretrained(self.model_id, revision=self.revision or "main")
        if config.model_type != "clip":
            raise ValueError(
                f"{self.model_id!r} is a {config.model_type!r} model; {self.name} needs a CLIP model of transformers, "
                "such as 'openai/clip-vit-large-patch14'."
            )
        model, self._commit = load_complete(CLIPModel, self.model_id, self.revision)
        return model

    def _load_preprocessing(self) -> None:
        self._image_processor = CLIPImageProcessorPil.from_pretrained(**self._processor_source())

    def _processor_source(self) -> dict[str, Any]:
        revision = self.revision if self.processor == self.model_id else None
        return {"pretrained_model_name_or_path": self.processor, "revision": revision or "main"}

    def _read_scale(self, model: Any) -> float:
        """What the cosine is multiplied by."""
        return 1.0

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Float32 `[N, 3, height, width]` of RGB images."""
        pixels: Tensor = self._image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def _inputs(self, pixels: Tensor) -> Tensor:
        """The same of pixels, float32 `[N, 3, H, W]` in [0, 1], with gradient."""
        settings: Any = self._image_processor
        size: Any = dict(settings.size).get("shortest_edge")
        crop = dict(settings.crop_size)
        usual = settings.do_resize and settings.do_center_crop and settings.do_rescale and settings.do_normalize
        if not usual or crop != {"height": size, "width": size} or settings.resample != Image.Resampling.BICUBIC:
            raise ValueError(
                f"The image settings of {self.processor!r} are not CLIP's (bicubic to the shorter side, and cropped to "
                "a square of it), which alone have a gradient here. Name another `processor`."
            )
        return normalize(resized_square(pixels, int(size)), settings.image_mean, settings.image_std)

    def _score_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        return self._score_inputs(prompts, self._pixels(load_images(images)))

    def _score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        return self._score_inputs(prompts, self._inputs(pixels))

    def _score_inputs(self, prompts: Sequence[str], inputs: Tensor) -> Tensor:
        outputs = self._model(**self._tokens(prompts), pixel_values=inputs.to(self.device, self.dtype))
        # Normalised again: in bfloat16 the model's own division leaves lengths that are off by up to 0.4 %.
        text, image = (F.normalize(e.float(), dim=-1) for e in (outputs.text_embeds, outputs.image_embeds))
        return self._scale * (text * image).sum(-1)
