"""Keeps a support turn's labels valid in `generate`, and reads their probabilities.

Both work from `turn_grammar`, the token ids of a turn's four lines, made by `MultiMoodProcessor.turn_grammar()`:

```python
{"fields": [{"name": "client_emotion", "prefix": [ids of "Client's emotion:"], "labels": [["anger", [ids of " anger"]], …]},
            {"name": "therapist_emotion", "prefix": [ids of "\\nTherapist's emotion:"], "labels": …},
            {"name": "strategy", "prefix": [ids of "\\nTherapist's strategy:"], "labels": …}],
 "response_prefix": [ids of "\\nTherapist's response:"], "eos_token_id": id or [ids], "blank_token_ids": [ids]}
```

`labels` are pairs, since a saved config keeps their order and sorts the keys of a dict.
`blank_token_ids`, optional, are the tokens that show nothing (white space, special tokens): a response of these alone is empty.
"""

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import Cache, LogitsProcessor

__all__ = ["LabelPredictionMixin", "SupportTurnLogitsProcessor", "TurnOpening"]


class SupportTurnLogitsProcessor(LogitsProcessor):
    """Lets `generate` write only turns with valid labels and a response that is not empty.

    The fixed parts of the four lines are forced (at no cost in a beam's score), each label is one of the grammar's, and
    EOS is impossible before the response has its first visible token; after that everything is allowed.

    Each call reads the grammar's state off the tokens themselves, so rows may be reordered by beam search, sampled, or
    stand in a batch padded on the left. A `max_new_tokens` smaller than the four lines need still cuts the turn short.

    Args:
        turn_grammar (`dict`): see this module.
        prompt_length (`int`): index in `input_ids` where the turn begins: `input_ids.shape[1]` for a prompt, 0 for
            generation from `inputs_embeds`. What already stands behind it, e.g. a chosen header, is taken as written.
    """

    def __init__(self, turn_grammar: dict, prompt_length: int):
        self.prompt_length = prompt_length
        self._transitions = _header_transitions(turn_grammar)
        self._opening = len(self._transitions)  # the response so far is blank
        self._blank = frozenset(turn_grammar.get("blank_token_ids", ()))
        self._eos = _as_list(turn_grammar["eos_token_id"])

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Forbid what the grammar does not allow next.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): prompt and what was generated.
            scores (`torch.FloatTensor` of shape `(batch_size, vocab_size)`): logits or log-probabilities of the next token.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, vocab_size)`: `scores` with −inf for each token that is not allowed.

        Raises:
            ValueError: where no row follows the grammar, e.g. because `prompt_length` is wrong.
        """
        states = [self._state(row) for row in input_ids[:, self.prompt_length :].tolist()]
        # A beam outside the grammar has a score of −inf; beam sampling keeps such beams while it lacks better ones.
        if None in states and not any(state is not None for state in states):
            raise ValueError(
                f"No row follows the turn grammar after position {self.prompt_length}: {self.prompt_length=} must be the "
                "index of the turn's first token, the length of the padded prompt."
            )
        scores = scores.clone()
        opening = [row for row, state in enumerate(states) if state == self._opening]
        if opening:
            rows, banned = (torch.tensor(ids, device=scores.device) for ids in (opening, self._eos))
            scores[rows[:, None], banned] = -torch.inf

        header = [row for row, state in enumerate(states) if state is not None and state < self._opening]
        if header:
            options = [(row, token) for row in header for token in self._transitions[states[row]]]
            rows, tokens = torch.tensor(options, device=scores.device).unbind(1)
            # A token without alternative is certain, whatever another processor (a ban on repeated n-grams) made of it.
            forced = torch.tensor(
                [len(self._transitions[states[row]]) == 1 for row, _ in options], device=scores.device
            )
            kept = scores[rows, tokens].masked_fill(forced, 0.0)
            scores[torch.tensor(header, device=scores.device)] = -torch.inf
            scores[rows, tokens] = kept
        return scores

    def _state(self, token_ids: list[int]) -> int | None:
        """State after `token_ids`: an index of the header's transitions, the opening, `opening + 1` for a response that
        has begun, or None outside the grammar."""
        state = 0
        for token in token_ids:
            if state < self._opening:
                if token in self._eos:  # filler between header parts of a `TurnOpening`: never generated here
                    continue
                if token not in self._transitions[state]:
                    return None
                state = self._transitions[state][token]
            elif token not in self._blank:
                return self._opening + 1
        return state


def _header_transitions(turn_grammar: dict) -> list[dict[int, int]]:
    """The header as an automaton: `transitions[state][token]` is the next state. State 0 is the start; the state that
    follows the last fixed part has no transitions of its own and is `len(transitions)`."""
    transitions = [{}]

    def extend(state: int, token_ids: list[int], what: str) -> int:
        if not token_ids:
            raise ValueError(f"The turn grammar's {what} has no tokens: its text must encode to one at least.")
        for token in token_ids:
            if token not in transitions[state]:
                transitions.append({})
                transitions[state][token] = len(transitions) - 1
            state = transitions[state][token]
        return state

    ends = [0]  # where the next fixed part may begin
    for what, token_ids, labels in _parts(turn_grammar):
        # The first token of a fixed part is what closes a label, so it must not go on with a longer label instead.
        if any(token_ids and token_ids[0] in transitions[end] for end in ends):
            raise ValueError(
                f"The turn grammar is ambiguous: {what} begins like the rest of a longer label before it."
            )
        start = extend(ends[0], token_ids, what)
        for end in ends[1:]:
            transitions[end][token_ids[0]] = transitions[ends[0]][token_ids[0]]
        ends = [extend(start, label_ids, f"label {name!r} of {what}") for name, label_ids in labels.items()]
        if len(set(ends)) < len(labels):
            raise ValueError(f"Two labels of {what} have the same token ids: {labels}.")
        ends = ends or [start]

    # The state after the response prefix was created last: drop its empty entry, so that it is `len(transitions)`.
    transitions.pop()
    return transitions


def _parts(turn_grammar: dict) -> Iterable[tuple[str, list[int], dict[str, list[int]]]]:
    """Yield (name, ids of the fixed part, labels) of each line; the last, the response, has no labels."""
    for field in turn_grammar["fields"]:
        yield field["name"], field["prefix"], dict(field["labels"])
    yield "response_prefix", turn_grammar["response_prefix"], {}


def _as_list(token_ids: int | list[int]) -> list[int]:
    return [token_ids] if isinstance(token_ids, int) else list(token_ids)


@dataclass
class TurnOpening:
    """A prompt and the turn's header with its most probable labels, ready to generate the response from:

    ```python
    opening = model.open_turn(**inputs)
    model.generate(
        input_ids=opening.input_ids, attention_mask=opening.attention_mask, past_key_values=opening.past_key_values
    )
    ```

    Args:
        probabilities (`dict[str, torch.FloatTensor]`): name of a field to `(batch_size, labels)`, in float32; each row
            sums to 1; columns as in `model.label_names`.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): prompt and header, up to the end of
            `Therapist's response:`. Labels differ in length: shorter ones have masked EOS tokens before them.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 0 at padding and at these fillers.
        past_key_values (`Cache`): holds all but the last label and line, which `generate` reads itself. Beams and several
            responses to a prompt start from copies; any other generation goes on in this very cache, once.
    """

    probabilities: dict[str, torch.FloatTensor]
    input_ids: torch.LongTensor
    attention_mask: torch.LongTensor
    past_key_values: Cache


class LabelPredictionMixin:
    """`predict_labels` for a causal language model of transformers whose `config.turn_grammar` is set."""

    @property
    def label_names(self) -> dict[str, list[str]]:
        """Names of each field's labels, in the order of the columns of `predict_labels`."""
        return {field["name"]: list(dict(field["labels"])) for field in self._turn_grammar()["fields"]}

    def predict_labels(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None, **inputs
    ) -> dict[str, torch.FloatTensor]:
        """Probabilities of the turn's labels, from one reading of the prompt.

        A label's probability is that of its whole token sequence, closed by the first token of the next line, over the
        sum of those of all labels of its field. Each field is conditional on the most probable labels before it.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): prompts, padded on the left, up to
                where the turn begins.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): 0 at padding.
            **inputs: what else the model's `forward` takes with a prompt: media, history, `history_memory`.

        Returns:
            `dict[str, torch.FloatTensor]`: name of a field to `(batch_size, labels)` in float32; each row sums to 1.
            For MultiMood `client_emotion` (B, 7), `therapist_emotion` (B, 7), `strategy` (B, 10); columns as in
            `label_names`.

        Raises:
            ValueError: where a prompt is padded on the right, or `config.turn_grammar` is not set.
        """
        return self.open_turn(input_ids, attention_mask, **inputs).probabilities

    @torch.no_grad()
    def open_turn(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None, **inputs
    ) -> TurnOpening:
        """As `predict_labels`, and with what `generate` needs to write the response without reading the prompt again."""
        grammar = self._turn_grammar()
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not attention_mask[:, -1].all():
            rows = (attention_mask[:, -1] == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"Prompts {rows} are padded on the right, where the turn must begin: tokenize with padding_side='left'."
            )

        filler = _as_list(grammar["eos_token_id"])[0]
        (_, pending, _), *_ = parts = list(_parts(grammar))
        pending = [pending] * len(input_ids)  # what each row goes on with
        probabilities, cache, read = {}, None, 0
        for (name, _, labels), (_, next_part, _) in itertools.pairwise(parts):
            input_ids, attention_mask = _append(input_ids, attention_mask, pending, filler)
            outputs = self(
                input_ids=input_ids[:, read:],
                attention_mask=attention_mask,
                position_ids=_position_ids(attention_mask)[:, read:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **({} if read else inputs),
            )
            cache, read = outputs.past_key_values, input_ids.shape[1]
            label_ids = list(labels.values())
            scores = self._label_log_probs(label_ids, next_part[0], outputs.logits[:, -1], attention_mask, cache)
            probabilities[name] = scores.softmax(dim=-1)
            pending = [label_ids[best] + next_part for best in scores.argmax(dim=-1).tolist()]
        input_ids, attention_mask = _append(input_ids, attention_mask, pending, filler)
        return TurnOpening(probabilities, input_ids, attention_mask, cache)

    def _label_log_probs(
        self,
        labels: list[list[int]],
        closing_token: int,
        first_logits: torch.FloatTensor,
        attention_mask: torch.LongTensor,
        cache: Cache,
    ) -> torch.FloatTensor:
        """Log-probabilities `(batch_size, labels)` of each label and its closing token, given `first_logits`
        `(batch_size, vocab_size)`, the ones of a label's first token, and `cache`, which is left as it is."""
        batch_size, num_labels = len(first_logits), len(labels)
        ids, mask = _pad(labels, closing_token, "right", first_logits.device)  # (labels, longest label)
        targets, _ = _pad([[*label, closing_token] for label in labels], closing_token, "right", first_logits.device)
        first = first_logits.float().log_softmax(dim=-1)[:, targets[:, 0]]  # (batch_size, labels)

        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(num_labels)
        full_mask = torch.cat(
            [attention_mask.repeat_interleave(num_labels, dim=0), mask.to(attention_mask).repeat(batch_size, 1)], dim=1
        )
        logits = self(
            input_ids=ids.repeat(batch_size, 1),  # (batch_size · labels, longest label)
            attention_mask=full_mask,
            position_ids=_position_ids(full_mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).logits
        rest = logits.float().log_softmax(dim=-1).gather(-1, targets[:, 1:].repeat(batch_size, 1)[..., None])
        rest = rest.view(batch_size, num_labels, -1).masked_fill(mask == 0, 0.0)
        return first + rest.sum(dim=-1)

    def _turn_grammar(self) -> dict:
        grammar = getattr(self.config, "turn_grammar", None)
        if not grammar:
            raise ValueError(
                "config.turn_grammar is not set, so the labels are unknown: model.config.turn_grammar = processor.turn_grammar()."
            )
        return grammar


def _pad(
    rows: list[list[int]], filler: int, side: str, device: torch.device
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Ids and mask, each `(rows, longest row)`."""
    length = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill, hidden, seen = [filler] * (length - len(row)), [0] * (length - len(row)), [1] * len(row)
        ids.append(fill + row if side == "left" else row + fill)
        mask.append(hidden + seen if side == "left" else seen + hidden)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _append(
    input_ids: torch.LongTensor, attention_mask: torch.LongTensor, rows: list[list[int]], filler: int
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """`input_ids` and `attention_mask` with `rows` behind them, so that all rows end together."""
    ids, mask = _pad(rows, filler, "left", input_ids.device)
    return torch.cat([input_ids, ids], dim=1), torch.cat([attention_mask, mask.to(attention_mask)], dim=1)


def _position_ids(attention_mask: torch.LongTensor) -> torch.LongTensor:
    """Positions `(batch_size, sequence_length)`, padding not counted, as `generate` has them."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
