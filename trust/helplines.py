"""Crisis lines and emergency numbers by country, from `helplines.yaml`. No number is ever made up."""

import re
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).parent / "helplines.yaml"


@dataclass(frozen=True)
class Helpline:
    """One service that answers day and night.

    Args:
        name (`str`): what it is called.
        how (`str`): "call", "text", "call or text", or "look at" for a page.
        number (`str`): as it is written in its country, or the page.
        source (`str`): page that says so.
        written (`date`): day on which the entry was written; it must be checked at its source again and again.
    """

    name: str
    how: str
    number: str
    source: str
    written: date


@dataclass(frozen=True)
class Region:
    """A country's lines.

    Args:
        code (`str`): ISO 3166-1 alpha-2.
        name (`str`): as it stands in a sentence, e.g. "the United States".
        emergency (`Helpline`): ambulance, or all emergency services.
        lines (`tuple[Helpline, ...]`): crisis lines for everybody; may be empty.
        young (`tuple[Helpline, ...]`): crisis lines for children and young people; may be empty.
    """

    code: str
    name: str
    emergency: Helpline
    lines: tuple[Helpline, ...] = ()
    young: tuple[Helpline, ...] = ()


@dataclass(frozen=True)
class Helplines:
    """All regions, and the page to name where there is no line."""

    regions: dict[str, Region]
    aliases: dict[str, str]
    fallback: Helpline

    def region(self, code: str | None) -> Region | None:
        """The region of an ISO 3166-1 alpha-2 code, in either case; None where it is not in the file.

        Raises:
            ValueError: the code is not two letters.
        """
        if code is None:
            return None
        if not re.fullmatch(r"[A-Za-z]{2}", code):
            raise ValueError(f"The region is {code!r}: give an ISO 3166-1 code of two letters, e.g. 'US' or 'DE'.")
        code = code.upper()
        return self.regions.get(self.aliases.get(code, code))


@cache
def load_helplines(path: Path = FILE) -> Helplines:
    """Read and check a file of helplines.

    Raises:
        ValueError: with file and entry, where a key is missing or unknown, or a value is not what it should be.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_keys(content, {"fallback", "regions"}, {"aliases"}, f"{path}")
    regions = {code: _region(code, entry, path) for code, entry in content["regions"].items()}
    aliases = content.get("aliases", {})
    for alias, code in aliases.items():
        if code not in regions:
            raise ValueError(f"{path}, aliases: {alias} stands for {code!r}, which is no region of this file")
    return Helplines(regions, aliases, _helpline(content["fallback"], f"{path}, fallback"))


def _region(code: object, entry: object, path: Path) -> Region:
    place = f"{path}, region {code}"
    if not isinstance(code, str) or not re.fullmatch("[A-Z]{2}", code):
        raise ValueError(
            f'{place}: the code is {code!r}; give two capital letters, quoted where YAML reads "NO" as no'
        )
    _check_keys(entry, {"name", "emergency"}, {"lines", "young"}, place)
    lists = {
        kind: tuple(_helpline(line, f"{place}, {kind}") for line in entry.get(kind, ())) for kind in ("lines", "young")
    }
    return Region(code, entry["name"], _helpline(entry["emergency"], f"{place}, emergency"), **lists)


def _helpline(entry: object, place: str) -> Helpline:
    _check_keys(entry, {"name", "how", "number", "source", "written"}, set(), place)
    for key in ("name", "how", "number", "source"):
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{place}: {key} is {entry[key]!r}; give text, in quotes where it is a number")
    if not entry["source"].startswith("https://"):
        raise ValueError(f"{place}: the source is {entry['source']!r}; give the address of a page, https://…")
    if not isinstance(entry["written"], date):
        raise ValueError(f"{place}: written is {entry['written']!r}; give a day as 2026-11-24")
    return Helpline(**entry)


def _check_keys(entry: object, needed: set[str], optional: set[str], place: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: {entry!r} is not a mapping")
    if missing := needed - entry.keys():
        raise ValueError(f"{place}: {', '.join(sorted(missing))} missing")
    if unknown := entry.keys() - needed - optional:
        raise ValueError(f"{place}: unknown {', '.join(map(str, unknown))}; known are {', '.join(needed | optional)}")
