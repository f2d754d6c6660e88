"""What a memory is trained and tested on: a conversation cut into slots, and prompts that are answered from them."""

from collections.abc import Sequence
from itertools import pairwise

from multimood.processors.turn import render_utterance

REPEAT = "Repeat what was said."
CONTINUE = "What does the therapist say next?"


def cut_utterances(utterances: Sequence[dict], words: int) -> list[dict]:
    """Utterances of at most `words` words each: a longer one becomes several of nearly equal length, each for a slot of
    its own. Keeps `speaker` and `text` alone.

    Raises:
        ValueError: if `words` is less than 1.
    """
    if words < 1:
        raise ValueError(f"words is {words}; a slot holds at least 1")
    pieces = []
    for utterance in utterances:
        said = utterance["text"].split()
        count = max(1, -(-len(said) // words))
        ends = [round(len(said) * i / count) for i in range(count + 1)]
        pieces += [
            {"speaker": utterance["speaker"], "text": " ".join(said[start:end])} for start, end in pairwise(ends)
        ]
    return pieces


def longest_conversations(rows: Sequence[dict]) -> list[list[dict]]:
    """Each dialogue once, whole, `[{"speaker", "text"}, …]`: its last row's history, words and answer."""
    last: dict[str, dict] = {}
    for row in rows:
        if len(row["history"]) >= len(last.get(row["dialogue_id"], row)["history"]):
            last[row["dialogue_id"]] = row
    return [
        [
            *({"speaker": said["speaker"], "text": said["text"]} for said in row["history"]),
            {"speaker": "client", "text": row["utterance"]},
            *([{"speaker": "therapist", "text": row["response"]}] if row["response"] else []),
        ]
        for row in last.values()
    ]


def transcript(run: Sequence[dict]) -> str:
    """The run's words, one utterance a line: what has to be read back."""
    return "\n".join(map(render_utterance, run))


def repeat_prompt(run: list[dict]) -> list[dict]:
    """Chat messages that ask for a run's words, given only as memory."""
    return [{"role": "user", "content": [{"type": "history", "history": run}, {"type": "text", "text": REPEAT}]}]


def continue_prompt(run: list[dict], words: str, recent: str = "") -> list[dict]:
    """Chat messages that ask for the therapist's answer to the client's `words`.

    Args:
        run: what was said before, as memory; may be empty.
        words: what the client said last.
        recent: what was said before, as text.
    """
    text = f"{recent}{render_utterance({'speaker': 'client', 'text': words})}\n{CONTINUE}"
    blocks = [{"type": "history", "history": run}] if run else []
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]
