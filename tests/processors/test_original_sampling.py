"""What the original's code takes of a clip, beside figures computed by hand from its definition."""

import media_files
import numpy as np
import processor_builders
import pytest
import torch

from multimood.processors.media import load_clip
from multimood.processors.original_sampling import frame_indices, pad_to_square, sound_pieces

RATE = 16_000


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [
        (100, 8, [6, 19, 31, 43, 56, 68, 80, 93]),
        (9, 8, [1, 2, 3, 4, 5, 6, 7, 8]),  # halves are rounded up
        (3, 4, [0, 1, 1, 2]),
        (1, 2, [0, 0]),
    ],
)
def test_frames_by_their_numbers(total, num_frames, expected):
    assert frame_indices(total, num_frames) == expected


def test_long_sound_is_heard_in_eight_pieces():
    waveform = np.arange(72 * RATE, dtype=np.float32)
    pieces = sound_pieces(waveform, RATE).reshape(8, 2 * RATE)
    assert (pieces[:, 0] == np.arange(8) * 10 * RATE).all()  # 72 s − 2 s in seven steps
    assert (np.diff(pieces, axis=1) == 1).all()


def test_short_sound_is_repeated():
    waveform = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert np.array_equal(sound_pieces(waveform, RATE), np.tile(waveform, 8))


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
def test_frames_are_padded_to_squares(shape):
    frame = np.full((*shape, 3), 200, dtype=np.uint8)
    square = pad_to_square(frame, [0.5, 0.25, 0.0])
    edge = max(shape)
    assert square.shape == (edge, edge, 3)
    assert (square == 200).all(-1).sum() == shape[0] * shape[1]
    margins = square[(square != 200).any(-1)]
    assert (margins == [127, 63, 0]).all()
    top, left = (edge - shape[0]) // 2, (edge - shape[1]) // 2
    assert (square[top : top + shape[0], left : left + shape[1]] == 200).all()


def test_a_file_gives_the_frames_of_these_numbers(tmp_path):
    path = media_files.write_clip(tmp_path / "clip.mp4")
    every = load_clip(path, num_frames=1000, by_count=True, audio=False)
    total = len(np.unique(every.timestamps))
    assert total > 8
    taken = load_clip(path, num_frames=4, by_count=True, audio=False)
    times = np.unique(every.timestamps)[frame_indices(total, 4)]
    assert taken.timestamps == times.tolist()
    both = load_clip([path, path], num_frames=4, by_count=True, audio=False)
    assert len(both.frames) == 4
    assert np.array_equal(both.frames[0], load_clip(path, num_frames=2, by_count=True, audio=False).frames[0])


def test_the_processor_keeps_these_settings_and_follows_them(tmp_path):
    path = media_files.write_clip(tmp_path / "clip.mp4")
    ours = processor_builders.tiny_processor(audio="beats", audio_seconds=20.0)
    theirs = processor_builders.tiny_processor(
        audio="beats", audio_seconds=20.0, original_sampling=True, square_frames=True
    )
    theirs.save_pretrained(tmp_path / "saved")
    theirs = type(theirs).from_pretrained(tmp_path / "saved")
    assert (theirs.original_sampling, theirs.square_frames) == (True, True)

    message = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "audio", "audio": path}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    usual, batch = (processor.apply_chat_template(message, **options) for processor in (ours, theirs))
    assert batch["audio_token_mask"].all()
    assert not usual["audio_token_mask"].all()
    waveform = load_clip(path).waveform
    heard = sound_pieces(waveform, RATE)
    expected = theirs.feature_extractor(heard, max_length=20 * RATE, return_tensors="pt")["input_features"]
    torch.testing.assert_close(batch["input_features"], expected)
    assert batch["pixel_values_videos"].shape == usual["pixel_values_videos"].shape
    assert not torch.equal(batch["pixel_values_videos"], usual["pixel_values_videos"])


def test_frames_by_number_and_by_rate_exclude_each_other():
    with pytest.raises(ValueError, match="leave out fps"):
        processor_builders.tiny_processor(original_sampling=True, fps=2.0)
