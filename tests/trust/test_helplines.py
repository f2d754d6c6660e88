import copy
from datetime import date

import pytest
import yaml

from multimood.trust import helplines

ENTRY = {"name": "A", "how": "call", "number": "123", "source": "https://a.example", "written": date(2026, 1, 2)}
FILE = {
    "fallback": dict(ENTRY),
    "regions": {"AA": {"name": "Aland", "emergency": dict(ENTRY), "lines": [dict(ENTRY)]}},
}


@pytest.fixture
def load(tmp_path):
    def write_and_load(change):
        content = copy.deepcopy(FILE)
        change(content)
        path = tmp_path / "lines.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return helplines.load_helplines(path)

    return write_and_load


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("US", "988"),
        ("CA", "988"),
        ("GB", "116 123"),
        ("IE", "116 123"),
        ("AU", "13 11 14"),
        ("NZ", "1737"),
        ("FR", "3114"),
        ("ES", "024"),
        ("AT", "142"),
        ("CH", "143"),
        ("NL", "113"),
        ("IN", "14416"),
        ("TW", "1925"),
    ],
)
def test_well_known_lines(code, number):
    assert helplines.load_helplines().region(code).lines[0].number == number


def test_germany_has_three_numbers():
    numbers = [line.number for line in helplines.load_helplines().region("DE").lines]
    assert numbers == ["0800 111 0 111", "0800 111 0 222", "116 123"]


@pytest.mark.parametrize(
    ("code", "number"), [("US", "911"), ("GB", "999"), ("DE", "112"), ("AU", "000"), ("NZ", "111")]
)
def test_emergency_numbers(code, number):
    assert helplines.load_helplines().region(code).emergency.number == number


def test_every_entry_says_where_and_when_it_was_found():
    known = helplines.load_helplines()
    entries = [known.fallback]
    for region in known.regions.values():
        entries += [region.emergency, *region.lines, *region.young]
    assert len(entries) > 60
    for entry in entries:
        assert entry.source.startswith("https://")
        assert entry.written >= date(2026, 11, 24)
        assert "?" not in entry.name  # it would be a second question in a reply
    assert known.fallback.number == "findahelpline.com"


def test_codes_in_any_case_and_aliases():
    known = helplines.load_helplines()
    assert known.region("gb") is known.region("UK") is known.region("GB")
    assert known.region("NO").name == "Norway"  # which YAML reads as "no" where it is not quoted
    assert known.region("ZZ") is None
    assert known.region(None) is None


@pytest.mark.parametrize("code", ["Germany", "D", "", "D3", "ÄÖ", "US "])
def test_what_is_no_code_is_refused(code):
    with pytest.raises(ValueError, match="ISO 3166"):
        helplines.load_helplines().region(code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["regions"]["AA"]["lines"][0].pop("source"), "region AA, lines: source missing"),
        (lambda file: file["regions"]["AA"]["lines"][0].pop("written"), "region AA, lines: written missing"),
        (lambda file: file["regions"]["AA"]["lines"][0].update(hours="9-5"), "region AA, lines: unknown hours"),
        (lambda file: file["regions"]["AA"]["emergency"].update(number=112), "emergency: number is 112; give text"),
        (lambda file: file["regions"]["AA"]["emergency"].update(source="hearsay"), "source is 'hearsay'"),
        (lambda file: file["regions"]["AA"]["emergency"].update(written="today"), "written is 'today'"),
        (lambda file: file["regions"]["AA"].update(chat=[]), "region AA: unknown chat"),
        (lambda file: file["regions"].update({False: file["regions"]["AA"]}), "the code is False"),
        (lambda file: file.update(aliases={"BB": "CC"}), "BB stands for 'CC'"),
        (lambda file: file.pop("fallback"), "fallback missing"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(load, change, message):
    with pytest.raises(ValueError, match=message):
        load(change)


def test_a_file_of_ones_own(load):
    assert load(lambda file: None).region("AA").lines[0].number == "123"
