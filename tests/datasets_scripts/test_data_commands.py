import json
import subprocess
import sys
from pathlib import Path

import corpus_trees
import media_files
import pytest

from multimood.cli import main
from multimood.datasets_scripts import commands, dataset_card, hub, mesc
from multimood.datasets_scripts.schema import read_rows

DIALOGUES = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """MESC's files with six short dialogues of four episodes."""
    root = tmp_path_factory.mktemp("mesc")
    cells = corpus_trees.mesc_rows(DIALOGUES)
    corpus_trees.write_mesc(root, cells)
    corpus_trees.write_json(root / "val.json", corpus_trees.official_entries(cells, [4]))
    corpus_trees.write_json(root / "test.json", corpus_trees.official_entries(cells, [5]))
    return root


@pytest.fixture(scope="module")
def films(corpus, tmp_path_factory):
    """All episodes but the last, as films that are long enough."""
    folder = tmp_path_factory.mktemp("films")
    said = [utterance for dialogue in mesc.read_dialogues(corpus) for utterance in dialogue.utterances]
    for key in sorted({utterance.episode_key for utterance in said})[:-1]:
        seconds = max(utterance.end for utterance in said if utterance.episode_key == key) + 1
        media_files.write_clip(folder / f"{key}.mp4", frames=round(8 * seconds))
    return folder


@pytest.fixture(scope="module")
def clips(corpus, films, tmp_path_factory):
    out = tmp_path_factory.mktemp("clips")
    assert main(["data", "cut", str(corpus), "--episodes", str(films), "--out", str(out), "--workers", "1"]) == 0
    return out


def run(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


def test_the_parser_names_what_the_modules_know():
    assert set(commands.CORPORA) == set(dataset_card.CORPORA)
    assert commands.SCHEMES == mesc.SCHEMES
    assert commands.FORMS == hub.FORMS


def test_cut_says_what_it_did_and_what_is_missing(corpus, films, clips, capsys):
    assert run("cut", corpus, "--episodes", films, "--out", clips, "--workers", 1) == 0
    printed = capsys.readouterr().out
    count = len(list(clips.glob("*.mp4")))
    assert f"0 clips cut, {count} were there, of {DIALOGUES * 7}" in printed
    report = json.loads((clips / "cut_report.json").read_text())
    lost = sum(episode["clips"] for episode in report["missing_episodes"])
    assert lost == DIALOGUES * 7 - count > 0
    assert f"1 episodes are missing, with {lost} clips: S" in printed


def test_mesc_becomes_rows_with_clips(corpus, clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("build", "mesc", corpus, "--clips", clips, "--out", out) == 2
    assert "there is no clip" in capsys.readouterr().err, "those of the episode that is missing"
    assert not (out / "official").exists()
    assert run("build", "mesc", corpus, "--clips", clips, "--out", out, "--skip-bad") == 0
    printed = capsys.readouterr().out
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert f"left out: {len(skipped)} missing clip; report: " in printed
    assert {entry["kind"] for entry in skipped} == {"missing clip"}
    assert all("MESC.csv, line " in entry["place"] for entry in skipped)
    rows = list(read_rows(out / "official" / "train.jsonl"))
    assert rows
    assert all(Path(clip).parent == clips for row in rows for clip in row["videos"])
    assert f"official: train {len(rows)} rows" in printed


def test_mesc_without_clips_is_text_only_and_says_so(corpus, tmp_path, capsys):
    assert run("build", "mesc", corpus, "--out", tmp_path, "--scheme", "episode_disjoint") == 0
    printed = capsys.readouterr()
    assert "text only, no clips" in printed.out
    assert "note: rows are text only: give --clips, or --episodes" in printed.err
    assert sorted(path.stem for path in (tmp_path / "episode_disjoint").glob("*.jsonl")) == [
        "test",
        "train",
        "validation",
    ]


def test_films_are_cut_on_the_way(corpus, films, tmp_path, capsys):
    arguments = ("build", "mesc", corpus, "--episodes", films, "--workers", 1, "--out", tmp_path, "--skip-bad")
    assert run(*arguments) == 0
    rows = list(read_rows(tmp_path / "official" / "train.jsonl"))
    assert any(row["videos"] for row in rows)
    assert (tmp_path / "cut" / "cut_report.json").is_file()


def test_a_bad_line_stops_the_cut_or_is_left_out_with_its_dialogue(films, tmp_path, capsys):
    cells = corpus_trees.mesc_rows(2)
    cells[3]["EndTime"] = cells[3]["StartTime"]
    corpus_trees.write_mesc(tmp_path, cells)
    arguments = ("cut", tmp_path, "--episodes", films, "--out", tmp_path / "clips", "--workers", 1)
    assert run(*arguments) == 2
    assert "MESC.csv, line 5: EndTime" in capsys.readouterr().err
    assert run(*arguments, "--skip-bad") == 0
    printed = capsys.readouterr().out
    assert "7 clips cut, 0 were there, of 7" in printed
    assert "left out: 1 time code; report: " in printed
    assert "line 5" in (tmp_path / "clips" / "skipped.jsonl").read_text()


def test_folds_become_configurations(tmp_path, capsys):
    corpus_trees.write_dfew(tmp_path / "dfew", clips=5)
    out = tmp_path / "out"
    assert run("build", "dfew", tmp_path / "dfew", "--out", out, "--form", "parquet", "--folds", 1, 3) == 0
    assert sorted(hub.built_configs(out)) == ["fold_1", "fold_3"]
    assert "fold_3: test 1 rows, 1 clips" in capsys.readouterr().out


@pytest.mark.parametrize("corpus", ["mafw", "meld"])
def test_other_corpora_are_built_too(corpus, tmp_path, capsys):
    getattr(corpus_trees, f"write_{corpus}")(tmp_path / corpus)
    assert run("build", corpus, tmp_path / corpus, "--out", tmp_path / "out", "--skip-bad") == 0
    configs = hub.built_configs(tmp_path / "out")
    assert sorted(configs) == (["default"] if corpus == "meld" else [f"fold_{n}" for n in range(1, 6)])
    assert all(split["rows"] for about in configs.values() for split in about["splits"].values())


def test_own_recordings_are_built_and_a_link_out_of_their_folder_is_not(tmp_path, capsys):
    root = tmp_path / "mine"
    root.mkdir()
    media_files.write_clip(root / "a.mp4")
    media_files.write_clip(tmp_path / "outside.mp4")
    (root / "b.mp4").symlink_to(tmp_path / "outside.mp4")
    lines = [{"file_name": f"{name}.mp4", "text": "Hello.", "emotion": "joy"} for name in "ab"]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("build", "own", root, "--out", tmp_path / "out") == 2
    assert "metadata.jsonl, line 2: 'b.mp4' leads out of" in capsys.readouterr().err
    assert run("build", "own", root, "--out", tmp_path / "out", "--skip-bad") == 0
    assert "left out: 1 outside the folder" in capsys.readouterr().out
    assert len(list(read_rows(tmp_path / "out" / "default" / "train.jsonl"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clips", "x", "--episodes", "y"), "give --clips or --episodes, not both"),
        (("--form", "rows", "--push", "user/name"), "the form rows names clips of this machine"),
        (("--episodes", "nowhere"), "nowhere is no folder"),
    ],
)
def test_what_does_not_go_together_is_said(corpus, tmp_path, capsys, arguments, message):
    assert run("build", "mesc", corpus, "--out", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_clips_of_mesc_are_not_pushed_without_rights(corpus, clips, tmp_path, capsys):
    arguments = ("build", "mesc", corpus, "--clips", clips, "--out", tmp_path, "--skip-bad", "--push", "user/name")
    assert run(*arguments) == 2
    assert "clips of MESC are not yours to distribute" in capsys.readouterr().err


def test_inspect_prints_the_figures_and_writes_the_sheet(corpus, tmp_path, capsys):
    assert run("inspect", corpus, "--sheet", tmp_path / "sheet.html") == 0
    printed = capsys.readouterr().out
    assert "dialogues" in printed
    assert "official dialogues matched one to one" in printed
    assert "<h2>Sampled rows</h2>" in (tmp_path / "sheet.html").read_text()
    assert run("build", "mesc", corpus, "--out", tmp_path) == 0
    capsys.readouterr()
    assert run("inspect", tmp_path / "official" / "test.jsonl", "--sheet", tmp_path / "rows.html") == 0
    assert "rows_with_response" in capsys.readouterr().out
    assert run("inspect", tmp_path / "nowhere") == 2
    assert "neither a file of rows nor a folder with MESC.csv" in capsys.readouterr().err


def test_inspect_stops_at_a_bad_line_or_leaves_it_out(tmp_path, capsys):
    cells = corpus_trees.mesc_rows(3)
    cells[3]["EndTime"] = cells[3]["StartTime"]
    corpus_trees.write_mesc(tmp_path, cells)
    assert run("inspect", tmp_path, "--sheet", tmp_path / "out" / "sheet.html") == 2
    assert "MESC.csv, line 5: EndTime" in capsys.readouterr().err
    assert run("inspect", tmp_path, "--sheet", tmp_path / "out" / "sheet.html", "--skip-bad") == 0
    assert "left out: 1 time code; report: " in capsys.readouterr().out
    assert "line 5" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_inspect_leaves_out_a_broken_row(corpus, tmp_path, monkeypatch, capsys):
    assert run("build", "mesc", corpus, "--out", tmp_path, "--scheme", "episode_disjoint") == 0
    rows = tmp_path / "episode_disjoint" / "train.jsonl"
    count = len(rows.read_text().splitlines())
    with rows.open("a") as file:
        file.write('{"dialogue_id": \n')
    monkeypatch.chdir(tmp_path)
    assert run("inspect", rows) == 2
    assert f"train.jsonl, line {count + 1}: " in capsys.readouterr().err
    assert run("inspect", rows, "--skip-bad") == 0
    assert "left out: 1 row; report: skipped.jsonl" in capsys.readouterr().out
    assert f"line {count + 1}" in (tmp_path / "skipped.jsonl").read_text()


def test_a_split_without_its_official_file_is_left_out_with_a_word(corpus, tmp_path, capsys):
    for name in ("MESC.csv", "val.json"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    assert run("build", "mesc", tmp_path, "--out", tmp_path / "out") == 0
    assert "no test and no train split: it needs val.json and test.json" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "official").glob("*.jsonl")] == ["validation.jsonl"]


def test_the_parser_imports_nothing_heavy():
    code = (
        "import sys; from multimood.cli import main\n"
        "try: main(['data', 'build', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'datasets', 'av', 'numpy', 'huggingface_hub'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
