"""What a corpus loader does about bad input: stop at the first with file and line, or skip it and say so in a file."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CorpusError(ValueError):
    """Input of a corpus that cannot be used.

    Args:
        place: file, and line or entry, where it is.
        problem: what is wrong with it and how to mend it, with the offending value.
        kind: one or two words that such problems share, for counting.
    """

    def __init__(self, place: object, problem: str, kind: str):
        super().__init__(f"{place}: {problem}")
        self.place, self.problem, self.kind = str(place), problem, kind


class SkipReport:
    """What was left out. Loaders that are given one go on after bad input; without one they raise [`CorpusError`]."""

    def __init__(self):
        self._errors: dict[str, CorpusError] = {}

    def add(self, error: CorpusError) -> None:
        """Keeps `error`; one that is known from reading the same file before is not counted again."""
        self._errors.setdefault(str(error), error)

    @property
    def errors(self) -> list[CorpusError]:
        """What was left out, in the order of finding."""
        return list(self._errors.values())

    @property
    def counts(self) -> Counter[str]:
        """How many problems of each kind."""
        return Counter(error.kind for error in self.errors)

    def write(self, path: str | Path) -> Path:
        """Writes one JSON line `{"kind", "place", "problem"}` for each thing left out."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for error in self.errors:
                entry = {"kind": error.kind, "place": error.place, "problem": error.problem}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return path


@contextmanager
def skipping(skip_bad: SkipReport | None) -> Iterator[None]:
    """Ends its block at a [`CorpusError`], which goes into the report, or on to the caller where there is none."""
    try:
        yield
    except CorpusError as error:
        if skip_bad is None:
            raise
        skip_bad.add(error)
