"""Reward for a turn's labels: whether they agree with the annotators'."""

from multimood.processors.turn import LABELS, SupportTurn

from .completion_text import completion_text


def label_reward(
    completions: list[str | list[dict]],
    client_emotion: list[str | None],
    therapist_emotion: list[str | None],
    strategy: list[str | None],
    **kwargs,
) -> list[float | None]:
    """Share of the row's labels that the turn names; a line that cannot be read disagrees.

    Args:
        completions: Generated turns, plain or conversational.
        client_emotion: True labels, one a completion; `None` where the row has none.
        therapist_emotion: As `client_emotion`.
        strategy: As `client_emotion`.
        kwargs: What else TRL hands to every reward function; not used.

    Returns:
        One reward in [0, 1] a completion, `None` where the row has no label at all: TRL then leaves this reward out.

    Raises:
        ValueError: if a true label is not one of the allowed ones, or their number is not the completions'.

    Example:
        >>> turn = "Client's emotion: joy\\nTherapist's emotion: joy\\nTherapist's strategy: approval\\n"
        >>> label_reward([turn, turn], ["joy", None], ["neutral", None], ["approval", None])
        [0.6666666666666666, None]
    """
    rewards = []
    for completion, *labels in zip(completions, client_emotion, therapist_emotion, strategy, strict=True):
        truth = SupportTurn(*labels, response=None)
        known = [field for field in LABELS if getattr(truth, field) is not None]
        turn = SupportTurn.parse(completion_text(completion))
        agreeing = sum(getattr(turn, field) == getattr(truth, field) for field in known)
        rewards.append(agreeing / len(known) if known else None)
    return rewards
