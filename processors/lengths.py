"""How many tokens a clip becomes: the one place that knows, for every supported tower."""

import math

from transformers import PreTrainedConfig

CONNECTOR_STRIDE = 2  # SpatioTemporalConvConnector: Conv3d, kernel = stride = 2 over time, height and width
HOP_LENGTH = 160  # samples between two spectrogram frames of 16 kHz sound (10 ms): Whisper, AST, BEATs
FRAME_LENGTH = 400  # samples one Kaldi filter bank frame spans (25 ms): AST, BEATs
BEATS_PATCH = 16  # BEATs' patches: 16 frames × 16 of the 128 Mel bins
BEATS_MEL_BINS = 128


def video_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Patches of one frame as (rows, columns).

    Args:
        image_size (`tuple[int, int]`): (height, width) in pixels, as the image processor makes them.
        patch_size (`int`): edge of a patch in pixels.

    Raises:
        ValueError: the frame is too small for one output of the connector.
    """
    rows, columns = (size // patch_size for size in image_size)
    if min(rows, columns) < CONNECTOR_STRIDE:
        raise ValueError(
            f"frames of {image_size[0]}×{image_size[1]} pixels give {rows}×{columns} patches of {patch_size}; the "
            f"connector needs at least {CONNECTOR_STRIDE}×{CONNECTOR_STRIDE}: use larger frames"
        )
    return rows, columns


def video_tokens(num_frames: int, grid: tuple[int, int]) -> int:
    """Tokens of `num_frames` frames of `grid` (rows, columns) patches after the connector."""
    return math.prod(size // CONNECTOR_STRIDE for size in (num_frames, *grid))


def frames_for_fps(duration: float, fps: float, most: int) -> int:
    """Frames that `fps` asks for in `duration` seconds: a positive multiple of the connector's stride, ≤ `most`."""
    return min(math.ceil(max(duration * fps, 1.0) / CONNECTOR_STRIDE) * CONNECTOR_STRIDE, most)


def audio_tower_lengths(config: PreTrainedConfig, seconds: float | None) -> tuple[int, int]:
    """The full window of an audio tower and what the tower makes of it.

    Args:
        config (`PreTrainedConfig`): the tower's; Whisper, the wav2vec2 family (wav2vec2, HuBERT, WavLM, …), AST, BEATs.
        seconds (`float`, *optional*): length of the window for towers that take any; `None` for 30 s. Whisper and AST
            have a fixed one.

    Returns:
        `tuple[int, int]`: samples of 16 kHz sound in the window, vectors that the tower gives for them (without class
        tokens).

    Raises:
        ValueError: the tower is of no known kind, has a fixed window other than `seconds`, or `seconds` is too short.
    """
    kind = config.model_type
    if kind == "whisper":
        samples = config.max_source_positions * 2 * HOP_LENGTH  # the encoder's second convolution has stride 2
        vectors = config.max_source_positions
    elif kind == "audio-spectrogram-transformer":
        samples = (config.max_length - 1) * HOP_LENGTH + FRAME_LENGTH
        vectors = math.prod(
            (size - config.patch_size) // stride + 1
            for size, stride in (
                (config.num_mel_bins, config.frequency_stride),
                (config.max_length, config.time_stride),
            )
        )
    else:
        samples = round((30.0 if seconds is None else seconds) * 16_000)
        if kind == "beats":
            vectors = ((samples - FRAME_LENGTH) // HOP_LENGTH + 1) // BEATS_PATCH * (BEATS_MEL_BINS // BEATS_PATCH)
        elif hasattr(config, "conv_kernel"):
            vectors = samples
            for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
                vectors = (vectors - kernel) // stride + 1
        else:
            raise ValueError(
                f"no known lengths for an audio tower of type {kind!r}; use Whisper, wav2vec2, HuBERT, WavLM, AST or BEATs"
            )
    if seconds is not None and abs(samples - seconds * 16_000) > FRAME_LENGTH:
        raise ValueError(
            f"audio_seconds is {seconds}, but this {kind} has a fixed window of {samples / 16_000:g} s; leave audio_seconds out"
        )
    if vectors < 1:
        raise ValueError(f"audio_seconds of {samples / 16_000:g} is too short for one vector of this {kind}")
    return samples, vectors


def audio_input_shape(config: PreTrainedConfig, window: int) -> tuple[int, ...]:
    """What an audio tower takes for one clip of `window` samples, without the batch axis."""
    if config.model_type == "whisper":
        return config.num_mel_bins, 2 * config.max_source_positions
    if config.model_type == "audio-spectrogram-transformer":
        return config.max_length, config.num_mel_bins
    if config.model_type == "beats":
        return (window - FRAME_LENGTH) // HOP_LENGTH + 1, BEATS_MEL_BINS
    return (window,)


def pooled(vectors: int, pooling: int) -> int:
    """Vectors left after the projector stacked groups of `pooling` into one; the last group may be short."""
    return math.ceil(vectors / pooling)


def valid_audio_tokens(samples: int, window: int, tokens: int) -> int:
    """How many of the `tokens` of a full `window` hold sound, where a clip has `samples` samples: at least one."""
    return max(1, math.ceil(min(samples, window) * tokens / window))
