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
        context (`tuple[Evidence, ...]`): what was said of late that is no sign by itself but counts beside others:
            distress, questions about means, what the therapist asked, statements of safety.
        unassessed (`int`): the client's utterances in a language or script that the lexicon is not for. Where it is
            not 0, `RiskLevel.NONE` does not mean that there was no sign.
    """

    level: RiskLevel = RiskLevel.NONE
    peak: RiskLevel = RiskLevel.NONE
    calm_turns: int = 0
    utterances: int = 0
    evidence: tuple[Evidence, ...] = ()
    context: tuple[Evidence, ...] = ()
    unassessed: int = 0

    def to_dict(self) -> dict:
        """The state as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict) -> "RiskState":
        """The state that [`to_dict`] gave."""
        levels = {name: RiskLevel(state[name]) for name in ("level", "peak")}
        signs = {
            name: tuple(Evidence(**{**sign, "level": RiskLevel(sign["level"])}) for sign in state.get(name, ()))
            for name in ("evidence", "context")
        }
        return cls(**{**state, **levels, **signs})
