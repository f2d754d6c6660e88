"""The one row format of every corpus: one client → therapist hand-over."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from multimood.processors.turn import EMOTIONS, SPEAKERS, STRATEGIES

from .report import CorpusError, SkipReport


class Utterance(TypedDict):
    """One earlier utterance. `emotion` and `strategy` are `None` where the corpus does not label them."""

    speaker: str
    text: str
    emotion: str | None
    strategy: str | None


class Row(TypedDict):
    """One turn: everything before it, the client's clips and words, and the therapist's answer.

    A corpus with emotions of its own gives its label as `corpus_emotion`; only then may `client_emotion` be one that the
    model's seven do not have, such as "surprise" (`label_mapping.EMOTION_NAMES`). A row that is there for emotion
    recognition alone has `None` for what the therapist feels, does and says.
    """

    dialogue_id: str
    turn_id: int
    problem_type: str | None
    situation: str | None
    history: list[Utterance]
    videos: list[str]
    utterance: str
    client_emotion: str | None
    therapist_emotion: str | None
    strategy: str | None
    response: str | None
    corpus_emotion: NotRequired[str | None]


class RowError(ValueError):
    """A row that does not follow the schema; the message names the field, the value and the mend."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RowError(message)


def _check_label(value: str | None, allowed: tuple[str, ...], field: str) -> None:
    _check(value is None or value in allowed, f"{field} is {value!r}; use one of {', '.join(allowed)}, or null")


def validate_row(row: Row) -> Row:
    """Returns `row` unchanged where it follows the schema; raises [`RowError`] where it does not."""
    _check(isinstance(row, dict), f"{str(row)[:40]!r} is no row; give an object with the fields of the schema")
    names = [name for name in Row.__annotations__ if name in Row.__required_keys__]
    missing, extra = set(names) - row.keys(), row.keys() - Row.__annotations__.keys()
    _check(not missing, f"row lacks {', '.join(sorted(missing))}; every row has {', '.join(names)}")
    _check(not extra, f"row has unknown fields {', '.join(sorted(extra))}; every row has {', '.join(names)}")
    for name, kind, mend in (("utterance", str, "a string"), ("videos", list, "a list"), ("history", list, "a list")):
        _check(isinstance(row[name], kind), f"{name} is {row[name]!r}; give {mend}")
    _check(all(isinstance(clip, str) for clip in row["videos"]), f"videos is {row['videos']!r}; give a list of paths")
    _check(bool(row["utterance"].strip() or row["videos"]), "row has neither words nor clips; give one of them")
    for i, utterance in enumerate(row["history"]):
        _check(isinstance(utterance, dict), f"history[{i}] is {utterance!r}; give speaker and text")
        speaker = utterance.get("speaker")
        _check(speaker in SPEAKERS, f"history[{i}].speaker is {speaker!r}; use one of {', '.join(SPEAKERS)}")
        _check(
            isinstance(utterance.get("text"), str), f"history[{i}].text is {utterance.get('text')!r}; give a string"
        )
        _check_label(utterance.get("emotion"), EMOTIONS, f"history[{i}].emotion")
        _check_label(utterance.get("strategy"), STRATEGIES, f"history[{i}].strategy")
    own = row.get("corpus_emotion")
    _check_label(row["client_emotion"], EMOTIONS if own is None else (*EMOTIONS, own), "client_emotion")
    _check_label(row["therapist_emotion"], EMOTIONS, "therapist_emotion")
    _check_label(row["strategy"], STRATEGIES, "strategy")
    return row


def write_rows(rows: Iterable[Row], path: str | Path) -> Path:
    """Writes rows as JSON lines, all or nothing. Clips under the file's folder are stored relative to it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            clips = [Path(clip).resolve() for clip in row["videos"]]
            clips = [clip.relative_to(folder) if clip.is_relative_to(folder) else clip for clip in clips]
            file.write(json.dumps({**row, "videos": [str(clip) for clip in clips]}, ensure_ascii=False) + "\n")
    return part.replace(path)


def read_rows(path: str | Path, *, skip_bad: SkipReport | None = None) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file, checked; clips become absolute paths.

    Args:
        path: of the file.
        skip_bad: goes on after a bad line and keeps what was left out.

    Raises:
        RowError: with file and line, where a line is not JSON, breaks the schema or names a missing clip; nothing is
            raised with `skip_bad`.
    """
    path = Path(path)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = validate_row(json.loads(line))
                row["videos"] = [str((path.parent / clip).resolve()) for clip in row["videos"]]
                for clip in row["videos"]:
                    _check(Path(clip).is_file(), f"clip {clip} does not exist")
            except (json.JSONDecodeError, RowError) as error:
                place = f"{path}, line {number}"
                if skip_bad is None:
                    raise RowError(f"{place}: {error}") from error
                skip_bad.add(CorpusError(place, str(error), "row"))
                continue
            yield row
