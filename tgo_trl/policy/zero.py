"""ZeRO-2: every process holds all weights, and a part of gradients, float32 masters and moments, by DeepSpeed."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from .deepspeed_numbers import settle
from .policy import Policy
from .reference import ModelReference, Reference
from .replication import Replication


class OptimizerSharding(Replication):
    """Every process holds all weights, and updates a part of them (ZeRO-2, arXiv 1910.02054).

    accelerate makes the engine of DeepSpeed when training begins. `Trainer` knows nothing of it: it calls the step as
    of any optimizer, at the end of an update, where accelerate would have the backward pass call it. Weights that are
    read or saved are the whole ones.
    """

    def prepare_policy(self, policy: Policy) -> None:
        """Settles what of DeepSpeed's configuration depends on the weights."""
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        # DeepSpeed would make the trained weights bfloat16: they stay float32, and autocast casts, as without it.
        self.accelerator.native_amp = config.pop("bf16", {}).get("enabled", False)
        settle(config, policy.networks.values(), sum(weight.numel() for weight in policy.trained_weights()))
        self._autocast(policy)
        self.accelerator._models.append(policy)  # or an evaluation before training would make an engine

    def prepare_reference(self, reference: Reference | None) -> None:
        """Puts a reference's networks to where the policy's are; DeepSpeed makes one engine, and needs no other."""
        if isinstance(reference, ModelReference):
            self._autocast(reference.model.to(self.accelerator.device))

    def begin_run(self, model: nn.Module, optimizer: Any) -> None:
        """Gives each step to `Trainer`, and to the guard the say over it.

        Args:
            model: the engine.
            optimizer: accelerate's, around DeepSpeed's, around that of the settings.

        Raises:
            ValueError: if it is not the first run of the trainer.
        """
        engine: Any = model
        zero = engine.optimizer
        if not zero._grad_acc_hooks:
            raise ValueError(f"DeepSpeed's engine of this trainer has ended with its run. {self._instead}")
        policy = self.unwrap(engine.module)
        policy.begin_run(weight for group in self._weights(zero) for weight in group)
        if len(policy.networks) > 1:
            self._reduce_in_order(zero)
        self.accelerator.deepspeed_engine_wrapped = _Backward(engine, self.accelerator)
        optimizer.step = _step_of(engine, optimizer.step, self._end_step)
        optimizer.__has_overflow__ = False  # an update that is left out is one for the schedule, as without DeepSpeed
        zero._step_supports_amp_scaling = True
        self._refuse_as_told(zero)
        engine.zero_grad = policy.zero_grad  # which would look through all weights by itself

    def end_run(self, policy: Policy) -> None:
        """As without DeepSpeed; ends the engine, whose hooks another trainer of the weights would run into."""
        super().end_run(policy)
        if self._zero is not None:
            for hook in self._zero._grad_acc_hooks:
                hook.remove()
            self._zero._grad_acc_hooks.clear()

    def clip_gradient(self, policy: Policy, most: float) -> Tensor | None:
        """The norm of the whole gradient, which the step scales down to `most`."""
        zero = self._zero
        assert zero is not None
        zero.clip_grad = 0.0 if math.isinf(most) else most
        norm: Tensor = zero.scaled_global_norm()
        return norm

    def gradient(self, weight: Any) -> Tensor | None:
        """Gathered, since each process has a part of it; 0 where there is none."""
        gradient: Tensor = weight.get_full_hp_grad()
        return gradient

    @contextmanager
    def whole(self, policy: Policy, reference: Reference | None = None, loading: bool = False) -> Iterator[None]:
        """Weights are whole as they are; what was put into them reaches the masters that steps are taken from."""
        yield
        if loading and self._zero is not None:
            self._zero.refresh_fp32_params()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gathered tensor by tensor, on the CPU, with the numbers that one process gives its parameters."""
        zero, is_kept = self._zero, self.accelerator.is_local_main_process
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        for group, weights, part in zip(
            zero.param_groups, zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
        ):
            first = sum(len(it["params"]) for it in groups)
            groups.append({**group, "params": list(range(first, first + len(weights)))})
            for number, weight in enumerate(weights, first):
                gathered = {key: self._gather(it, weight, part) for key, it in zero.state.get(part, {}).items()}
                if is_kept:
                    state[number] = gathered
        return {"state": state, "param_groups": groups}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Keeps of each tensor what belongs to the weights, or parts of some, that this process updates."""
        zero = self._zero
        groups = [group for group in state["param_groups"] if group["params"]]  # DeepSpeed drops the others too
        parts: dict[int, dict[str, Any]] = {}
        for place, (group, weights, part) in enumerate(
            zip(groups, zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
        ):
            saved = [state["state"].get(number, {}) for number in group["params"]]
            values = max(saved, key=len)
            parts[place] = {
                key: _part_of([it.get(key) for it in saved], weights, part) if is_per_number(value) else value
                for key, value in values.items()
            }
        numbered = [{**group, "params": [place]} for place, group in enumerate(groups)]
        zero.optimizer.load_state_dict({"state": parts, "param_groups": numbered})

    _instead = "Make a new trainer, which goes on with the same pipeline, or with a checkpoint."

    def _weights(self, zero: Any) -> list[list[nn.Parameter]]:
        """Those that are trained, by the group of the optimizer that they are in."""
        groups: list[list[nn.Parameter]] = zero.bit16_groups
        return groups

    def _refuse_as_told(self, zero: Any) -> None:
        """What is refused is refused as gradients that overflow are, and not by a look of DeepSpeed's own."""
        zero.check_grad_overflow = True
        zero._check_overflow = partial(refuse, zero)

    def _reduce_in_order(self, zero: Any) -> None:
        """Adds gradients up over processes in the order of the weights, when a backward pass has all of them.

        DeepSpeed does it as they come. Which network is called first depends on the rows of a process, and what is
        added up would be of other weights.
        """
        waiting: dict[int, tuple[nn.Parameter, int]] = {}
        reduce, end = zero.process_gradients, zero.independent_gradient_partition_epilogue

        def wait(weight: nn.Parameter, group: int) -> None:
            waiting[zero.get_param_id(weight)] = (weight, group)

        def reduce_all() -> None:
            for number in sorted(waiting):
                reduce(*waiting.pop(number))
            end()

        zero.process_gradients, zero.independent_gradient_partition_epilogue = wait, reduce_all

    def _end_step(self) -> None:
        """Called when a step was taken, or refused."""

    @property
    def _zero(self) -> Any:
        """DeepSpeed's optimizer; None before training begins."""
        wrapped = self.accelerator.deepspeed_engine_wrapped
        return None if wrapped is None else wrapped.engine.optimizer

    def _autocast(self, model: nn.Module) -> None:
        if self.accelerator.native_amp:  # accelerate's own autocast would be float16 here
            # which would keep what it casts, of all weights that are trained, until the forward pass ends
            autocast = torch.autocast(self.accelerator.device.type, torch.bfloat16, cache_enabled=False)
            model.forward = convert_outputs_to_fp32(autocast(model.forward))

    def _gather(self, value: Any, weight: nn.Parameter, part: Tensor) -> Any:
        """The whole of what an optimizer keeps of a weight, from a tensor like this process's part of all weights."""
        if not is_per_number(value):
            return value.cpu().clone() if isinstance(value, Tensor) else value  # one process counts each for itself
        mine = torch.zeros(weight.numel(), dtype=value.dtype, device=value.device)
        for of_weight, of_part in _overlap(weight):
            mine[of_weight] = value[of_part]
        return self.accelerator.reduce(mine, "sum").view(weight.shape).cpu()


class _Backward:
    """In the place of accelerate's, whose backward pass takes the step as well.

    Attributes:
        engine: DeepSpeed's.
    """

    def __init__(self, engine: Any, accelerator: Accelerator) -> None:
        self.engine = engine
        self._accelerator = accelerator

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Adds the gradients of a batch to those of the update."""
        kwargs.pop("sync_gradients", None)  # which not every version of accelerate says
        self.engine.set_gradient_accumulation_boundary(is_boundary=self._accelerator.sync_gradients)
        self.engine.backward(loss, **kwargs)


def _step_of(engine: Any, tell: Callable[[], None], end: Callable[[], None]) -> Callable[[], None]:
    """The engine's step; accelerate's does nothing, but for telling the schedule that there was one."""

    @wraps(tell)
    def step() -> None:
        tell()
        engine.step()
        end()

    return step


def refuse(zero: Any, *args: Any, **kwargs: Any) -> None:
    """Makes DeepSpeed's optimizer refuse an update if the guard has found it to be bad."""
    zero.overflow = bool(zero.found_inf)


def is_per_number(value: Any) -> bool:
    """Whether an optimizer keeps a number for each of a weight, and not one for all of it, such as a count of steps."""
    return isinstance(value, Tensor) and value.dim() > 0


def _overlap(weight: Any) -> list[tuple[slice, slice]]:
    """Where this process's part of a weight is: in the flattened weight, and in the part of all weights; or nothing."""
    mapping = weight._hp_mapping
    if mapping is None:
        return []
    addresses = (mapping.lp_fragment_address, mapping.hp_fragment_address)
    of_weight, of_part = (slice(it.start, it.start + it.numel) for it in addresses)
    return [(of_weight, of_part)]


def _part_of(values: list[Tensor | None], weights: list[nn.Parameter], part: Tensor) -> Tensor:
    """What this process updates of a tensor for each weight, 0 where there is none, in one."""
    mine = torch.zeros_like(part)
    for value, weight in zip(values, weights, strict=True):
        for of_weight, of_part in _overlap(weight):
            if value is not None:
                mine[of_part] = value.flatten()[of_weight].to(mine)
    return mine.detach()
