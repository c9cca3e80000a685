"""The ways of spreading weights over processes, by accelerate's names for them."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from .distributed import Replication, Sharding
from .zero import OptimizerSharding

STRATEGIES: dict[DistributedType, type[Replication]] = {
    DistributedType.MULTI_GPU: Replication,
    DistributedType.FSDP: Sharding,
    DistributedType.DEEPSPEED: OptimizerSharding,
}
"""By accelerate's name; whatever is not named replicates, as `DistributedDataParallel` does on any device."""


def build_strategy(accelerator: Accelerator) -> Replication:
    """The strategy of a run."""
    return STRATEGIES.get(accelerator.distributed_type, Replication)(accelerator)
