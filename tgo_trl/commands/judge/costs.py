"""What answers cost: tokens as the server counts them, and money if prices are known."""

from dataclasses import dataclass

from ...rewards.chat import Answer
from .config import JudgeConfig


@dataclass
class Usage:
    """Tokens of answers, added up; those of attempts that failed are not known.

    Attributes:
        config: with prices.
        prompt_tokens, completion_tokens: as the server counts them.
        num_uncounted: answers whose tokens the server did not count.
    """

    config: JudgeConfig
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_uncounted: int = 0

    def add(self, answer: Answer | None) -> None:
        """Adds an answer's, if there is one."""
        if answer is None or answer.refusal is not None:
            return
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            self.num_uncounted += 1
            return
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None if none is set."""
        config = self.config
        prices = (config.price_per_million_prompt_tokens, config.price_per_million_completion_tokens)
        if prices == (None, None):
            return None
        return (self.prompt_tokens * (prices[0] or 0) + self.completion_tokens * (prices[1] or 0)) / 1e6

    def text(self) -> str:
        """In a few words."""
        tokens = f"{self.prompt_tokens + self.completion_tokens:,} tokens"
        return tokens if self.cost is None else f"{tokens}, {self.cost:.4g} spent"
