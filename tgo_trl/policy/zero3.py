"""ZeRO-3: every process holds a part of each weight, of its gradient, float32 master and moments, by DeepSpeed."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from itertools import accumulate, pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .compilation import repeated_blocks
from .kept_weights import keeping_no_gathered
from .policy import Policy
from .reference import ModelReference, Reference
from .replication import Replication, replaced
from .zero import OptimizerSharding, is_per_number, refuse


class WeightSharding(OptimizerSharding):
    """Every process holds a part of each weight, and a layer's are gathered while it is computed (ZeRO-3).

    Weights are sharded when the trainer is made, so that evaluations and samples before training need no other way, and
    no process puts all of them on its device. DeepSpeed's engine, made when training begins, finds them sharded.
    Everything that computes is called by every process: to gather weights takes all of them.

    Args:
        accelerator: of the run.
        by_block: whether all weights of a repeated block are gathered when it is called, and nothing stands within it,
            so that it can be compiled.
    """

    shards = True
    _instead = "Load the pipeline anew in a new process, and go on with a checkpoint."

    def __init__(self, accelerator: Accelerator, by_block: bool = False) -> None:
        super().__init__(accelerator)
        self._by_block = by_block
        self._gathering: dict[nn.Module, Any] = {}  # DeepSpeed's hooks, of modules that no engine calls

    @property
    def samples_here(self) -> bool:
        """Every process does, of the same prompts."""
        return True

    def prepare_policy(self, policy: Policy) -> None:
        """Shards the policy in place; processes get the weights of the first."""
        super().prepare_policy(policy)
        policy.forward = _keeping_no_gathered(policy.forward)  # type: ignore[method-assign]
        self._shard(policy)

    def prepare_reference(self, reference: Reference | None) -> None:
        """Shards the networks of a reference, for itself."""
        if isinstance(reference, ModelReference):
            self._autocast(reference.model)
            self._shard(reference.model)

    def forget_reference(self, reference: Reference) -> None:
        """Lets go of what gathers its weights too."""
        if isinstance(reference, ModelReference):
            self.prepare_again(reference.model)

    def prepare_again(self, model: nn.Module) -> None:
        """Takes away what gathers weights, since the engine that is made next gathers them itself."""
        gathering = self._gathering.pop(model, None)
        if gathering is None:  # as in a run that ended before there was an engine
            return
        gathering.partition_all_parameters()
        gathering.destroy()
        _let_go_of(model)
        for part in model.modules():  # where the next hooks would go on with what these ones made
            vars(part).pop("pre_bwd_fn", None)
            vars(part).pop("post_bwd_fn", None)

    def begin_run(self, model: nn.Module, optimizer: Any) -> None:
        """As with ZeRO-2, and adds gradients of blocks up as those of layers."""
        engine: Any = model
        zero = engine.optimizer
        if zero._leaf_module_hooks:
            # They would be added up when those of a block's inputs are there: of the first block, whose inputs have
            # none, before those of its weights, which would be left out.
            for hook in (*zero._leaf_module_hooks, *zero._grad_acc_hooks):
                hook.remove()
            zero._leaf_module_hooks.clear()
            zero._grad_acc_hooks.clear()
            for weight in self.unwrap(engine.module).parameters():
                vars(weight).pop("ds_z3_leaf_module", None)
            zero.create_reduce_and_remove_grad_hooks()
        engine.backward = _leaving_none_called(engine.backward)
        super().begin_run(model, optimizer)

    def end_run(self, policy: Policy) -> None:
        """Ends the engine, which goes on to gather weights; without one, they are gathered as before the run."""
        super().end_run(policy)
        if self._zero is None and policy not in self._gathering:
            self._gather_for(policy)

    def clip_gradient(self, policy: Policy, most: float) -> Tensor | None:
        """The norm of the whole gradient, which the step scales down to `most`."""
        zero = self._zero
        zero.clip_grad = 0.0 if math.isinf(most) else most
        square = zero.grad_partitions_flat_buffer.square().sum()  # what belongs to no weight is 0 there
        norm: Tensor = self.accelerator.reduce(square, "sum").sqrt()
        return norm

    def gradient(self, weight: Any) -> Tensor | None:
        """Gathered, since each process has a part of it; 0 where there is none."""
        gradient: Tensor = self._zero.get_fp32_grad_for_param(weight)
        return gradient

    @contextmanager
    def whole(self, policy: Policy, reference: Reference | None = None, loading: bool = False) -> Iterator[None]:
        """Puts gathered weights, on the CPU, into the place of the shards, and back what was put into them.

        Of a policy with an adapter, only adapters are gathered.
        """
        is_kept = loading or self.accelerator.is_local_main_process
        gathered: list[tuple[nn.Module, str, Any, nn.Parameter]] = []
        for owner, name, shard in self._shards(policy, reference):
            whole = self._whole(shard.ds_tensor.detach(), shard).cpu()
            if is_kept:
                gathered.append((owner, name, shard, nn.Parameter(whole, shard.requires_grad)))
        with replaced(gathered):
            yield
        if loading:
            for _, _, shard, weight in gathered:
                shard.ds_tensor.detach().copy_(_part_of(weight.detach(), shard))
            if self._zero is not None:
                self._zero.refresh_fp32_params()

    @contextmanager
    def parts(self, policy: Policy, reference: Reference) -> Iterator[None]:
        """Puts parts, which share the memory of the shards, into their place."""
        parts = [
            (owner, name, shard, nn.Parameter(shard.ds_tensor.detach(), shard.requires_grad))
            for owner, name, shard in self._shards(policy, reference)
        ]
        with replaced(parts):
            yield

    def own_parts(self, policy: Policy) -> list[nn.Parameter]:
        """Parts of one size in all processes, the last ones filled up."""
        self.release(policy)
        weights: list[Any] = policy.trained_weights()
        return [nn.Parameter(weight.ds_tensor.detach()) for weight in weights]

    def release(self, policy: Policy) -> None:
        """Leaves parts alone, also of weights that stay whole between steps."""
        of_engine = [] if self._zero is None else [self._zero.parameter_offload]
        for gathering in (*self._gathering.values(), *of_engine):
            gathering.partition_all_parameters()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gathered tensor by tensor, on the CPU, with the numbers that one process gives its parameters."""
        zero, is_kept = self._zero, self.accelerator.is_local_main_process
        state: dict[int, dict[str, Any]] = {}
        groups = self.groups(optimizer)
        for weights, part in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            kept = zero.state.get(part, {})
            for weight, place in zip(weights, _places(weights), strict=True):
                gathered = {key: self._gather(value, weight, place) for key, value in kept.items()}
                if is_kept:
                    state[len(state)] = gathered
        numbers = iter(range(sum(len(group["params"]) for group in groups)))
        numbered = [{**group, "params": [next(numbers) for _ in group["params"]]} for group in groups]
        return {"state": state, "param_groups": numbered}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Keeps of each tensor what belongs to this process's part of its weight."""
        zero = self._zero
        following = iter(state["state"].get(number, {}) for it in state["param_groups"] for number in it["params"])
        parts = {}
        for place, (weights, part) in enumerate(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)):
            saved = [(weight, next(following)) for weight in weights]
            parts[place] = {
                key: _of_group([(weight, it.get(key)) for weight, it in saved], part) if is_per_number(value) else value
                for key, value in max((it for _, it in saved), key=len).items()
            }
        zero._set_fp32_optimizer_param_groups()  # which are empty but while a step is taken
        try:
            used = (group for group in zero.param_groups if group["params"])
            places = iter(range(len(parts)))
            groups = [
                {**group, "params": [next(places) for _ in next(used)["params"]] if group["params"] else []}
                for group in state["param_groups"]
            ]
            Replication.load_optimizer_state(self, zero.optimizer, {"state": parts, "param_groups": groups})
        finally:
            zero._clear_fp32_optimizer_param_groups()

    def groups(self, optimizer: Any) -> list[dict[str, Any]]:
        """The groups of weights of the optimizer, which are empty in it."""
        zero = self._zero
        groups: list[dict[str, Any]] = [{**group, "params": []} for group in zero.param_groups]
        for place, weights in enumerate(zero.fp16_groups):
            groups[zero.sub_group_to_group_id[place]]["params"] += weights
        return groups

    def _weights(self, zero: Any) -> list[list[nn.Parameter]]:
        groups: list[list[nn.Parameter]] = zero.fp16_groups
        return groups

    def _refuse_as_told(self, zero: Any) -> None:
        zero._overflow_check_and_loss_scale_update = partial(refuse, zero)

    def _reduce_in_order(self, zero: Any) -> None:
        """Nothing: DeepSpeed orders them itself."""

    def _end_step(self) -> None:
        # or a weight without a gradient would be trained with its last one
        self._zero.grad_partitions_flat_buffer.zero_()

    def _shard(self, module: Any) -> None:
        """Leaves this process its part of each weight, on the device."""
        if self._by_block:
            for network in module.networks.values():
                for block in repeated_blocks(network):
                    block._z3_leaf = True  # type: ignore[assignment]
        self._gather_for(module)
        module.to(self.accelerator.device)  # the buffers
        for network in module.networks.values():
            network.register_forward_pre_hook(_reading(network, True))
            network.register_forward_hook(_reading(network, False), always_call=True)

    def _gather_for(self, module: nn.Module) -> None:
        """Gathers the weights of each layer whenever it is called, and shards those that are not."""
        from deepspeed.comm import init_distributed
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.utils.timer import NoopTimer

        init_distributed()  # which takes up the group of processes that is there
        settings = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        # whose own linear layer would take the place of PyTorch's, for everybody
        zero_settings = {**settings, "memory_efficient_linear": False}
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero_settings}
        zero = DeepSpeedConfig(config).zero_config
        self._gathering[module] = DeepSpeedZeRoOffload(
            module,
            NoopTimer(),
            config,
            overlap_comm=zero.overlap_comm,
            prefetch_bucket_size=zero.prefetch_bucket_size,
            max_reuse_distance=zero.max_reuse_distance,
            max_live_parameters=zero.max_live_parameters,
            param_persistence_threshold=zero.param_persistence_threshold,
            model_persistence_threshold=zero.model_persistence_threshold,
        )

    def _shards(self, policy: Policy, reference: Reference | None) -> list[tuple[nn.Module, str, Any]]:
        """The parameters of policy and reference, of adapters or all, which this process holds no more than parts of.

        With the module that each is in, and its name there.
        """
        modules: list[Any] = [policy]
        if isinstance(reference, ModelReference):
            modules.append(reference.model)
        self.release(policy)
        return [
            (owner, name, weight)
            for module in modules
            for path, owner in module.named_modules()
            for name, weight in owner.named_parameters(recurse=False)
            if policy.adapter_name is None or ".lora_" in f"{path}.{name}"
        ]

    def _whole(self, part: Tensor, weight: Any) -> Tensor:
        """The whole of a tensor like a weight, of which this process holds a part."""
        whole: Tensor = self.accelerator.gather(part)[: weight.ds_numel]
        return whole.view(weight.ds_shape)

    def _gather(self, value: Any, weight: Any, place: slice) -> Any:  # type: ignore[override]
        if not is_per_number(value):
            return value.cpu().clone() if isinstance(value, Tensor) else value  # one process counts each for itself
        return self._whole(value[place], weight).cpu()


def _keeping_no_gathered(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same, which leaves no gathered weight behind."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import iter_params
    from deepspeed.utils import z3_leaf_module

    def weights_here() -> Iterator[Any]:
        module = FWD_MODULE_STACK[-1]
        return iter(iter_params(module, recurse=z3_leaf_module(module)))

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        with keeping_no_gathered(weights_here):
            return forward(*args, **kwargs)

    return call


def _leaving_none_called(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The same, after which DeepSpeed takes no more modules to be called than before.

    PyTorch ends the recomputation of a block as soon as it has what the backward pass needs: by an exception, which
    passes over the hooks that DeepSpeed notes the end of a call in.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    @wraps(backward)
    def call(*args: Any, **kwargs: Any) -> Any:
        num_called = len(FWD_MODULE_STACK)
        try:
            return backward(*args, **kwargs)
        finally:
            del FWD_MODULE_STACK[num_called:]

    return call


def _let_go_of(model: nn.Module) -> None:
    """Takes a model out of what DeepSpeed has of all models together, where it would stay for good.

    That is a list of modules that are being called, and a memory of which weights a call leaves no need for.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not model]
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():  # of what is put around a method that remembers
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def _reading(network: nn.Module, is_called: bool) -> Callable[..., None]:
    """Lets a layer that reads a weight of another one gather it, as DeepSpeed's engine does while it is called."""

    def tell(*args: Any) -> None:
        for module in network.modules():
            module._parameters._in_forward = is_called  # type: ignore[attr-defined]

    return tell


def _places(weights: Iterable[Any]) -> list[slice]:
    """Where this process's parts of weights are in the part of all of them."""
    ends = [*accumulate((weight.partition_numel() for weight in weights), initial=0)]
    return [slice(first, last) for first, last in pairwise(ends)]


def _part_of(whole: Tensor, weight: Any) -> Tensor:
    """What this process holds of a tensor like a weight, with 0 behind its end."""
    part = torch.zeros_like(weight.ds_tensor)
    first = weight.ds_zero_partition_rank * len(part)
    mine = whole.flatten()[first : first + len(part)]
    part[: len(mine)] = mine.to(part)
    return part.detach()


def _of_group(values: list[tuple[Any, Tensor | None]], part: Tensor) -> Tensor:
    """What this process holds of a tensor for each weight, 0 where there is none, in one."""
    mine = torch.zeros_like(part).detach()
    for (weight, value), place in zip(values, _places(weight for weight, _ in values), strict=True):
        if value is not None:
            mine[place] = _part_of(value, weight).to(mine)
    return mine
