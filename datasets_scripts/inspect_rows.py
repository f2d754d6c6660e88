"""What a corpus consists of: tables of counts, labels, lengths and overlaps, and a sheet to look at."""

import base64
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from multimood.processors.turn import CLIPS_PER_TURN, LABELS

from .mesc import MescDialogue, dialogue_rows
from .schema import Row

FIELDS = (*LABELS, "problem_type")
UNLABELLED = "(none)"
STRIP = (8, 120)  # frames of a sampled row, height of each in pixels
WAVE = (960, 80)  # width and height of its waveform in pixels


@dataclass
class RowStatistics:
    """Counts over rows, taken one at a time, so that no corpus is too large."""

    rows: int = 0
    with_clips: int = 0
    clips: int = 0
    with_response: int = 0
    labels: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in FIELDS})
    rows_of_dialogue: Counter = field(default_factory=Counter)
    history_lengths: Counter = field(default_factory=Counter)  # utterances before the row
    words: Counter = field(default_factory=Counter)  # of the client's turn
    response_words: Counter = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        self.clips += len(row["videos"])
        self.with_clips += bool(row["videos"])
        self.with_response += row["response"] is not None
        for name, counts in self.labels.items():
            counts[row[name] or UNLABELLED] += 1
        self.rows_of_dialogue[row["dialogue_id"]] += 1
        self.history_lengths[len(row["history"])] += 1
        self.words[len(row["utterance"].split())] += 1
        if row["response"] is not None:
            self.response_words[len(row["response"].split())] += 1

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "RowStatistics":
        """The statistics of rows."""
        statistics = cls()
        for row in rows:
            statistics.add(row)
        return statistics

    def summary(self) -> dict[str, Any]:
        """Sizes, labels with their counts (most frequent first) and mean lengths, ready for JSON."""
        return {
            "rows": self.rows,
            "dialogues": len(self.rows_of_dialogue),
            "rows_with_clips": self.with_clips,
            "clips": self.clips,
            "rows_with_response": self.with_response,
            "mean_history_utterances": _mean(self.history_lengths),
            "mean_words": _mean(self.words),
            "mean_response_words": _mean(self.response_words),
            "labels": {name: dict(counts.most_common()) for name, counts in self.labels.items()},
        }


def _mean(lengths: Counter) -> float | None:
    """The mean of counted lengths; `None` where there are none."""
    return round(sum(value * count for value, count in lengths.items()) / lengths.total(), 2) if lengths else None


def mesc_tables(dialogues: Sequence[MescDialogue], splits: Mapping[str, Sequence[MescDialogue]]) -> dict[str, Any]:
    """The figures of MESC: sizes, lengths, labels, official dialogues matched, overlaps and majority baselines.

    Args:
        dialogues: all of the corpus.
        splits: name → its dialogues.
    """
    said = [utterance for dialogue in dialogues for utterance in dialogue.utterances]
    rows = {name: [row for dialogue in of for row in dialogue_rows(dialogue)] for name, of in splits.items()}
    return {
        "dialogues": len(dialogues),
        "utterances": len(said),
        "episodes": len({utterance.episode_key for utterance in said}),
        "utterances a dialogue": round(len(said) / len(dialogues), 1),
        "merged turns a dialogue": round(sum(map(_merged_turns, dialogues)) / len(dialogues), 1),
        "words an utterance": round(sum(len(utterance.text.split()) for utterance in said) / len(said), 1),
        "emotion": dict(Counter(utterance.emotion for utterance in said).most_common()),
        "strategy": dict(Counter(utterance.strategy for utterance in said if utterance.strategy).most_common()),
        "official dialogues matched one to one": dict(Counter(d.split for d in dialogues if d.split).most_common()),
        "problem types": dict(Counter(d.problem_type for d in dialogues if d.problem_type).most_common()),
        "splits": {
            name: {
                "dialogues": len(of),
                "utterances": sum(len(dialogue.utterances) for dialogue in of),
                "episodes": len(_episodes(of)),
                "hand-overs": len(rows[name]),
                "majority": {label: _majority(rows[name], label) for label in LABELS},
            }
            for name, of in splits.items()
        },
        "episodes in both": {
            f"{one} and {other}": len(_episodes(splits[one]) & _episodes(splits[other]))
            for i, one in enumerate(splits)
            for other in list(splits)[i + 1 :]
        },
        "utterances that begin before the one before has ended": sum(
            later.start < earlier.end for dialogue in dialogues for earlier, later in pairwise(dialogue.utterances)
        ),
    }


def _merged_turns(dialogue: MescDialogue) -> int:
    speakers = [utterance.speaker for utterance in dialogue.utterances]
    return 1 + sum(one != other for one, other in pairwise(speakers))


def _episodes(dialogues: Iterable[MescDialogue]) -> set[str]:
    return {utterance.episode_key for dialogue in dialogues for utterance in dialogue.utterances}


def _majority(rows: Sequence[Row], label: str) -> str | None:
    if not rows:
        return None
    name, count = Counter(row[label] for row in rows).most_common(1)[0]
    return f"{name} {count / len(rows):.1%}"


def format_table(content: Mapping[str, Any], indent: int = 0) -> str:
    """Nested counts as lines of text, the numbers in a column."""
    lines = []
    width = max((len(str(name)) for name in content), default=0)
    for name, value in content.items():
        if isinstance(value, Mapping):
            lines += [f"{'':{indent}}{name}", format_table(value, indent + 4)] if value else []
        else:
            shown = f"{value:,}" if isinstance(value, int | float) else str(value if value is not None else "-")
            lines.append(f"{'':{indent}}{name:<{width}}  {shown:>8}")
    return "\n".join(lines)


def write_sheet(
    path: str | Path, title: str, splits: Mapping[str, Sequence[Row]], samples: int, seed: int = 0
) -> Path:
    """Write an HTML page that needs no other file: labels and lengths of each split, and some rows with their clips.

    Args:
        path: the page.
        title: of the corpus.
        splits: name → rows.
        samples: how many rows with clips, drawn by `seed` over all splits, are shown as frames and waveform.
        seed: of the draw.
    """
    statistics = {name: RowStatistics.of(rows) for name, rows in splits.items()}
    charts = [
        _bars(f"{name}: {label.replace('_', ' ')}", dict(of.labels[label].most_common(20)))
        for name, of in statistics.items()
        for label in FIELDS
        if set(of.labels[label]) != {UNLABELLED}
    ]
    charts += [
        _bars(f"{name}: rows of a dialogue", _histogram(Counter(of.rows_of_dialogue.values())))
        for name, of in statistics.items()
    ]
    with_clips = [(name, row) for name, rows in splits.items() for row in rows if row["videos"]]
    chosen = np.random.default_rng(seed).permutation(len(with_clips))[:samples]
    shown = [_sample(*with_clips[i]) for i in chosen] or ["<p>No row has a clip.</p>"]
    sizes = {name: {k: v for k, v in of.summary().items() if k != "labels"} for name, of in statistics.items()}
    page = _PAGE.format(
        title=html.escape(title),
        sizes=html.escape(format_table(sizes)),
        charts="\n".join(charts),
        samples="\n".join(shown),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _histogram(lengths: Counter, bins: int = 12) -> dict[str, int]:
    """Counted lengths in at most `bins` equal ranges."""
    if not lengths:
        return {}
    step = -(-(max(lengths) + 1) // bins)
    counts = Counter(dict.fromkeys(range(0, max(lengths) + 1, step), 0))
    for length, count in lengths.items():
        counts[length // step * step] += count
    return {(f"{start}-{start + step - 1}" if step > 1 else str(start)): counts[start] for start in sorted(counts)}


def _bars(title: str, counts: Mapping[str, int]) -> str:
    most, total = max(counts.values(), default=1), sum(counts.values())
    rows = "".join(
        f'<tr><th>{html.escape(str(name))}</th><td><i style="width:{240 * count / most:.0f}px"></i>'
        f"{count:,} ({count / total:.1%})</td></tr>"
        for name, count in counts.items()
    )
    return f"<figure><figcaption>{html.escape(title)}</figcaption><table>{rows}</table></figure>"


def _sample(split: str, row: Row) -> str:
    """One row: its frames, its waveform and its words."""
    from multimood.processors.media import MediaError, load_clip  # loads torch, which no table needs

    clips = row["videos"][-CLIPS_PER_TURN:]
    try:
        clip = load_clip(clips, num_frames=STRIP[0])
        media = "".join(
            f'<img alt="{alt}" src="data:image/png;base64,{_png(image)}">'
            for alt, image in (("frames", _strip(clip.frames)), ("waveform", _waveform(clip.waveform)))
            if image is not None
        )
        media += f"<p>{clip.duration:.2f} s in {len(clips)} clip(s)</p>"
    except MediaError as error:  # a sheet is there to show this, too
        media = f'<p class="error">{html.escape(str(error))}</p>'
    lines = "".join(
        f"<tr><th>{name.replace('_', ' ')}</th><td>{html.escape(str(row[name]))}</td></tr>"
        for name in ("utterance", *LABELS, "response")
        if row[name] is not None
    )
    heading = html.escape(f"{split}: {row['dialogue_id']}, turn {row['turn_id']}")
    return f"<section><h3>{heading}</h3>{media}<table>{lines}</table></section>"


def _strip(frames: Sequence[np.ndarray]) -> Image.Image | None:
    """Frames side by side."""
    images = [Image.fromarray(frame) for frame in frames]
    images = [image.resize((round(image.width * STRIP[1] / image.height), STRIP[1])) for image in images]
    if not images:
        return None
    strip = Image.new("RGB", (sum(image.width for image in images), STRIP[1]))
    x = 0
    for image in images:
        strip.paste(image, (x, 0))
        x += image.width
    return strip


def _waveform(samples: np.ndarray | None) -> Image.Image | None:
    """The range of the sound in each column, full scale at the edges, with a tick a second."""
    if samples is None:
        return None
    from multimood.processors.media import SAMPLING_RATE

    width, height = WAVE
    image = Image.new("RGB", WAVE, "white")
    draw = ImageDraw.Draw(image)
    for second in range(int(len(samples) / SAMPLING_RATE) + 1):
        x = second * SAMPLING_RATE * width // len(samples)
        draw.line((x, 0, x, height), fill=(210, 210, 210))
    for x, part in enumerate(np.array_split(samples, width)):
        if len(part):
            low, high = height / 2 * (1 - np.clip([part.max(), part.min()], -1, 1))
            draw.line((x, low, x, high), fill=(40, 90, 160))
    return image


def _png(image: Image.Image) -> str:
    content = BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }}
main {{ display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start; }}
figure {{ margin: 0; }} figcaption {{ font-weight: 600; margin-bottom: .4em; }}
table {{ border-collapse: collapse; }} th {{ font-weight: 400; text-align: right; padding-right: .6em; vertical-align: top; }}
td {{ white-space: pre-wrap; }} td i {{ display: inline-block; height: .8em; margin-right: .4em; background: #4a7fb5; }}
section {{ margin: 1.5em 0; }} img {{ display: block; max-width: 100%; }} .error {{ color: #a00; }}
</style>
<h1>{title}</h1>
<pre>{sizes}</pre>
<main>
{charts}
</main>
<h2>Sampled rows</h2>
{samples}
</html>
"""
