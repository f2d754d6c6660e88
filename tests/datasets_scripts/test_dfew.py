import warnings

import numpy as np
import pytest
from corpus_trees import FOLDS, write_dfew, write_table
from media_files import frame_number

from multimood.datasets_scripts.dfew import load_dfew
from multimood.datasets_scripts.report import CorpusError, SkipReport
from multimood.datasets_scripts.schema import read_rows, validate_row, write_rows
from multimood.processors.media import load_clip
from multimood.processors.turn import build_prompt

LIST = "EmoLabel_DataSplit/test(single-labeled)/set_2.csv"


@pytest.mark.parametrize("folders", [True, False])
def test_both_layouts_of_the_lists_give_five_folds(tmp_path, folders):
    root = write_dfew(tmp_path, 20, folders=folders)
    tested = []
    for fold in range(1, FOLDS + 1):
        rows = {split: load_dfew(root, fold, split) for split in ("train", "test")}
        assert (len(rows["train"]), len(rows["test"])) == (16, 4)
        tested += [row["dialogue_id"] for row in rows["test"]]
        assert not {row["dialogue_id"] for row in rows["train"]} & {row["dialogue_id"] for row in rows["test"]}
    assert sorted(tested) == sorted(f"dfew-{number}" for number in range(1, 21))


def test_a_row_asks_for_the_emotion_of_a_clip(tmp_path):
    root = write_dfew(tmp_path, 5)
    (row,) = load_dfew(root, 5, "test")  # clip 4 with label 5
    assert row["videos"] == [str(root / "Clip/original/4.mp4")]
    assert (row["client_emotion"], row["corpus_emotion"]) == ("surprise", "surprise")
    assert row["history"] == []
    assert row["response"] is row["strategy"] is row["therapist_emotion"] is None
    (happy,) = [
        row for row in load_dfew(write_dfew(tmp_path / "more", 7), 3, "test") if row["dialogue_id"] == "dfew-7"
    ]
    assert (happy["client_emotion"], happy["corpus_emotion"]) == ("joy", "happy")
    assert [block["type"] for block in build_prompt(row)[1]["content"]] == ["video", "audio", "text"]
    path = write_rows(map(validate_row, [row, happy]), tmp_path / "rows.jsonl")
    assert list(read_rows(path)) == [row, happy]


def test_frames_and_sounds_are_joined_whatever_their_padding(tmp_path):
    root = write_dfew(tmp_path / "dfew", 5, media="frames and wavs")
    (row,) = load_dfew(root, 4, "test", joined=tmp_path / "joined")
    assert row["videos"] == [str(tmp_path / "joined" / "00003.mkv")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_clip(row["videos"][0], num_frames=12)
    assert [frame_number(frame) for frame in clip.frames] == list(range(3, 15)), "10.jpg comes after 9.jpg"
    assert clip.duration == pytest.approx(1.5, abs=0.002), "the frames fill the time of the sound"
    assert len(clip.waveform) / 16_000 == pytest.approx(1.5, abs=0.002)
    assert np.abs(clip.waveform).max() > 0.2

    before = (tmp_path / "joined" / "00003.mkv").read_bytes()
    (tmp_path / "joined" / "00003.mkv").unlink()
    load_dfew(root, 4, "test", joined=tmp_path / "joined")
    assert (tmp_path / "joined" / "00003.mkv").read_bytes() == before


def test_frames_without_sounds_are_a_silent_clip(tmp_path):
    root = write_dfew(tmp_path / "dfew", 5, media="frames")
    (row,) = load_dfew(root, 4, "test", joined=tmp_path / "joined")
    clip = load_clip(row["videos"][0], num_frames=4)
    assert clip.waveform is None
    assert clip.duration == pytest.approx(12 / 25, abs=0.002)


def test_frames_need_a_folder_to_be_joined_in(tmp_path):
    root = write_dfew(tmp_path, 5, media="frames")
    with pytest.raises(CorpusError, match="holds frames, not clips; give a folder `joined`"):
        load_dfew(root, 1, "test")


def test_a_missing_or_damaged_part_is_reported_and_never_invented(tmp_path):
    root = write_dfew(tmp_path / "dfew", 10, media="frames and wavs")
    (root / "Clip/wav/1.wav").unlink()
    for frame in (root / "Clip/jpg_256/00006").iterdir():
        frame.unlink()
    (root / "Clip/wav/2.wav").write_bytes(b"RIFF")
    report = SkipReport()
    assert load_dfew(root, 2, "test", joined=tmp_path / "joined", skip_bad=report) == []
    rows = load_dfew(root, 3, "test", joined=tmp_path / "joined", skip_bad=report)
    assert [row["dialogue_id"] for row in rows] == ["dfew-7"]
    assert report.counts == {"missing clip": 2, "damaged clip": 1}
    assert sorted(path.name for path in (tmp_path / "joined").glob("0*")) == ["00007.mkv"]

    clips = write_dfew(tmp_path / "clips", 10)
    (clips / "Clip/original/6.mp4").unlink()
    with pytest.raises(CorpusError, match=r"set_2.csv, line 3: there is no clip 6 in"):
        load_dfew(clips, 2, "test")
    assert len(load_dfew(clips, 2, "test", skip_bad=SkipReport())) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 8)], r"set_2.csv, line 2: label is 8; allowed: 1 to 7"),
        ([(1, "happy")], "line 2: label is 'happy'; give a whole number"),
        ([("../1", 3)], "video_name is '../1'; give a whole number"),
        ([(1, 3), ("00001", 3)], r"line 3: clip 1 is already at .*line 2"),
        ([(1, 3, 4)], "3 cells in a table of 2 columns"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, rows, message):
    root = write_dfew(tmp_path, 10)
    write_table(root / LIST, ("video_name", "label"), [*rows, (6, 1)])
    with pytest.raises(CorpusError, match=message):
        load_dfew(root, 2, "test")
    report = SkipReport()
    assert load_dfew(root, 2, "test", skip_bad=report)[-1]["dialogue_id"] == "dfew-6"
    assert len(report.errors) == 1


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    root = write_dfew(tmp_path / "dfew", 10)
    clip = root / "Clip/original/6.mp4"
    clip.rename(tmp_path / "elsewhere.mp4")
    clip.symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(CorpusError, match="leads out of"):
        load_dfew(root, 2, "test")


def test_two_files_of_one_number_are_refused(tmp_path):
    root = write_dfew(tmp_path, 5)
    (root / "Clip/original/00001.mp4").write_bytes(b"which?")
    with pytest.raises(CorpusError, match=r"00001.mp4 and 1.mp4 are both clip 1"):
        load_dfew(root, 1, "test")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CorpusError, match="has no list of fold 1; looked for EmoLabel_DataSplit"):
        load_dfew(tmp_path)
    with pytest.raises(ValueError, match="fold is 6; use one of 1, 2"):
        load_dfew(tmp_path, 6)
    with pytest.raises(ValueError, match="split is 'validation'; use one of train, test"):
        load_dfew(tmp_path, 1, "validation")
