"""The form of a judge's answer: as a JSON schema for the server, and the strict reading of what came back."""

import json
from dataclasses import dataclass
from functools import cached_property
from operator import lt

# Digits as the numbers they are; every other byte as a number that no choice has.
_NUMBERS = bytes(byte - 48 if 48 <= byte < 58 else 255 for byte in range(256))


@dataclass(frozen=True, eq=False)
class AnswerForm:
    """Named fields with a few choices each, in one object or in an object a group.

    Args:
        fields (`dict`): choices by field, or, by group, choices by field. No name of a field occurs twice.
    """

    fields: dict[str, tuple[str, ...] | dict[str, tuple[str, ...]]]

    @cached_property
    def schema(self) -> dict:
        """JSON schema: every field is required, and nothing else is allowed."""
        return _schema(self.fields)

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Choices by field, without groups."""
        return _flat(self.fields)

    def parse(self, text: str) -> dict[str, int] | None:
        """The number of the choice by field, if the whole text is JSON of this form; `None` otherwise.

        JSON inside other text is not looked for: it may be the judged reply's own, quoted. Duplicate keys are refused, since
        readers differ in which one counts.
        """
        try:
            answer = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, TypeError, RecursionError):
            return None
        if not _conforms(answer, self.fields):
            return None
        says = _flat(answer)
        return {name: options.index(says[name]) for name, options in self.choices.items()}

    def pack(self, answer: dict[str, int]) -> str:
        """What [`parse`] found, as one digit a field."""
        return "".join(map(str, answer.values()))

    def unpack(self, digits: str) -> dict[str, int] | None:
        """What [`pack`] packed; `None` if it is none of this form."""
        numbers = digits.encode("ascii", "replace").translate(_NUMBERS)
        if len(numbers) != len(self._counts) or not all(map(lt, numbers, self._counts)):
            return None
        return dict(zip(self.choices, numbers, strict=True))

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(map(len, self.choices.values()))


def _schema(fields: dict) -> dict:
    properties = {
        name: _schema(inner) if isinstance(inner, dict) else {"type": "string", "enum": list(inner)}
        for name, inner in fields.items()
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _flat(content: dict) -> dict:
    flat = {}
    for name, inner in content.items():
        flat.update(_flat(inner) if isinstance(inner, dict) else {name: inner})
    return flat


def _conforms(answer: object, fields: dict | tuple) -> bool:
    if isinstance(fields, tuple):
        return isinstance(answer, str) and answer in fields
    return (
        isinstance(answer, dict)
        and answer.keys() == fields.keys()
        and all(_conforms(answer[name], fields[name]) for name in fields)
    )


def _unique(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
