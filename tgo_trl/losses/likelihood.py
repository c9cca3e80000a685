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


def implicit_reward(log_ratio: Tensor, beta: float) -> Tensor:
    """Implicit reward of each row, `r = beta (log pi_theta(y|x) - log pi_ref(y|x))`.

    Args:
        log_ratio: float32 `[B]`.
        beta: `beta > 0`, the strength of the KL term.
    """
    return beta * log_ratio


def toward_label(value: Tensor, is_positive: Tensor) -> Tensor:
    """`+value` for positive rows, `-value` for negative rows; shapes broadcast."""
    return value.where(is_positive, -value)
