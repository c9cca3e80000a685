"""All that depends on how weights are spread over processes: which ways there are, and what each asks for."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from .policy import Policy
from .reference import ModelReference, Reference


def check_strategy(args: TrainingArguments) -> None:
    """Raises a ValueError for a way of spreading weights that is not supported."""
    if args.n_gpu > 1:
        raise ValueError(
            "TGOTrainer does not support `nn.DataParallel`, which `Trainer` uses when several GPUs are visible to a "
            "single process. Launch the script with `accelerate launch` or `torchrun`, or make a single GPU visible "
            "with `CUDA_VISIBLE_DEVICES`."
        )
    launched = parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if args.fsdp or args.deepspeed or launched:
        raise ValueError(
            "TGOTrainer trains on one device or with `DistributedDataParallel`; FSDP and DeepSpeed shard weights that "
            "the adapter switch and the saver need whole. Leave `fsdp` and `deepspeed` unset, also in accelerate's "
            "configuration."
        )


class Replication:
    """Every process holds all weights: one process, or `DistributedDataParallel`.

    A strategy that shards them has these methods too, and gathers the weights in [`whole`].

    Args:
        accelerator: of the run.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def prepare_reference(self, reference: Reference | None) -> None:
        """Puts the networks of a reference, where it has some of its own, to where the policy's are."""
        if isinstance(reference, ModelReference):
            reference.model = self.accelerator.prepare_model(reference.model, evaluation_mode=True)

    def prepare_again(self, model: nn.Module) -> None:
        """Lets accelerate wrap a policy for training that an evaluation has prepared without the wrapper.

        It would take it for one that is ready to train: processes would train apart, without exchanging gradients.
        """
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        vars(model).pop("_is_accelerate_prepared", None)

    def unwrap(self, model: nn.Module) -> Policy:
        """The policy, without what was put around it."""
        if isinstance(model, Policy):  # accelerate looks through all modules for compiled ones
            return model
        policy: Policy = self.accelerator.unwrap_model(model)
        return policy

    def begin_run(self, model: nn.Module) -> None:
        """Lets each step of a run deal with the trained weights alone.

        Args:
            model: the policy as wrapped for training, its weights where they are to be.
        """
        policy = self.unwrap(model)
        policy.begin_run()
        if isinstance(model, DistributedDataParallel):  # which would look through all weights by itself
            model.zero_grad = policy.zero_grad  # type: ignore[method-assign]

    def clip_gradient(self, policy: Policy, most: float) -> Tensor | None:
        """The norm of the whole gradient, which is scaled down to `most`, over all processes.

        `Trainer` hands over the frozen weights too.
        """
        norm: Tensor | None = self.accelerator.clip_grad_norm_(policy.trained_weights(), most)
        return norm

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, all weights of policy and reference are there, to be saved, loaded, moved or sampled from.

        Entered by every process; a second one within it, as of whatever samples in one process alone, does nothing.
        """
        yield


STRATEGIES: dict[DistributedType, type[Replication]] = {
    DistributedType.MULTI_GPU: Replication,
}
"""By accelerate's name; whatever is not named replicates, as `DistributedDataParallel` does on any device."""


def build_strategy(accelerator: Accelerator) -> Replication:
    """The strategy of a run."""
    return STRATEGIES.get(accelerator.distributed_type, Replication)(accelerator)


def leave_quantized_weights_to_each_process(policy: Policy) -> None:
    """Keeps `DistributedDataParallel` from exchanging frozen quantised weights, which it cannot; all load the same.

    Called when all adapters are there.
    """
    policy._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        f"networks.{network_name}.{name}"
        for network_name, network in policy.networks.items()
        if getattr(network, "hf_quantizer", None) is not None
        for name, parameter in network.named_parameters()
        if not parameter.requires_grad
    ]
