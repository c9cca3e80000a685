"""What the families share that draw videos."""

from dataclasses import dataclass, replace
from typing import ClassVar

from diffusers import DiffusionPipeline

from ..media.types import VideoFormat
from .base_flow import FlowMatchingFamily


@dataclass(frozen=True)
class VideoFamily(FlowMatchingFamily):
    """A flow-matching family of videos, whose number and rate of frames may be left out.

    Attributes:
        num_frames: frames of each training video and sample.
        fps: their rate, frames per second.
    """

    num_frames: int | None = None
    fps: float | None = None

    task = "text-to-video"
    usual_format: ClassVar[VideoFormat] = VideoFormat(121, 24.0)
    """What videos have where that is left out, and no pipeline has been asked."""

    @property
    def clip(self) -> VideoFormat:
        """`num_frames` at `fps`, or the usual ones where they are left out."""
        return self._filled(self.usual_format)

    def format_of(self, pipeline: DiffusionPipeline) -> VideoFormat:
        """What a pipeline's own videos have."""
        return self.usual_format

    def fitted_to(self, pipeline: DiffusionPipeline) -> "VideoFamily":
        """With the pipeline's own `num_frames` and `fps` where they are left out."""
        format = self._filled(self.format_of(pipeline))
        return replace(self, num_frames=format.num_frames, fps=format.fps)

    def _filled(self, usual: VideoFormat) -> VideoFormat:
        return VideoFormat(
            usual.num_frames if self.num_frames is None else self.num_frames,
            usual.fps if self.fps is None else self.fps,
        )
