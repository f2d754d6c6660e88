"""Your own recordings: a folder with `metadata.jsonl` or `metadata.csv` and the clips it names.

One line is one utterance, in the order of the dialogue:

| column | |
|---|---|
| `file_name` | the clip, relative to the folder; may be left out where `text` is given |
| `text` | the words; may be left out where `file_name` is given |
| `dialogue_id` | keeps the lines of a dialogue together; without it a line is a dialogue of its own |
| `speaker` | "client" (taken where it is left out) or "therapist" |
| `emotion` | one of `EMOTIONS`, or nothing |
| `strategy` | of the therapist: one of `STRATEGIES`, or nothing |
| `problem_type`, `situation` | what the dialogue is about; read from its first line |

A column may be absent, except that there must be `file_name` or `text`. A dialogue gives a row at each hand-over from
client to therapist; where no therapist speaks, it is one row for emotion recognition.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from multimood.processors.turn import EMOTIONS, SPEAKERS, STRATEGIES

from .corpus_files import clean_text, clip_inside, read_table, read_text
from .handovers import Said, handover_rows
from .label_mapping import known_label
from .recognition import first_there
from .report import CorpusError, SkipReport, skipping
from .schema import Row

FILES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "text", "dialogue_id", "speaker", "emotion", "strategy", "problem_type", "situation")


def load_own(folder: str | Path, *, skip_bad: SkipReport | None = None) -> list[Row]:
    """The rows of a folder of recordings, described above.

    Args:
        folder: with `metadata.jsonl` or `metadata.csv`.
        skip_bad: goes on after bad input and keeps what was left out: each dialogue with a bad line.

    Raises:
        CorpusError: bad input or a missing clip, with file and line.
    """
    folder = Path(folder)
    path = first_there(folder, FILES, "table of recordings")
    dialogues: dict[str, tuple[list[Said], dict[str, str]]] = {}
    damaged: set[str] = set()
    clips: dict[str, str] = {}
    dialogue_id = None
    for place, cells in _lines(path):
        read = False
        with skipping(skip_bad):
            if isinstance(cells, CorpusError):  # it may belong to the dialogue of the line before
                raise cells
            previous, dialogue_id = dialogue_id, cells.get("dialogue_id") or f"line-{place.rpartition(' ')[2]}"
            if dialogue_id in dialogues and dialogue_id != previous:
                problem = f"dialogue {dialogue_id!r} was over; keep its lines together, or give this one another id"
                raise CorpusError(place, problem, "duplicate id")
            said, _ = dialogues.setdefault(dialogue_id, ([], cells))
            said.append(_said(cells, folder, clips, place))
            read = True
        if not read and dialogue_id is not None:
            damaged.add(dialogue_id)
    return [
        row
        for dialogue_id, (said, first) in dialogues.items()
        if dialogue_id not in damaged
        for row in handover_rows(
            f"own-{dialogue_id}", said, first.get("problem_type") or None, first.get("situation") or None
        )
    ]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str] | CorpusError]]:
    """Each line's place and cells, blanks stripped; a bad line's error in place of its cells."""
    is_csv = path.suffix == ".csv"
    for place, cells in read_table(path, ()) if is_csv else _objects(path):
        if isinstance(cells, dict):
            unknown = sorted(cells.keys() - set(COLUMNS))
            if unknown or not cells.keys() & {"file_name", "text"}:
                problem = f"unknown column {', '.join(unknown)}" if unknown else "neither file_name nor text"
                error = CorpusError(place, f"{problem}; the columns are {', '.join(COLUMNS)}", "columns")
                if is_csv:  # of all rows
                    raise error
                yield place, error
                continue
            cells = {name: clean_text(cell) if name != "file_name" else cell.strip() for name, cell in cells.items()}
        yield place, cells


def _objects(path: Path) -> Iterator[tuple[str, dict[str, str] | CorpusError]]:
    """Each object of a JSON-lines file with its values as text, or what is wrong with it."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            yield place, CorpusError(place, f"not JSON ({error.msg}); write one object a line", "JSON")
            continue
        if not isinstance(cells, dict):
            yield place, CorpusError(place, f"{line[:40]!r} is no JSON object; write one object a line", "JSON")
        elif wrong := [name for name, value in cells.items() if not isinstance(value, str | int | None)]:
            yield place, CorpusError(place, f"{wrong[0]} is {cells[wrong[0]]!r}; give a string", "JSON")
        else:
            yield place, {name: "" if value is None else str(value) for name, value in cells.items()}


def _said(cells: dict[str, str], folder: Path, clips: dict[str, str], place: str) -> Said:
    """One line as an utterance. `clips` are those of earlier lines, with their places."""
    speaker = known_label(cells.get("speaker") or "client", SPEAKERS, "speaker", place)
    text, name = cells.get("text", ""), cells.get("file_name", "")
    if not (text or name):
        raise CorpusError(place, "has neither words nor a clip; give text or file_name", "empty text")
    if speaker == "therapist" and not text:
        raise CorpusError(place, "the therapist says nothing; give the text", "empty text")
    strategy = cells.get("strategy")
    if strategy and speaker == "client":
        raise CorpusError(place, f"strategy is {strategy!r} of a client; leave it empty", "unknown label")
    emotion = cells.get("emotion")
    said = Said(
        speaker,
        text,
        known_label(emotion, EMOTIONS, "emotion", place) if emotion else None,
        known_label(strategy, STRATEGIES, "strategy", place) if strategy else None,
    )
    if name:
        path = clip_inside(folder, name, place)
        if path in clips:
            raise CorpusError(place, f"clip {name!r} is already at {clips[path]}; a clip has one line", "duplicate id")
        clips[path] = place
        said.clips.append(path)
    return said
