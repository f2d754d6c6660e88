"""What is known of the risk a person is at. It is kept outside the neural memory: no compression touches it."""

from dataclasses import asdict, dataclass
from enum import IntEnum


class RiskLevel(IntEnum):
    """How serious signs of suicide or self-harm are; the order is that of seriousness."""

    NONE = 0
    LOW = 1  # passive: hopelessness, feeling a burden, wishing not to wake up
    HIGH = 2  # active thoughts of suicide or self-harm, or recent self-injury
    IMMINENT = 3  # a plan, means, a time frame or preparation


@dataclass(frozen=True)
class Evidence:
    """The words that a level rests on.

    Args:
        utterance (`int`): number of the utterance in the conversation, from 0.
        start, end (`int`): the words' place in the utterance's text, in characters.
        text (`str`): the words as they were said.
        category (`str`): what they are a sign of, e.g. "plan", "burden"; a name of the lexicon's.
        level (`RiskLevel`): how serious they are by themselves.
    """

    utterance: int
    start: int
    end: int
    text: str
    category: str
    level: RiskLevel


@dataclass(frozen=True)
class RiskState:
    """The risk in a conversation so far.

    Args:
        level (`RiskLevel`): the level to answer by now. Sticky: it falls only as `trust/risk.py` documents.
        peak (`RiskLevel`): the highest level there has been; it never falls.
        calm_turns (`int`): the client's utterances since the last sign.
        utterances (`int`): utterances assessed so far, of both speakers.
        evidence (`tuple[Evidence, ...]`): every sign there has been, in order.
    """

    level: RiskLevel = RiskLevel.NONE
    peak: RiskLevel = RiskLevel.NONE
    calm_turns: int = 0
    utterances: int = 0
    evidence: tuple[Evidence, ...] = ()

    def to_dict(self) -> dict:
        """The state as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict) -> "RiskState":
        """The state that [`to_dict`] gave."""
        evidence = tuple(Evidence(**{**sign, "level": RiskLevel(sign["level"])}) for sign in state["evidence"])
        levels = {name: RiskLevel(state[name]) for name in ("level", "peak")}
        return cls(**{**state, **levels, "evidence": evidence})
