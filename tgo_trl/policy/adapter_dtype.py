"""LoRA computed in the dtype of the network around it, from float32 weights, where no autocast does the casting."""

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional


class _CastLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, *_like(input, self.weight, self.bias))


class _CastConv1d(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, *_like(input, self.weight, self.bias))
        return output


class _CastConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, *_like(input, self.weight, self.bias))
        return output


class _CastConv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, *_like(input, self.weight, self.bias))
        return output


def _like(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # Autograd casts the gradients back, so that they are added up in the dtype of the weights.
    return weight.to(input.dtype), None if bias is None else bias.to(input.dtype)


_CASTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _CastLinear, nn.Conv1d: _CastConv1d, nn.Conv2d: _CastConv2d, nn.Conv3d: _CastConv3d,
}  # fmt: skip
_PLAIN = {casting: plain for plain, casting in _CASTING.items()}


def cast_factors(network: nn.Module, is_on: bool) -> None:
    """Lets every factor of a network's adapters be cast to the dtype of its input whenever it is computed with, or not.

    The weights themselves stay what they are, float32 as a rule, under the names that they have, and so do their
    gradients. peft by itself casts the input to the dtype of the factors, so that LoRA computes in float32 unless
    autocast casts both back.

    Args:
        network: with adapters of [`check_factors`].
        is_on: False for layers as peft makes them.
    """
    kinds = _CASTING if is_on else _PLAIN
    for layer in network.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
            if type(factor) in kinds:
                # Another class, as FSDP2 does it: another module, or a parametrised one, would have other names.
                factor.__class__ = kinds[type(factor)]
                layer.cast_input_dtype_enabled = not is_on


def check_factors(name: str, network: nn.Module) -> None:
    """Raises a ValueError if adapters of a network are not the two factors that [`cast_factors`] casts.

    Args:
        name: of the network in its pipeline.
        network: with adapters.
    """
    for path, layer in network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        factors = (*layer.lora_A.values(), *layer.lora_B.values())
        if layer.lora_variant or not factors or not all(type(it) in _CASTING or type(it) in _PLAIN for it in factors):
            kinds = sorted({type(it).__name__ for it in (*layer.lora_variant.values(), *factors)})
            raise ValueError(
                f"`bf16_autocast` is False, and the adapter of `{name}.{path}` is not just two factors "
                f"({', '.join(kinds) or type(layer).__name__}): what else it computes is cast by autocast alone. Leave "
                "`bf16_autocast` out, or train a plain LoRA."
            )
