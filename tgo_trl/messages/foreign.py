"""What libraries say that is of no use to who runs a command, and harmless: it is left out, and nothing else is."""

import logging
import re
import warnings

NOTES = {
    # Image processors of CLIP and SigLIP in PIL, which rewards ask for by name, and training has no use for.
    "transformers.utils.import_utils": r"`\w+` requires torchvision \(not installed\); falling back to `\w+Pil`",
    # How the pipeline of FLUX.2 [dev] asks for its prompts, at each of them.
    "transformers.processing_utils": r"Kwargs passed to `processor\.__call__` have to be in `processor_kwargs`",
    # Of the pipeline of HunyuanVideo 1.5, at each load.
    "diffusers.guiders.guider_utils": r"Guiders are currently an experimental feature",
    # Of an adapter without weights for text encoders. One of which anything fits nothing is refused here.
    "diffusers.loaders.lora_base": r"No LoRA keys associated to \w+ found with the prefix='text_encoder",
    # What is raised says the same, without every weight of an adapter that is of another network.
    "diffusers.loaders.peft": r"Loading \S+ was unsuccessful with the following error",
    # Kernels for GPUs and formats that nothing here uses, where torchao is installed for another version of PyTorch.
    "diffusers.quantizers.torchao.torchao_quantizer": r"Unable to import `torchao` Tensor objects",
    "torchao": r"Failed to load \S+\.so",
    "torchao.kernel.intmm": r"Warning: Detected no triton",
    "torch.utils._pytree": r"<enum '(KernelPreference|ScaleCalculationMode)'> is an Enum subclass",
}
"""How such messages begin, by the logger that they come from."""
WARNINGS = (
    r"'pin_memory' argument is set as true but no accelerator is found",
    r"The `local_dir_use_symlinks` argument is deprecated",
)
"""How such warnings begin. `dataloader_pin_memory` is on by default, and does nothing on the CPU; the other is of how
diffusers asks the Hub for an index."""


class Leaving(logging.Filter):
    """Leaves out messages that begin with a pattern."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is shown."""
        return self.pattern.match(record.getMessage()) is None


def leave_out_notes() -> None:
    """Leaves out [`NOTES`] and [`WARNINGS`] from now on; for programs, not for who imports the package."""
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for name, pattern in NOTES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(it, Leaving) for it in logger.filters):
            logger.addFilter(Leaving(pattern))
