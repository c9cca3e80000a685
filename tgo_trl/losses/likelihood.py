"""The log-likelihood surrogate, and what losses make of it: log-ratio and implicit reward, equation by equation.

Pure functions of tensors. Equation numbers follow "Threshold-Guided Optimization for Visual Generative Models"
(arXiv 2605.04653), in the order in which its method section introduces them.
"""

from torch import Tensor


def log_likelihood(error: Tensor, temperature: float) -> Tensor:
    """Log-likelihood surrogate of each row, `log pi(y|x) ~= -error / T` (the paper's Gaussian surrogate).

    Args:
        error: float32 `[B]`, mean error of each row over all its numbers; holds gradient for the policy.
        temperature: `T > 0`, in error units.

    Returns:
        float32 `[B]`, up to a constant that cancels in the log-ratio.
    """
    return -error / temperature


def log_ratio(policy_error: Tensor, reference_error: Tensor, temperature: float) -> Tensor:
    """Log-ratio of policy to reference, `log pi_theta(y|x) - log pi_ref(y|x) = (e_ref - e_theta) / T`.

    The errors are subtracted before the division: both are of the same size, and `1/T` multiplies what rounding
    leaves of their difference.

    Args:
        policy_error: float32 `[..., B]`, holds gradient.
        reference_error: float32 `[..., B]`, computed on the same draw, without gradient.
        temperature: `T > 0`, in error units.

    Returns:
        float32 `[..., B]`, zero where the policy equals the reference.
    """
    return (reference_error - policy_error) / temperature


def relative_log_ratio(policy_error: Tensor, reference_error: Tensor, temperature: float) -> Tensor:
    """Log-ratio under a Gaussian with the reference's own variance, `(e_ref - e_theta) / (T e_ref)`.

    A Gaussian of variance `sigma^2` in each of `D` numbers has the log-likelihood `-D e / (2 sigma^2)`, and a constant.
    The paper's surrogate has one `sigma^2 = T D / 2` for all times, and `T = 0.001 * 16384 / D` makes it 8.192. The
    variance that the reference shows at a row and a time is `e_ref`: with `sigma^2 = T D e_ref / 2` the ratio is
    relative to it, and near the noise, where errors are small, it allows no larger a step than elsewhere. `T = 2 / D`
    would be the likelihood itself, of a single draw; the paper's `T` is 8.192 times as tolerant, at any `D`.

    Args:
        policy_error: float32 `[..., B]`, holds gradient.
        reference_error: float32 `[..., B]`, above 0, computed on the same draw, without gradient.
        temperature: `T > 0`, without unit.

    Returns:
        float32 `[..., B]`, zero where the policy equals the reference.
    """
    return (reference_error - policy_error) / (temperature * reference_error)


def implicit_reward(log_ratio: Tensor, beta: float) -> Tensor:
    """Implicit reward of each row, `r = beta (log pi_theta(y|x) - log pi_ref(y|x))`.

    Args:
        log_ratio: float32 `[B]`.
        beta: `beta > 0`, the strength of the KL term.
    """
    return log_ratio if beta == 1 else beta * log_ratio


def over_draws(values: Tensor) -> Tensor:
    """The mean over the draws of each row, `[K, B, ...]` to `[B, ...]`; of one draw, the draw."""
    return values.squeeze(0) if values.shape[0] == 1 else values.mean(0)


def squared_difference(one: Tensor, other: Tensor) -> Tensor:
    """`<(one - other)^2>`, the mean over the numbers of each draw, taken in float32: `[K, B, ...]` to `[K, B]`."""
    return (one.float() - other.float()).square().flatten(2).mean(2)


def toward_label(value: Tensor, is_positive: Tensor) -> Tensor:
    """`+value` for positive rows, `-value` for negative rows; shapes broadcast."""
    return value * (2 * is_positive - 1)
