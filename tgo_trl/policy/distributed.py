"""The ways of spreading weights over processes, and one of them: every process holds a part of each (FSDP2)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedType, convert_outputs_to_fp32, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..storage.fingerprints import tensors_digest
from .compilation import blocks_of
from .policy import Policy
from .reference import ModelReference, Reference
from .replication import Replication, replaced
from .zero import OptimizerSharding
from .zero3 import WeightSharding


class Sharding(Replication):
    """Every process holds a part of each weight, and a block's are gathered while it is computed (FSDP2).

    Weights are sharded when the trainer is made, so that evaluations and samples before training need no other way.
    `Trainer` and accelerate then find a model that is sharded already. Everything that computes is called by every
    process, with the same weights in the same order: to gather them takes all of them.
    """

    shards = True

    @property
    def samples_here(self) -> bool:
        """Every process does, of the same prompts."""
        return True

    def prepare_policy(self, policy: Policy) -> None:
        """Shards the policy in place.

        Raises:
            ValueError: if processes begin with other weights, which `DistributedDataParallel` would make equal.
        """
        some = ((name, weight.reshape(-1)[:4096]) for name, weight in policy.named_parameters() if weight.requires_grad)
        if len({*gather_object([tensors_digest(some)])}) > 1:
            raise ValueError(
                "The processes begin with other weights, and FSDP2 would train a mixture of them. Pass the same "
                "pipeline and adapter in every process; one that is made at random needs the same seed in each."
            )
        self._shard(policy.networks.values())
        fully_shard(policy, mp_policy=self._precision)
        # Before a pipeline calls a network within it, which would take itself for the root.
        fully_shard.state(policy)._lazy_init()  # type: ignore[attr-defined]
        self._autocast(policy)
        self.accelerator._models.append(policy)  # or an evaluation would prepare it, which FSDP2 refuses

    def prepare_reference(self, reference: Reference | None) -> None:
        """Shards the networks of a reference, each for itself, so that a pipeline may call them."""
        if isinstance(reference, ModelReference):
            model: Any = reference.model
            self._shard(model.networks.values())
            self._autocast(model)

    def fixed_bytes(self, networks: Iterable[nn.Module]) -> int:
        """The shards of this process, and at most what is gathered at once, which was computed and not measured.

        Of each network what is in no block, and three of the largest blocks: the one that is computed, the one around
        it or fetched ahead, and one on its way.
        """
        weights, blocks, rest = 0, [0], 0
        for network in networks:
            weights += sum(_shard_bytes(weight) for weight in (*network.parameters(), *network.buffers()))
            *of_blocks, of_network = _unit_bytes(network)
            blocks += of_blocks
            rest += of_network
        return weights + rest + 3 * max(blocks)

    def prepare_again(self, model: nn.Module) -> None:
        """Makes the optimizer that is made next see shards, and accelerate tell them apart."""
        _reshard([model])
        for number, shard in enumerate(model.parameters()):
            # accelerate looks the optimizer's weights up by address, and the shards of small weights may be empty
            if isinstance(shard, DTensor) and not shard.to_local().numel():
                shard._local_tensor.data_ptr = partial(int, -1 - number)  # type: ignore[method-assign]

    def unwrap(self, model: nn.Module) -> Policy:
        """The model itself, since it is sharded in place."""
        assert isinstance(model, Policy)
        return model

    @contextmanager
    def whole(self, policy: Policy, reference: Reference | None = None, loading: bool = False) -> Iterator[None]:
        """Puts gathered weights, on the CPU, into the place of the shards, and back what was put into them.

        Of a policy with an adapter, only adapters are gathered.
        """
        modules: list[nn.Module] = [policy]
        if isinstance(reference, ModelReference):
            modules.append(reference.model)
        _reshard(modules)
        is_kept = loading or self.accelerator.is_local_main_process
        gathered: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        for owner, name, shard in _shards(modules, policy.adapter_name is not None):
            whole = full_tensor(shard.detach()).cpu()
            if is_kept:
                gathered.append((owner, name, shard, nn.Parameter(whole, shard.requires_grad)))
        with _as_plain(modules), replaced(gathered):
            yield
        if loading:
            for _, _, shard, weight in gathered:
                shard.detach().copy_(_part_of(weight.detach(), shard))

    def own_parts(self, policy: Policy) -> list[nn.Parameter]:
        """The shards of this process, some of which may be empty."""
        self.release(policy)
        weights: list[Any] = policy.trained_weights()
        return [nn.Parameter(shard.detach().to_local()) for shard in weights]

    def release(self, policy: Policy) -> None:
        """Leaves shards alone."""
        _reshard([policy])

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gathered tensor by tensor, on the CPU, with the numbers that one process gives its parameters."""
        state: dict[str, Any] = optimizer.state_dict()
        is_kept = self.accelerator.is_local_main_process
        whole: dict[int, dict[str, Any]] = {}
        for number, values in state["state"].items():
            gathered = {key: full_tensor(it).cpu() if isinstance(it, Tensor) else it for key, it in values.items()}
            if is_kept:
                whole[number] = gathered
        return {**state, "state": whole}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Keeps of each tensor what belongs to this process's part of its weight."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        parts = {
            number: {
                key: _part_of(it, weights[number]) if isinstance(it, Tensor) and it.dim() else it
                for key, it in values.items()
            }
            for number, values in state["state"].items()
        }
        super().load_optimizer_state(optimizer, {**state, "state": parts})

    @property
    def _precision(self) -> MixedPrecisionPolicy:
        # What accelerate makes of bf16 would round the times of the noise, and add gradients up in bf16.
        return MixedPrecisionPolicy(cast_forward_inputs=False)

    def _shard(self, networks: Iterable[nn.Module]) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        for network in networks:
            for module in (*blocks_of(network), network):
                fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, mp_policy=self._precision)

    def _autocast(self, model: nn.Module) -> None:
        """What accelerate's `prepare_model` does where weights are whole; but what is cast is not kept.

        Autocast would keep its copies of all weights that are trained, gathered ones, until the forward pass ends.
        """
        if self.accelerator.native_amp:
            autocast = self.accelerator.autocast(AutocastKwargs(cache_enabled=False))
            model.forward = convert_outputs_to_fp32(autocast(model.forward))


def _unit_bytes(network: nn.Module) -> list[int]:
    """Of whole weights: of those of each sharded block that are in no inner one, and of the network's in no block."""
    seen: set[int] = set()
    sizes = []
    for module in reversed([it for it in network.modules() if isinstance(it, FSDPModule)]):
        own = {id(weight): weight.nbytes for weight in module.parameters() if id(weight) not in seen}
        seen |= own.keys()
        sizes.append(sum(own.values()))
    return sizes


def _shard_bytes(weight: Tensor) -> int:
    """Of what this process holds of a weight, with gradient and two averages in float32 if it is trained."""
    part = weight.to_local() if isinstance(weight, DTensor) else weight
    return part.nbytes + (3 * 4 * part.numel() if weight.requires_grad else 0)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that processes hold parts of, which all have to ask for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _reshard(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _shards(modules: Iterable[nn.Module], of_adapters: bool) -> list[tuple[nn.Module, str, Any]]:
    """The sharded parameters of modules, of adapters or all, with the module that each is in and its name there."""
    return [
        (owner, name, weight)
        for module in modules
        for path, owner in module.named_modules()
        for name, weight in owner.named_parameters(recurse=False)
        if isinstance(weight, DTensor) and (not of_adapters or ".lora_" in f"{path}.{name}")
    ]


def _part_of(whole: Tensor, shard: Any) -> Tensor:
    """What this process holds of a tensor that every process has."""
    whole = whole.to(shard.device)
    return distribute_tensor(whole, shard.device_mesh, shard.placements, src_data_rank=None)


@contextmanager
def _as_plain(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, modules are of the classes that FSDP2 found, and nothing of it looks for shards in them."""
    sharded = [(part, type(part)) for module in modules for part in module.modules() if isinstance(part, FSDPModule)]
    for part, its_class in sharded:
        part.__class__ = its_class.__mro__[2]  # of [sharded, FSDPModule, plain, ...]
    try:
        yield
    finally:
        for part, its_class in sharded:
            part.__class__ = its_class


STRATEGIES: dict[DistributedType, type[Replication]] = {
    DistributedType.MULTI_GPU: Replication,
    DistributedType.FSDP: Sharding,
    DistributedType.DEEPSPEED: OptimizerSharding,
}
"""By accelerate's name; whatever is not named replicates, as `DistributedDataParallel` does on any device."""


def build_strategy(accelerator: Accelerator, compiles_blocks: bool = False) -> Replication:
    """The strategy of a run.

    Args:
        accelerator: of the run.
        compiles_blocks: whether repeated blocks are compiled, within which nothing may gather weights then.
    """
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == DistributedType.DEEPSPEED else None
    if plugin is not None and plugin.zero_stage == 3:
        return WeightSharding(accelerator, compiles_blocks)
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
