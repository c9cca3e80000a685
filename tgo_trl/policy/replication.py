"""Weights that are whole in every process, and what any other way of spreading them has to answer for."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .memory import fixed_bytes
from .policy import Policy
from .reference import ModelReference, Reference


class Replication:
    """Every process holds all weights: one process, or `DistributedDataParallel`.

    Args:
        accelerator: of the run.
    """

    shards: ClassVar[bool] = False
    """Whether a process holds a part of the weights only, so that all take part in whatever computes with them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    @property
    def samples_here(self) -> bool:
        """Whether this process calls the pipeline, where only the main one has a use for the samples."""
        return bool(self.accelerator.is_main_process)

    def prepare_policy(self, policy: Policy) -> None:
        """Spreads the policy's weights, unless `Trainer` does so when training begins."""

    def prepare_reference(self, reference: Reference | None) -> None:
        """Puts the networks of a reference, where it has some of its own, to where the policy's are."""
        if isinstance(reference, ModelReference):
            reference.model = self.accelerator.prepare_model(reference.model, evaluation_mode=True)

    def forget_reference(self, reference: Reference) -> None:
        """Lets the networks that a reference has of its own leave memory, once nobody asks it any more."""
        if isinstance(reference, ModelReference):  # accelerate would keep them
            self.accelerator._models = [it for it in self.accelerator._models if it is not reference.model]

    def fixed_bytes(self, networks: Iterable[nn.Module]) -> int:
        """What the device holds as long as networks train, their gradients and Adam's averages included."""
        return fixed_bytes(networks, self.accelerator.num_processes)

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

    def begin_run(self, model: nn.Module, optimizer: Any) -> None:
        """Lets each step of a run deal with the trained weights alone.

        Args:
            model: the policy as wrapped for training, its weights where they are to be.
            optimizer: of the run.
        """
        policy = self.unwrap(model)
        policy.begin_run(weight for group in optimizer.param_groups for weight in group["params"])
        if isinstance(model, DistributedDataParallel):  # which would look through all weights by itself
            model.zero_grad = policy.zero_grad  # type: ignore[method-assign]

    def end_run(self, policy: Policy) -> None:
        """Leaves the weights to whoever trains them next."""
        policy.end_run()

    def clip_gradient(self, policy: Policy, most: float) -> Tensor | None:
        """The norm of the whole gradient, which is scaled down to `most`, over all processes.

        `Trainer` hands over the frozen weights too.
        """
        norm: Tensor | None = self.accelerator.clip_grad_norm_(policy.trained_weights(), most)
        return norm

    def gradient(self, weight: nn.Parameter) -> Tensor | None:
        """What the optimizer is about to take of a weight; None if there is none. All processes ask together."""
        return weight.grad

    @contextmanager
    def whole(self, policy: Policy, reference: Reference | None = None, loading: bool = False) -> Iterator[None]:
        """Within, what was trained is there to be saved, or loaded, as plain tensors of the plain networks.

        Entered by every process, none of which calls a network within.

        Args:
            policy: whose trained weights are wanted.
            reference: whose own weights are wanted too.
            loading: whether the weights are wanted in every process, which all put the same into them; otherwise they
                are read in the main process.
        """
        yield

    @contextmanager
    def parts(self, policy: Policy, reference: Reference) -> Iterator[None]:
        """Within, each weight is as much as this process holds of it, and what is put into it is kept.

        Of policy and reference they are of the same places, so that what is done number by number needs no others.
        """
        yield

    def own_parts(self, policy: Policy) -> list[nn.Parameter]:
        """What this process holds of each trained weight of a run, in the memory of the weight itself."""
        return policy.trained_weights()

    def release(self, policy: Policy) -> None:
        """Lets nothing of the policy's weights be gathered, before their parts are written to; in every process."""

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's `state_dict()` of whole tensors, for the main process; called by every one."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """The inverse of [`optimizer_state`], in every process, of a run whose weights were spread in any way."""
        saved, empty = state["param_groups"], [{**group, "params": []} for group in optimizer.param_groups]
        groups = fit_groups(saved, saved, empty, self.groups(optimizer))
        optimizer.load_state_dict({**state, "param_groups": groups})

    def groups(self, optimizer: Any) -> list[dict[str, Any]]:
        """The groups of weights of the optimizer."""
        groups: list[dict[str, Any]] = optimizer.param_groups
        return groups


def fit_groups(
    values: Sequence[Any], saved: Sequence[Mapping[str, Any]], own: Sequence[Any], groups: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """What was saved for each group of weights, for the groups of an optimizer: DeepSpeed leaves out empty ones.

    Args:
        values: one for each saved group.
        saved: the groups.
        own: what those of the optimizer have instead that are empty; one for each.
        groups: those of the optimizer, of the same weights.
    """
    kept = [value for value, group in zip(values, saved, strict=True) if group["params"]]
    if len(kept) != sum(bool(group["params"]) for group in groups):
        return list(values)  # of other weights, as PyTorch will say
    following = iter(kept)
    pairs = zip(groups, own, strict=True)
    return [next(following) if group["params"] else mine for group, mine in pairs]


@contextmanager
def replaced(weights: Sequence[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]) -> Iterator[None]:
    """Within, the second of two parameters is in the place of the first, in the module and under the name given."""
    hooks = {owner: owner._load_state_dict_post_hooks for owner, *_ in weights}
    for owner, name, _, weight in weights:
        owner._parameters[name] = weight
        owner._load_state_dict_post_hooks = OrderedDict()  # in which FSDP2 looks for its shards
    try:
        yield
    finally:
        for owner, name, shard, _ in weights:
            owner._parameters[name] = shard
            owner._load_state_dict_post_hooks = hooks[owner]
