"""Which part of a turn a target's token belongs to."""

from dataclasses import dataclass

import torch

from multimood.training.trainers.collator import IGNORE_INDEX, MultiMoodCollator

# Parts of a turn; the index of a part is its name's, plus one. 0: the lines' fixed words, and all that is no target.
PARTS = ("client_emotion", "therapist_emotion", "strategy", "response")


def turn_parts(labels: torch.Tensor, turn_grammar: dict) -> torch.Tensor:
    """
    The part of each target token.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, sequence_length)`): whole turns, -100 elsewhere.
        turn_grammar (`dict`): the token ids of the four lines; see `modeling_multimood/turn_grammar.py`.

    Returns:
        `torch.Tensor` of shape `(batch_size, sequence_length)`: 1 to 3 for the tokens of the three labels, 4 for the
        response's and the end of the turn, else 0.

    Raises:
        ValueError: where a target does not begin with the three labels' lines.
    """
    parts = torch.zeros_like(labels)
    for row, row_labels in enumerate(labels):
        places = (row_labels != IGNORE_INDEX).nonzero().flatten().tolist()
        ids, at = row_labels[places].tolist(), 0
        fields = turn_grammar["fields"]
        followers = [*(field["prefix"] for field in fields[1:]), turn_grammar["response_prefix"]]
        for part, (field, follower) in enumerate(zip(fields, followers, strict=True), start=1):
            at += len(field["prefix"])
            fitting = [
                len(label)
                for _, label in field["labels"]
                if ids[at : at + len(label) + 1] == [*label, follower[0]]  # not only the beginning of a longer label
            ]
            if not fitting:
                raise ValueError(f"A target has no {field['name']} of the turn's grammar in its place: {ids}.")
            parts[row, places[at : at + fitting[0]]] = part
            at += fitting[0]
        parts[row, places[at + len(turn_grammar["response_prefix"]) :]] = len(PARTS)
    return parts


@dataclass
class TurnCollator(MultiMoodCollator):
    """A [`MultiMoodCollator`] whose batches also have `turn_parts` (B, L), for [`TurnTrainer`]."""

    def __post_init__(self):
        self.turn_grammar = self.processor.turn_grammar()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        return {**batch, "turn_parts": turn_parts(batch["labels"], self.turn_grammar)}
