"""Reward for a turn's form: whether the four lines can be read back."""

from multimood.processors.turn import PREFIXES, SupportTurn

from .completion_text import completion_text


def format_reward(completions: list[str | list[dict]], **kwargs) -> list[float]:
    """Share of a turn's four lines that are there and valid, by `SupportTurn.parse`.

    Args:
        completions: Generated turns, plain or conversational.
        kwargs: What TRL hands to every reward function; not used.

    Returns:
        One reward in [0, 1] a completion.

    Example:
        >>> turn = "Client's emotion: joy\\nTherapist's emotion: joy\\nTherapist's strategy: approval\\n"
        >>> format_reward([turn + "Therapist's response: How lovely!", turn, "How lovely!"])
        [1.0, 0.75, 0.0]
    """
    turns = (SupportTurn.parse(completion_text(completion)) for completion in completions)
    return [1 - len(turn.missing) / len(PREFIXES) for turn in turns]
