import json
import os
import subprocess
import sys
from pathlib import Path

import hub_stub
import media_files
import pytest
from datasets import load_dataset
from whole_builders import save_tiny

from multimood.datasets_scripts.hub import push_dataset, write_dataset
from multimood.datasets_scripts.schema import RowError, read_rows, validate_row

REPO = f"{hub_stub.USER}/corpus"

PUSH = """
import sys, warnings
from multimood.datasets_scripts.hub import push_dataset
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(push_dataset(sys.argv[1], sys.argv[2], have_rights="rights" in sys.argv, public="public" in sys.argv))
print([str(w.message) for w in said if w.category is UserWarning])
"""

OPEN = """
from huggingface_hub import HfApi
HfApi().create_repo("user/open", repo_type="dataset", private=False)
"""
VISIBILITY = """
from huggingface_hub import HfApi
print(HfApi().dataset_info(sys.argv[2]).private)
"""

# Training steps of TRL's stock trainer and our collator on what the Hub streams, no row changed in between.
TRAIN = """
import sys, torch
from functools import partial
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.processors.turn import build_prompt
from multimood.training.sft import turn_target
from multimood.training.trainers.collator import MultiMoodCollator
torch.set_num_threads(1)
checkpoint, out, *repos = sys.argv[1:]
processor = MultiMoodProcessor.from_pretrained(checkpoint)
collator = MultiMoodCollator(processor, partial(build_prompt, verbatim_pairs=1), turn_target)
for repo in repos:
    rows = load_dataset(repo, "official", split="train", streaming=True)
    batch = collator(list(rows))
    assert "pixel_values_videos" in batch and "input_features" in batch and "history_input_ids" in batch
    model = MultiMoodForConditionalGeneration.from_pretrained(checkpoint)
    args = SFTConfig(out, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, logging_steps=1,
        accelerator_config={"dispatch_batches": False}, save_strategy="no")
    trainer = SFTTrainer(model, args=args, train_dataset=rows, data_collator=collator, processing_class=processor)
    trainer.train()
    print([line["loss"] for line in trainer.state.log_history if "loss" in line])
"""


def row(number: int = 0, videos: list[str] | None = None, **changes) -> dict:
    said = [("client", "My sister is called Ruth."), ("therapist", "What is she like?")] * 2
    return {
        "dialogue_id": "d",
        "turn_id": number,
        "problem_type": "family conflict",
        "situation": None,
        "history": [{"speaker": speaker, "text": text, "emotion": None, "strategy": None} for speaker, text in said],
        "videos": videos or [],
        "utterance": "I am here | again.",
        "client_emotion": "sadness",
        "therapist_emotion": "neutral",
        "strategy": "open question",
        "response": "Tell me more.",
        **changes,
    }


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [media_files.write_clip(folder / f"{name}.mp4", pitch=pitch) for name, pitch in (("a", 300), ("b", 500))]


@pytest.fixture(scope="module")
def rows(clips):
    return [row(0, clips), row(1), row(2, clips[1:]), row(3, clips[:1])]


def contents(videos: list[dict]) -> list[bytes]:
    return [clip["bytes"] if clip["bytes"] is not None else Path(clip["path"]).read_bytes() for clip in videos]


@pytest.mark.parametrize("form", ["parquet", "folder"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_built_folder_loads_as_the_same_rows(rows, tmp_path, form, streaming):
    out = tmp_path / "data"
    write_dataset(out, "own", "official", {"train": rows, "test": rows[:1]}, form, "by a test")
    loaded = list(load_dataset(str(out), "official", split="train", streaming=streaming, cache_dir=tmp_path / "cache"))
    assert len(loaded) == len(rows)
    for got, wanted in zip(loaded, rows, strict=True):
        assert contents(got.pop("videos")) == [Path(clip).read_bytes() for clip in wanted["videos"]]
        assert got == {**{name: value for name, value in wanted.items() if name != "videos"}, "corpus_emotion": None}


def test_rows_beside_their_clips_are_read_back(rows, tmp_path):
    write_dataset(tmp_path, "own", "official", {"train": rows}, "rows", "by a test")
    assert list(read_rows(tmp_path / "official" / "train.jsonl")) == rows


def test_a_clips_path_tells_nothing_of_this_machine(rows, tmp_path):
    write_dataset(tmp_path, "own", "official", {"train": rows}, "parquet", "by a test")
    content = (tmp_path / "official" / "train-00000.parquet").read_bytes()
    assert str(Path(rows[0]["videos"][0]).parent).encode() not in content


def test_shards_are_split_by_size(clips, tmp_path, monkeypatch):
    size = Path(clips[0]).stat().st_size
    monkeypatch.setattr("multimood.datasets_scripts.hub.GROUP_BYTES", size)
    monkeypatch.setattr("multimood.datasets_scripts.hub.SHARD_BYTES", 3 * size)
    write_dataset(tmp_path, "own", "c", {"train": [row(i, clips[:1]) for i in range(7)]}, "parquet", "by a test")
    assert len(list((tmp_path / "c").glob("train-*.parquet"))) == 4
    loaded = load_dataset(str(tmp_path), "c", split="train", streaming=True)
    assert [got["turn_id"] for got in loaded] == list(range(7))
    assert loaded.num_shards == 4


def test_other_configurations_stay_and_a_second_build_replaces_its_own(rows, tmp_path):
    write_dataset(tmp_path, "own", "a", {"train": rows, "test": rows}, "parquet", "first")
    write_dataset(tmp_path, "own", "b", {"train": rows[:2]}, "parquet", "second")
    write_dataset(tmp_path, "own", "a", {"train": rows[:3]}, "parquet", "third")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["statistics.json", "train-00000.parquet"]
    assert len(list(load_dataset(str(tmp_path), "a", split="train", streaming=True))) == 3
    assert len(list(load_dataset(str(tmp_path), "b", split="train", streaming=True))) == 2
    with pytest.raises(ValueError, match="a is own in the form parquet; give another folder"):
        write_dataset(tmp_path, "mesc", "c", {"train": rows}, "parquet", "fourth")
    with pytest.raises(ValueError, match="a is own in the form parquet; give another folder"):
        write_dataset(tmp_path, "own", "c", {"train": rows}, "folder", "fifth")


def test_a_build_that_fails_leaves_what_was_there(rows, tmp_path):
    write_dataset(tmp_path, "own", "a", {"train": rows}, "parquet", "first")
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        write_dataset(tmp_path, "own", "a", {"train": [row(0, ["gone.mp4"])]}, "parquet", "second")
    assert len(list(load_dataset(str(tmp_path), "a", split="train", streaming=True))) == 4


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([row(0), row(0)], RowError, "turn 0 of dialogue d stands twice"),
        ([row(0, client_emotion="glee")], RowError, "client_emotion is 'glee'"),
        ([], ValueError, "has no rows"),
    ],
)
def test_bad_rows_are_not_written(tmp_path, bad, error, message):
    with pytest.raises(error, match=message):
        write_dataset(tmp_path, "own", "c", {"train": bad}, "parquet", "by a test")
    assert not (tmp_path / "c").exists()


def test_an_empty_clip_and_a_folder_without_clips_are_refused(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(RowError, match=r"empty\.mp4 is empty"):
        write_dataset(tmp_path / "x", "own", "c", {"train": [row(0, [str(tmp_path / "empty.mp4")])]}, "parquet", "-")
    with pytest.raises(ValueError, match="no clips for a folder of clips"):
        write_dataset(tmp_path / "x", "own", "c", {"train": [row(0)]}, "folder", "by a test")


def test_clips_of_mesc_need_rights(rows, tmp_path):
    write_dataset(tmp_path, "mesc", "official", {"train": rows}, "parquet", "by a test")
    with pytest.raises(ValueError, match=r"4 clips of MESC are not yours .* --i-have-the-rights"):
        push_dataset(tmp_path, REPO)


def test_rows_that_name_clips_of_this_machine_are_not_pushed(rows, tmp_path):
    with pytest.raises(ValueError, match="holds no dataset"):
        push_dataset(tmp_path, REPO)
    write_dataset(tmp_path, "own", "c", {"train": rows}, "rows", "by a test")
    with pytest.raises(ValueError, match="names clips of this machine"):
        push_dataset(tmp_path, REPO)


@pytest.fixture
def hub(tmp_path):
    """Runs scripts against a fresh Hub: (script, arguments) → what it printed."""
    with hub_stub.running_hub() as endpoint:
        variables = hub_stub.client_environment(endpoint, tmp_path / "home")

        def run(script: str, *arguments: str, fails: bool = False) -> str:
            environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
            result = subprocess.run(
                [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True
            )
            assert (result.returncode != 0) == fails, result.stderr[-4000:]
            return result.stdout + (result.stderr if fails else "")

        yield run


def test_rows_pushed_to_the_hub_train_without_conversion(rows, hub, tmp_path):
    for form in ("parquet", "folder"):
        write_dataset(tmp_path / form, "own", "official", {"train": rows}, form, "by a test")
        hub(PUSH, tmp_path / form, f"{hub_stub.USER}/{form}")
    save_tiny(tmp_path / "checkpoint")
    repos = [f"{hub_stub.USER}/{form}" for form in ("parquet", "folder")]
    printed = hub(TRAIN, tmp_path / "checkpoint", tmp_path / "out", *repos)
    parquet, folder = (json.loads(line) for line in printed.splitlines() if line.startswith("["))
    assert len(parquet) == 2
    assert all(0 < loss < 20 for loss in parquet)
    assert folder == parquet, "both forms hold the same rows"


def test_repositories_are_private_unless_told_otherwise(rows, hub, tmp_path):
    write_dataset(tmp_path / "data", "mesc", "official", {"train": [row(0)]}, "parquet", "by a test")
    printed = hub(PUSH + VISIBILITY, tmp_path / "data", REPO)
    assert "MESC may not be passed on; keep the repository private" in printed
    assert printed.splitlines()[-1] == "True"
    write_dataset(tmp_path / "data", "mesc", "official", {"train": rows}, "parquet", "by a test")
    assert "user/open is public" in hub(OPEN + PUSH, tmp_path / "data", "user/open", "rights", fails=True)
    printed = hub(PUSH + VISIBILITY, tmp_path / "data", "user/open", "rights", "public")
    assert "check that you may publish this" in printed
    assert printed.splitlines()[-1] == "False"


def test_rows_of_the_hub_follow_the_schema_with_paths_for_clips(rows, tmp_path):
    write_dataset(tmp_path, "own", "official", {"train": rows}, "parquet", "by a test")
    for got in load_dataset(str(tmp_path), "official", split="train", streaming=True):
        validate_row({**got, "videos": [clip["path"] for clip in got["videos"]]})
