"""What one turn of the dialogue says: its labels, its four lines, and the messages a row becomes."""

from dataclasses import dataclass
from difflib import get_close_matches

# Label sets and their order: MultiMood (arXiv 2511.10011), annotated in the MESC corpus.
EMOTIONS = ("anger", "sadness", "disgust", "depression", "neutral", "joy", "fear")
STRATEGIES = (
    "open question",
    "approval",
    "self-disclosure",
    "restatement",
    "interpretation",
    "advisement",
    "communication skills",
    "structuring the therapy",
    "guiding the pace and depth of the conversation",
    "others",
)
SPEAKERS = ("client", "therapist")

LABELS = {"client_emotion": EMOTIONS, "therapist_emotion": EMOTIONS, "strategy": STRATEGIES}
PREFIXES = {
    "client_emotion": "Client's emotion:",
    "therapist_emotion": "Therapist's emotion:",
    "strategy": "Therapist's strategy:",
    "response": "Therapist's response:",
}

SYSTEM_PROMPT = "You are a therapist who supports the client."
VERBATIM_PAIRS = 7  # client/therapist pairs that stay as text (MultiMood, arXiv 2511.10011)
CLIPS_PER_TURN = 5  # the client's last clips of the turn that are looked at (same source)


@dataclass(frozen=True)
class SupportTurn:
    """The target of one turn: three labels and the words of the therapist.

    A field that is `None` is missing; only `parse` makes such turns.

    Args:
        client_emotion (`str`): one of `EMOTIONS`.
        therapist_emotion (`str`): one of `EMOTIONS`.
        strategy (`str`): one of `STRATEGIES`.
        response (`str`): what the therapist says; may span lines.

    Raises:
        ValueError: a label is not one of the allowed ones, or the response is blank.
    """

    client_emotion: str | None
    therapist_emotion: str | None
    strategy: str | None
    response: str | None

    def __post_init__(self):
        for field, allowed in LABELS.items():
            label = getattr(self, field)
            if label is not None and label not in allowed:
                nearest = get_close_matches(str(label).strip().lower(), allowed, n=1, cutoff=0.5)
                hint = f"did you mean {nearest[0]!r}? " if nearest else ""
                raise ValueError(f"{field} is {label!r}; {hint}allowed: {', '.join(allowed)}")
        if self.response is not None and not self.response.strip():
            raise ValueError(f"response is {self.response!r}; a turn needs words")

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the fields that are `None`."""
        return tuple(field for field in PREFIXES if getattr(self, field) is None)

    @property
    def is_valid(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def render(self) -> str:
        """The turn as its four lines; `SupportTurn.parse` reads it back.

        Raises:
            ValueError: a field is missing.
        """
        if self.missing:
            raise ValueError(f"cannot render a turn without {', '.join(self.missing)}")
        return "\n".join(f"{prefix} {getattr(self, field).strip()}" for field, prefix in PREFIXES.items())

    @classmethod
    def parse(cls, text: str) -> "SupportTurn":
        """Read the four lines back, strictly; what is absent or not an allowed label becomes `None`.

        The lines must follow each other in order. A line that is left out costs its own field; a line that does
        not belong there costs every field after it. The response is all that follows its prefix.
        """
        lines = text.strip().split("\n")
        values: dict[str, str | None] = dict.fromkeys(PREFIXES)
        position = 0
        for field, prefix in PREFIXES.items():
            if position == len(lines) or not lines[position].startswith(prefix):
                continue
            end = len(lines) if field == "response" else position + 1
            value = "\n".join(lines[position:end])[len(prefix) :].strip()
            values[field] = value if value in LABELS.get(field, (value,)) and value else None
            position = end
        return cls(**values)


def render_utterance(utterance: dict) -> str:
    """`{"speaker", "text"}` as "Client: …" or "Therapist: …".

    Raises:
        ValueError: the speaker is neither `"client"` nor `"therapist"`.
    """
    speaker = utterance["speaker"]
    if speaker not in SPEAKERS:
        raise ValueError(f"unknown speaker {speaker!r} of utterance {utterance['text'][:40]!r}; allowed: {SPEAKERS}")
    return f"{speaker.capitalize()}: {utterance['text']}"


def build_prompt(row: dict, verbatim_pairs: int = VERBATIM_PAIRS) -> list[dict]:
    """A row as the messages that ask for its turn: one system message and one user message of blocks.

    Args:
        row (`dict`): one hand-over as in `datasets_scripts/schema.py`; reads `history`, `problem_type`, `situation`,
            `videos` and `utterance`, of which only `utterance` must be there.
        verbatim_pairs (`int`): how many of the latest client/therapist pairs stay as text; older utterances go into
            the history block and cost the language model one token each.

    Returns:
        `list[dict]`: messages for `MultiMoodProcessor.apply_chat_template`.

    Raises:
        ValueError: an utterance has an unknown speaker, or `verbatim_pairs` is negative.
    """
    if verbatim_pairs < 0:
        raise ValueError(f"verbatim_pairs is {verbatim_pairs}; give 0 or more")
    history = [{"speaker": u["speaker"], "text": u["text"]} for u in row.get("history") or ()]
    split = max(len(history) - 2 * verbatim_pairs, 0)
    verbatim = [render_utterance(utterance) for utterance in history]  # of all: an unknown speaker is found here

    blocks = []
    if split:
        blocks.append({"type": "history", "history": history[:split]})
    if verbatim[split:]:
        blocks.append({"type": "text", "text": "".join(line + "\n" for line in verbatim[split:])})
    for name, value in (("Problem", row.get("problem_type")), ("Situation", row.get("situation"))):
        if value:
            blocks.append({"type": "text", "text": f"{name}: {value}\n"})
    if clips := list(row.get("videos") or ())[-CLIPS_PER_TURN:]:
        blocks.append({"type": "video", "video": clips})
        blocks.append({"type": "audio", "audio": clips})
    blocks.append({"type": "text", "text": f"Client: {row['utterance']}"})
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": blocks}]


def build_completion(row: dict) -> list[dict]:
    """The turn a row teaches, as the assistant's message.

    Raises:
        ValueError: a label is unknown, or a field is missing.
    """
    turn = SupportTurn(**{field: row[field] for field in PREFIXES})
    return [{"role": "assistant", "content": turn.render()}]
