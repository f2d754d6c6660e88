import json
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import media_files
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader
from whole_builders import tiny_pair

from multimood.datasets_scripts.hub import write_dataset
from multimood.datasets_scripts.schema import RowError, write_rows
from multimood.datasets_scripts.views import balanced_sample, class_weights, stream_rows, with_prompts
from multimood.processors.turn import build_completion, build_prompt
from multimood.training.sft import turn_target
from multimood.training.trainers.collator import MultiMoodCollator

ROWS = 40


def row(number: int, videos: list[str] | None = None, emotion: str = "sadness") -> dict:
    return {
        "dialogue_id": "d",
        "turn_id": number,
        "problem_type": None,
        "situation": None,
        "history": [
            {"speaker": "client", "text": "My sister is called Ruth.", "emotion": None, "strategy": None},
            {"speaker": "therapist", "text": "What is she like?", "emotion": None, "strategy": None},
        ],
        "videos": videos or [],
        "utterance": "I am here.",
        "client_emotion": emotion,
        "therapist_emotion": "neutral",
        "strategy": "open question",
        "response": "Tell me more.",
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A dataset of four files of ten rows."""
    folder = tmp_path_factory.mktemp("sharded")
    patch = pytest.MonkeyPatch()
    patch.setattr("multimood.datasets_scripts.hub.GROUP_ROWS", 10)
    patch.setattr("multimood.datasets_scripts.hub.SHARD_BYTES", 1)
    write_dataset(folder, "own", "default", {"train": [row(i) for i in range(ROWS)]}, "parquet", "by a test")
    patch.undo()
    return folder


def numbers(rows) -> list[int]:
    return [int(taken["turn_id"]) for taken in rows]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_every_row_goes_to_one_process(sharded, world_size):
    streams = [stream_rows(sharded, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [numbers(stream) for stream in streams]
    assert sorted(chain(*parts)) == list(range(ROWS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1, "no process waits for another's longer share"


def test_every_row_goes_to_one_worker_of_its_process(sharded):
    taken = []
    for rank in range(2):
        stream = stream_rows(sharded, rank=rank, world_size=2)
        loader = DataLoader(stream, batch_size=None, num_workers=2)
        taken += numbers(loader)
    assert sorted(taken) == list(range(ROWS))


def test_shuffling_keeps_the_rows_and_changes_with_the_epoch(sharded):
    stream = stream_rows(sharded, shuffle_seed=3)
    first = numbers(stream)
    assert sorted(first) == list(range(ROWS))
    assert first != list(range(ROWS))
    assert numbers(stream_rows(sharded, shuffle_seed=3)) == first
    stream.set_epoch(1)
    assert sorted(numbers(stream)) == list(range(ROWS))
    assert numbers(stream) != first


def test_json_lines_stream_with_file_and_line_in_their_errors(tmp_path):
    path = write_rows([row(i) for i in range(5)], tmp_path / "rows.jsonl")
    parts = [numbers(stream_rows(path, rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(chain(*parts)) == list(range(5))
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(RowError, match=r"rows\.jsonl, line 6"):
        list(stream_rows(path))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media_files.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.mark.parametrize("streamed", [True, False])
def test_prompts_stand_beside_the_rows_with_clips_undecoded(clip, tmp_path, streamed):
    write_dataset(tmp_path, "own", "default", {"train": [row(0, [clip]), row(1)]}, "parquet", "by a test")
    rows = stream_rows(tmp_path) if streamed else Dataset.from_list(list(stream_rows(tmp_path)))
    first, second = with_prompts(rows, verbatim_pairs=0)
    assert first["completion"] == build_completion(row(0))
    kinds = [block["type"] for block in first["prompt"][-1]["content"]]
    assert kinds == ["history", "video", "audio", "text"]
    (video,) = next(block["video"] for block in first["prompt"][-1]["content"] if block["type"] == "video")
    assert video["bytes"] == Path(clip).read_bytes()
    assert second["prompt"] == build_prompt(row(1), 0)
    assert first["client_emotion"] == "sadness", "rewards read a row's own columns"


def test_a_batch_of_streamed_rows_is_that_of_the_files(clip, tmp_path):
    rows = [row(0, [clip]), row(1, [clip, clip])]
    write_dataset(tmp_path, "own", "default", {"train": rows}, "parquet", "by a test")
    _, processor = tiny_pair()
    collator = MultiMoodCollator(processor, partial(build_prompt, verbatim_pairs=0), turn_target)
    streamed, direct = collator(list(stream_rows(tmp_path))), collator(rows)
    assert streamed.keys() == direct.keys()
    for name, tensor in direct.items():
        assert streamed[name].equal(tensor), name


def test_a_row_without_an_answer_is_named_when_it_is_taken():
    rows = with_prompts(Dataset.from_list([{**row(0), "response": None, "strategy": None}]))
    with pytest.raises(ValueError, match="without strategy, response"):
        rows[0]


def test_class_weights_make_every_label_count_as_much():
    labels = ["joy"] * 6 + ["fear"] * 2 + ["anger"] + [None] * 5
    weights = class_weights(labels)
    assert {label: weights[label] * labels.count(label) for label in weights} == {"joy": 3, "fear": 3, "anger": 3}
    with pytest.raises(ValueError, match="no row has a label"):
        class_weights([None])


def test_a_balanced_sample_has_every_label_as_often():
    labels = ["neutral"] * 900 + ["joy"] * 90 + ["fear"] * 10
    rows = Dataset.from_list([{"client_emotion": label} for label in [*labels, *[None] * 50]])
    drawn = balanced_sample(rows, seed=1)
    counts = Counter(drawn["client_emotion"])
    assert len(drawn) == 1000
    assert counts.keys() == {"neutral", "joy", "fear"}
    assert all(abs(count - 333) < 60 for count in counts.values())
    assert balanced_sample(rows, seed=1)["client_emotion"] == drawn["client_emotion"]
    with pytest.raises(ValueError, match="a stream cannot be drawn from"):
        balanced_sample(rows.to_iterable_dataset())


# Resident memory while a stream of a folder is read, in MiB: after the first rows, and the most over all.
STREAM = """
import psutil, sys
from multimood.datasets_scripts.views import stream_rows
process, count, seen, first, most = psutil.Process(), 0, 0, None, 0
for row in stream_rows(sys.argv[1]):
    count += 1
    seen += sum(len(clip["bytes"]) for clip in row["videos"])
    if count % 1000 == 0:
        now = process.memory_info().rss / 2**20
        first, most = first or now, max(most, now)
import json; print(json.dumps([count, seen, first, most]))
"""


@pytest.mark.slow
def test_a_hundred_thousand_rows_stream_in_flat_memory(clip, tmp_path):
    # 1.2 GB of clips: an implementation that kept them would show.
    rows = (row(i, [clip]) for i in range(100_000))
    write_dataset(tmp_path, "own", "default", {"train": rows}, "parquet", "by a test")
    result = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, check=True)
    count, seen, first, most = json.loads(result.stdout)
    print(f"{count:,} rows, {seen / 2**20:,.0f} MiB of clips; {first:,.0f} MiB after 1,000 rows, at most {most:,.0f}")
    assert count == 100_000
    assert seen == 100_000 * Path(clip).stat().st_size
    assert most < 1500
    assert most < first + 300
