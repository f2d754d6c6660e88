"""What a judge may spend, and what it has spent."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """A limit in tokens, in money or in both. Prices are the caller's to give: none is guessed.

    Args:
        max_tokens (`int`, *optional*): prompt and completion tokens together.
        max_cost (`float`, *optional*): in the currency of the prices.
        input_price, output_price (`float`, *optional*): of a million tokens; needed for `max_cost` and for a report in money.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; give a number of at least 0.")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("Give both input_price and output_price, or neither.")
        if self.max_cost is not None and self.input_price is None:
            raise ValueError("max_cost needs input_price and output_price, of a million tokens each.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """In the prices' currency; `None` without prices."""
        if self.input_price is None:
            return None
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6

    def allows(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Whether so many tokens in all are within the limit."""
        if self.max_tokens is not None and prompt_tokens + completion_tokens > self.max_tokens:
            return False
        return self.max_cost is None or self.cost(prompt_tokens, completion_tokens) <= self.max_cost


@dataclass
class CostReport:
    """What a judge did and spent since it was made.

    Args:
        judge (`str`): its name.
        requests (`int`): sent, repeated attempts included.
        cached (`int`): answers that were taken from the cache.
        answered (`int`): answers that came and were valid.
        failures (`Counter`): questions left without an answer, by cause.
        retries (`Counter`): attempts that failed and were repeated, by cause.
        prompt_tokens, completion_tokens (`int`): as the server counted them; an upper bound where it did not say, or where
            a request was given up and may be billed all the same.
        cost (`float`, *optional*): in the currency of the budget's prices.
    """

    judge: str
    requests: int = 0
    cached: int = 0
    answered: int = 0
    failures: Counter = field(default_factory=Counter)
    retries: Counter = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def __str__(self):
        causes = ", ".join(f"{cause} {count}" for cause, count in self.failures.most_common()) or "none"
        money = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.judge}: {self.answered} answered, {self.cached} from the cache, {self.failures.total()} without an answer "
            f"({causes}); {self.requests} requests, {self.retries.total()} repeated, "
            f"{self.prompt_tokens} + {self.completion_tokens} tokens{money}"
        )
