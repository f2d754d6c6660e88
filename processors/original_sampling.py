"""What the code of the released weights looks at in a clip, for models that are converted from it.

Its frames are counted rather than timed, and may be padded to squares; of a clip's sound it hears eight pieces of two
seconds, which overlap in short clips and leave gaps in long ones. New models have no reason to do so.
"""

from fractions import Fraction

import numpy as np

SOUND_PIECES = 8
PIECE_SECONDS = 2


def frame_indices(total: int, num_frames: int) -> list[int]:
    """
    Which frames of a clip are taken: the midpoints of equal segments of its frame numbers.

    Args:
        total (`int`): frames of the clip.
        num_frames (`int`): how many to take; some are taken twice where the clip has fewer.
    """
    segment = (total - 1) / num_frames
    middles = [(segment * i + segment * (i + 1)) / 2 for i in range(num_frames)]
    return [int(index) for index in np.round(np.array(middles) + 1e-6)]


def sound_pieces(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """
    Of a clip's sound `(samples,)`: pieces that begin at equal distances, one after the other. Of sound shorter than a
    piece all of it, as often as there are pieces.
    """
    # In floating point where the original's is, so that the pieces begin at the same samples.
    last_start = Fraction(max(len(waveform) / sampling_rate - PIECE_SECONDS, 0))
    starts = [last_start / (SOUND_PIECES - 1) * i for i in range(SOUND_PIECES)]
    bounds = [(int(start * sampling_rate), int((start + PIECE_SECONDS) * sampling_rate)) for start in starts]
    return np.concatenate([waveform[begin:end] for begin, end in bounds])


def pad_to_square(frame: np.ndarray, colour: list[float]) -> np.ndarray:
    """
    A frame `(height, width, 3)`, uint8, in the middle of a square.

    Args:
        frame (`np.ndarray`): the frame.
        colour (`list[float]`): of the margins, red, green and blue from 0 to 1: the image processor's mean.
    """
    height, width = frame.shape[:2]
    if height == width:
        return frame
    edge = max(height, width)
    square = np.empty((edge, edge, 3), dtype=np.uint8)
    square[:] = [int(value * 255) for value in colour]
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = frame
    return square
