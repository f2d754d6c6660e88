"""A dialogue, utterance by utterance, becomes rows: one at each hand-over from client to therapist."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from .schema import Row, Utterance


@dataclass(slots=True)
class Said:
    """One utterance of a dialogue; `clips` are absolute paths, used for the client's only."""

    speaker: str
    text: str
    emotion: str | None = None
    strategy: str | None = None
    clips: list[str] = field(default_factory=list)


def handover_rows(
    dialogue_id: str, said: Iterable[Said], problem_type: str | None = None, situation: str | None = None
) -> list[Row]:
    """The rows of a dialogue. Consecutive utterances of a speaker are one turn, with their clips in order.

    Where the labels differ within a turn, those at the hand-over count: the client's last, the therapist's first. A
    dialogue in which no therapist speaks is one row without an answer.
    """
    turns = [_merge(list(of)) for _, of in groupby(said, key=lambda utterance: utterance.speaker)]
    if [turn.speaker for turn in turns] == ["client"]:
        turns.append(Said("therapist", ""))
    history: list[Utterance] = []
    rows: list[Row] = []
    for turn, answer in pairwise(turns):
        if turn.speaker == "client":
            rows.append(
                {
                    "dialogue_id": dialogue_id,
                    "turn_id": len(rows),
                    "problem_type": problem_type,
                    "situation": situation,
                    "history": list(history),
                    "videos": turn.clips,
                    "utterance": turn.text,
                    "client_emotion": turn.emotion,
                    "therapist_emotion": answer.emotion,
                    "strategy": answer.strategy,
                    "response": answer.text or None,
                }
            )
        history.append(
            {"speaker": turn.speaker, "text": turn.text, "emotion": turn.emotion, "strategy": turn.strategy}
        )
    return rows


def _merge(run: list[Said]) -> Said:
    labelled = run[-1] if run[0].speaker == "client" else run[0]
    return Said(
        speaker=labelled.speaker,
        text=" ".join(utterance.text for utterance in run if utterance.text),
        emotion=labelled.emotion,
        strategy=labelled.strategy,
        clips=[clip for utterance in run for clip in utterance.clips],
    )
