import json
import subprocess
import sys
from pathlib import Path

import media_files
import pytest
import whole_builders

from multimood import cli
from multimood.processors.turn import LABELS

SHARED = Path(__file__).parents[2] / "shared" / "data"
SAID = [{"speaker": "client", "text": "My sister is called Ruth."}, {"speaker": "therapist", "text": "Thank you."}]
MESC = {
    "problem_type": "Breakups or Divorce",
    "situation": "He left.",
    "dialog": [
        {"text": "I told you.", "speaker": "user", "emotion": "sadness"},
        {"text": "Told me what?", "speaker": "sys", "emotion": "neutral", "strategy": "Open question"},
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(whole_builders.save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media_files.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=0.9)


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def run(capsys):
    def command(*arguments):
        """(exit status, standard output, standard error) of the command."""
        status = cli.main(arguments)
        return status, *capsys.readouterr()

    return command


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from multimood import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "respond" in out
    assert "demo" in out
    assert out.splitlines()[-1] == "[]"


def test_respond_prints_labels_response_and_accounts(run, model, clip, file):
    history = file("earlier.json", SAID * 10)
    status, out, err = run("respond", "--model", model, "--video", clip, "--text", "Hello.", "--history", history)
    assert status == 0, err
    for name in cli.FIELD_NAMES.values():
        assert name in out
    assert out.count("%") == 9  # three labels of each field
    assert "\nTherapist: " in out
    assert "Memory: 16 utterances as 16 tokens" in out
    assert all(f"{kind} " in out for kind in ("video", "audio", "memory", "media", "prefill"))


def test_json_is_one_object_and_nothing_else(model, clip):
    """As a program calls it: a process of its own, whose libraries may print what they like."""
    command = [sys.executable, "-m", "multimood.cli", "respond", "--model", model, "--video", clip, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    assert set(reply["modalities"]) == {"video", "audio"}
    for field, labels in LABELS.items():
        assert set(reply["probabilities"][field]) == set(labels)
        assert reply["turn"][field] in labels
    assert reply["turn"]["response"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real clips and dialogues of {SHARED}")
def test_respond_answers_real_clips_after_a_real_dialogue(run, model, file):
    dialogues = json.loads((SHARED / "mesc" / "val.json").read_text(encoding="utf-8"))
    clips = sorted((SHARED / "clips").glob("*.mp4"))
    assert clips
    for clip, dialogue in zip(clips, dialogues, strict=False):
        history = file("mesc.json", dialogue)
        status, out, err = run("respond", "--model", model, "--video", str(clip), "--history", history, "--json")
        assert status == 0, err
        reply = json.loads(out)
        assert {"video", "audio", "memory"} <= set(reply["modalities"])
        assert all(reply["turn"][field] in labels for field, labels in LABELS.items())


def test_a_disclosure_is_answered_with_the_lines_of_the_region(run, model):
    words = ("respond", "--model", model, "--text", "I want to kill myself.", "--region", "de")
    status, out, err = run(*words)
    assert status == 0, err
    assert "0800 111 0 111" in out
    assert "Risk read from the words: high" in out
    reply = json.loads(run(*words, "--json")[1])
    assert reply["risk"]["level"] == "high"
    assert "0800 111 0 111" in reply["referral"]
    assert reply["disclosures"] == ["ai_start"]
    minor = json.loads(run(*words[:-2], "--region", "GB", "--minor", "--json")[1])
    assert "Childline" in minor["turn"]["response"]


def test_estimates_can_be_left_out(run, model):
    words = ("respond", "--model", model, "--text", "Hello.")
    assert cli.ESTIMATES in run(*words)[1]
    status, out, _ = run(*words, "--no-estimates")
    assert status == 0
    assert cli.ESTIMATES not in out
    assert "%" not in out
    reply = json.loads(run(*words, "--no-estimates", "--json")[1])
    assert reply["probabilities"] == {}
    assert set(reply["turn"]) == {"response"}


def test_demo_tells_its_story(run, model):
    status, out, err = run("demo", "--model", model, "--seed", "1")
    assert status == 0, err
    assert "seed 1" in out
    assert "only the memory still holds" in out
    assert "\nTherapist: " in out
    clip = next(line.strip() for line in out.splitlines() if line.endswith(".mp4"))
    assert Path(clip).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --video, --audio or --text"),
        (("--video", "nowhere.mp4"), "nowhere.mp4 is no file"),
        (("--text", " "), "give words"),
        (("--text", "Hello.", "--region", "Germany"), "ISO 3166"),
        (("--text", "Hello.", "--history", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, model, arguments, message):
    status, out, err = run("respond", "--model", model, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("multimood: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_broken_clip_is_one_line_and_status_2(run, model, file):
    status, _, err = run("respond", "--model", model, "--video", file("notes.mp4", "not a clip"))
    assert status == 2
    assert "notes.mp4" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "problem_type"),
    [
        ("list.json", SAID, None),
        ("row.json", {"history": SAID, "problem_type": "poor sleep", "utterance": "Hello."}, "poor sleep"),
        ("lines.jsonl", "\n".join(map(json.dumps, SAID)) + "\n\n", None),
        ("mesc.json", MESC, "Breakups or Divorce"),
    ],
)
def test_read_history(file, name, content, problem_type):
    history = cli.read_history(file(name, content))
    assert [said["speaker"] for said in history["utterances"]] == ["client", "therapist"]
    assert all(set(said) == {"speaker", "text"} for said in history["utterances"])
    assert history["problem_type"] == problem_type


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"speaker": "client",\n "text": oops}]', r"a\.json, line 2: not JSON"),
        ("a.jsonl", json.dumps(SAID[0]) + "\n{", r"a\.jsonl, line 2: not JSON"),
        ("a.json", {"speaker": "client", "text": "Hello."}, "holds no dialogue"),
        ("a.json", [SAID[0], "Hello."], "utterance 2: 'Hello.' is no utterance"),
        ("a.json", [SAID[0], {"speaker": "nurse", "text": "Hello."}], "utterance 2: unknown speaker 'nurse'"),
        ("a.jsonl", json.dumps({"speaker": "client"}), r"line 1: the text is None"),
        ("a.json", [MESC, MESC], "utterance 1: a whole dialogue"),
    ],
)
def test_a_bad_history_names_file_and_place(file, name, content, message):
    with pytest.raises(ValueError, match=message):
        cli.read_history(file(name, content))


def test_a_history_that_is_not_text(tmp_path):
    path = tmp_path / "clip.json"
    path.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        cli.read_history(path)


def test_table():
    (line, *rest) = cli.table({"strategy": {"approval": 0.75, "others": 0.2, "advisement": 0.05}}).splitlines()
    assert line == "Therapist's strategy  approval    ██████████████████        75.0%"
    assert [row.split()[0] for row in rest] == ["others", "advisement"]
