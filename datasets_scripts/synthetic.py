"""A corpus made from nothing, whose answers need every part of the model.

- The client's emotion shows *only* in the drawn face and the synthetic voice: no word depends on it.
- The strategy follows from that emotion and from the stage of the talk, which the therapist's last words tell.
- The response names a fact the client told 4 to 60 utterances earlier, by then long out of the verbatim window.

Train, validation and test share no face, no voice and no dialogue. The facts' values come from one vocabulary, but a
combination of facts belongs to one split only. Everything is a function of `(split, seed, index)`.

    python -m multimood.datasets_scripts.synthetic --split train --rows 3000 --seed 0 --out data/synthetic
"""

import argparse
import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from multimood.processors.turn import EMOTIONS

from .drawn_clip import Person, render_clip
from .schema import Row, Utterance, write_rows

SPLITS = ("train", "validation", "test")
# Which tracks the clips of a corpus have: shares of picture and sound, picture alone, sound alone.
TRACKS = {"both": (1, 0, 0), "picture": (0, 1, 0), "sound": (0, 0, 1), "mixed": (4, 3, 3), "none": (1, 0, 0)}

NAMES = tuple(
    "Nora Elias Maya Jonas Clara Felix Amira Oscar Lena Hugo Sofia Milan Ruth Anton Greta Samir "
    "Ida Victor Paula Simon Alma Conrad Julia Tariq".split()
)
PET_NAMES = tuple("Biscuit Shadow Pepper Rusty Luna Waffles Ziggy Mango Olive Comet Hazel Domino".split())
CITIES = tuple("Oslo Lisbon Vienna Dublin Cairo Lima Prague Kyoto Bergen Turin Quebec Krakow Nairobi Seville".split())
HOBBIES = tuple("chess pottery climbing gardening painting sailing archery knitting cycling baking fencing".split())
WORKS = tuple("nurse baker pilot lawyer plumber florist tailor waiter painter carpenter librarian".split())

# What a fact is about → how it is told, and its values. The subject's own word comes back when the client returns to it.
FACTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{
        relation: (
            (f"My {relation} is called {{}}.", f"My {relation}'s name is {{}}.", f"I have a {relation}, {{}}."),
            NAMES,
        )
        for relation in ("sister", "brother", "friend", "boss", "teacher", "neighbour", "cousin", "aunt")
    },
    **{
        pet: ((f"My {pet} is called {{}}.", f"We named the {pet} {{}}.", f"I have a {pet}, {{}}."), PET_NAMES)
        for pet in ("dog", "cat")
    },
    "town": (("My home town is {}.", "The town I come from is {}.", "I grew up in a town, {}."), CITIES),
    "hobby": (("My hobby is {}.", "For years my hobby was {}.", "I have a hobby, {}."), HOBBIES),
    "work": (("My work is being a {}.", "I found work as a {}.", "At work I am a {}."), WORKS),
}

RETURNS = (
    "It is about my {} again.",
    "I keep thinking about my {}.",
    "Something came up with my {}.",
    "Can we talk about my {}?",
    "My {} is on my mind today.",
    "There is news about my {}.",
)

TOPICS: dict[str, tuple[str, ...]] = {
    "family conflict": ("the dinner", "the visit", "the quarrel", "the house", "the holiday"),
    "work pressure": ("the deadline", "the meeting", "the project", "the office", "the review"),
    "poor sleep": ("the night", "the alarm", "the bed", "the dream", "the morning"),
    "study stress": ("the exam", "the class", "the essay", "the library", "the grade"),
    "moving away": ("the flat", "the boxes", "the street", "the train", "the new place"),
    "health worry": ("the clinic", "the test", "the walk", "the letter", "the doctor"),
}

CLIENT_FILLERS = (
    "Yesterday {} took most of the day.",
    "I told you about {} before.",
    "On {day} there was {} again.",
    "Then {} came, and I went home.",
    "I wrote down a few things about {}.",
    "After {} I sat in the kitchen.",
    "We spoke about {} on {day}.",
    "I do not know what to say about {}.",
)
THERAPIST_FILLERS = (
    "Tell me more about {}.",
    "What happened after {}?",
    "So {} was on {day}.",
    "I am listening.",
    "Take your time.",
    "How was {} for you?",
    "Let us stay with {} a little.",
)
THANKS = ("Thank you for telling me.", "That is good to know.", "I will keep that in mind.")
DAYS = ("Monday", "Tuesday", "Thursday", "Saturday", "Sunday")

STAGES: dict[str, tuple[str, ...]] = {
    "opening": ("We have only just begun.", "Welcome, let us begin.", "This is our beginning."),
    "exploring": ("Let us look closer.", "I want to look closer with you.", "We can look closer now."),
    "working": ("Let us try a step.", "Now we can try something.", "It is time to try a step."),
    "closing": ("Our time is nearly over.", "We are near the end for today.", "Soon our time is over."),
}

# Strategy by the client's emotion, at the stages opening, exploring, working, closing.
STRATEGY_TABLE: dict[str, tuple[str, str, str, str]] = {
    "anger": (
        "open question",
        "restatement",
        "guiding the pace and depth of the conversation",
        "communication skills",
    ),
    "sadness": ("communication skills", "open question", "self-disclosure", "approval"),
    "disgust": ("open question", "interpretation", "restatement", "others"),
    "depression": ("communication skills", "restatement", "advisement", "structuring the therapy"),
    "neutral": ("structuring the therapy", "open question", "interpretation", "others"),
    "joy": ("approval", "self-disclosure", "approval", "advisement"),
    "fear": (
        "guiding the pace and depth of the conversation",
        "interpretation",
        "advisement",
        "structuring the therapy",
    ),
}

# The therapist's own emotion: moved by the strongest feelings, calm otherwise.
THERAPIST_EMOTION = {"joy": "joy", "sadness": "sadness", "depression": "sadness"}

ACKNOWLEDGEMENT = {
    "anger": "I can hear how angry you are.",
    "sadness": "I can see that this makes you sad.",
    "disgust": "I see how much this repels you.",
    "depression": "I notice how heavy everything feels.",
    "neutral": "I follow you.",
    "joy": "It is lovely to see you so glad.",
    "fear": "I can tell that you are afraid.",
}
REMEMBERED = {"town": "You told me about your town, {}.", "hobby": "You told me about your hobby, {}."}
STRATEGY_SENTENCE = {
    "open question": "What is that like for you?",
    "approval": "You did well.",
    "self-disclosure": "I have felt something like it too.",
    "restatement": "So this is what stays with you.",
    "interpretation": "Maybe it stands for something older.",
    "advisement": "You could write it down tonight.",
    "communication skills": "I am here with you.",
    "structuring the therapy": "Let us plan what comes next.",
    "guiding the pace and depth of the conversation": "We can go slowly.",
    "others": "Good.",
}

_PEOPLE = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}  # first person seed of each split


@dataclass(frozen=True)
class _Clip:
    """What one clip shows; rendered apart from the words, in parallel."""

    path: Path
    person_seed: int
    emotion: str
    seconds: float
    seed: int
    picture: bool
    sound: bool

    def render(self) -> None:
        if self.path.exists():  # finished earlier: rendering is deterministic and atomic
            return
        part = self.path.with_suffix(".part.mp4")
        render_clip(
            part,
            Person.from_seed(self.person_seed),
            self.emotion,
            seconds=self.seconds,
            seed=self.seed,
            picture=self.picture,
            sound=self.sound,
        )
        part.replace(self.path)


def told_facts(row: Row) -> dict[str, tuple[str, int]]:
    """The facts told in a synthetic row's history: subject → (value, utterances back)."""
    facts = {}
    for back, utterance in enumerate(reversed(row["history"]), start=1):
        for subject, (templates, values) in FACTS.items():
            for template in templates:
                head, tail = template.split("{}")
                text = utterance["text"]
                value = text[len(head) : len(text) - len(tail)]
                if text.startswith(head) and text.endswith(tail) and value in values:
                    facts[subject] = (value, back)
    return facts


def asked_fact(row: Row) -> tuple[str, str, int]:
    """The fact a synthetic row's response has to name: (subject, value, utterances back)."""
    subject = next(s for s in FACTS if s in row["utterance"].rstrip("?.").split())
    return subject, *told_facts(row)[subject]


def _split_of(facts: dict[str, str]) -> str:
    """The split that owns a combination of facts: a tenth each to validation and test."""
    bucket = zlib.crc32(repr(sorted(facts.items())).encode()) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _draw_facts(rng: random.Random, split: str, most: int) -> dict[str, str]:
    while True:
        subjects = rng.sample(sorted(FACTS), rng.randint(min(3, most), min(6, most)))
        facts = {subject: rng.choice(FACTS[subject][1]) for subject in subjects}
        if len(set(facts.values())) == len(facts) and _split_of(facts) == split:
            return facts


def _filler(rng: random.Random, templates: tuple[str, ...], topic: str) -> str:
    return rng.choice(templates).format(rng.choice(TOPICS[topic]), day=rng.choice(DAYS))


def _dialogue(
    rng: random.Random, split: str, topic: str, distance: int, stage: str
) -> tuple[list[Utterance], str, str]:
    """A dialogue whose asked fact lies `distance` utterances back: (history, asked subject, its value)."""
    length = distance + 2 * rng.randint(0, 6)  # utterances; even, so that the therapist spoke last
    # The client speaks at even places. The verbatim tail never holds a fact, and every fact has a place of its own.
    places = [place for place in range(0, length - 4, 2) if place != length - distance]
    rng.shuffle(places)
    facts = _draw_facts(rng, split, most=1 + len(places))
    asked, *others = facts
    told = {length - distance: asked, **dict(zip(places, others, strict=False))}

    history: list[Utterance] = []
    for place in range(length):
        if place in told:
            subject = told[place]
            text = rng.choice(FACTS[subject][0]).format(facts[subject])
        elif place % 2 == 0:
            text = _filler(rng, CLIENT_FILLERS, topic)
        elif place == length - 1:
            text = rng.choice(STAGES[stage])
        elif place - 1 in told:
            text = rng.choice(THANKS)
        else:
            text = _filler(rng, THERAPIST_FILLERS, topic)
        speaker = "client" if place % 2 == 0 else "therapist"
        history.append({"speaker": speaker, "text": text, "emotion": None, "strategy": None})
    return history, asked, facts[asked]


def _draw_row(
    split: str, seed: int, index: int, clips_dir: Path, tracks: str, distances: tuple[int, int]
) -> tuple[Row, _Clip]:
    rng = random.Random(f"{seed}/{split}/{index}")
    emotion = EMOTIONS[index % len(EMOTIONS)]  # balanced, whatever the size
    stage_index = rng.randrange(len(STAGES))
    topic = rng.choice(sorted(TOPICS))
    distance = 2 * rng.randint(distances[0] // 2, distances[1] // 2)
    history, subject, value = _dialogue(rng, split, topic, distance, list(STAGES)[stage_index])
    strategy = STRATEGY_TABLE[emotion][stage_index]
    remembered = REMEMBERED.get(subject, f"You told me about your {subject}, {{}}.").format(value)
    shown = rng.choices(("both", "picture", "sound"), TRACKS[tracks])[0]
    clip = _Clip(
        path=clips_dir / f"{split}-{seed}-{index:06d}-{shown}.mp4",
        person_seed=_PEOPLE[split] + rng.randrange(1_000_000_000),
        emotion=emotion,
        seconds=rng.uniform(1.6, 2.4),
        seed=rng.randrange(1 << 31),
        picture=shown != "sound",
        sound=shown != "picture",
    )
    row: Row = {
        "dialogue_id": f"synthetic-{split}-{seed}-{index}",
        "turn_id": len(history) // 2,
        "problem_type": topic,
        "situation": None,
        "history": history,
        "videos": [] if tracks == "none" else [str(clip.path)],
        "utterance": rng.choice(RETURNS).format(subject),
        "client_emotion": emotion,
        "therapist_emotion": THERAPIST_EMOTION.get(emotion, "neutral"),
        "strategy": strategy,
        "response": f"{ACKNOWLEDGEMENT[emotion]} {remembered} {STRATEGY_SENTENCE[strategy]}",
    }
    return row, clip


def generate_rows(
    split: str,
    n: int,
    seed: int,
    clips_dir: str | Path,
    *,
    tracks: str = "mixed",
    distances: tuple[int, int] = (10, 60),
    workers: int = 1,
) -> list[Row]:
    """Draws `n` rows and their clips; the same arguments give the same rows and pictures.

    Args:
        split: "train", "validation" or "test".
        n: how many rows.
        seed: any integer; another seed gives other dialogues, other people and other takes.
        clips_dir: folder for the clips; those already there are kept, so an interrupted call can be repeated.
        tracks: "both" (every clip has picture and sound), "picture", "sound", "mixed" (three tenths silent, three
            tenths without picture) or "none" (words alone, of which the emotion cannot be told).
        distances: how many utterances ago the asked fact was told, least and most.
        workers: processes that draw clips.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if tracks not in TRACKS:
        raise ValueError(f"tracks is {tracks!r}; use one of {', '.join(TRACKS)}")
    if not 4 < distances[0] <= distances[1]:
        raise ValueError(f"distances is {distances}; give (least, most) with 4 < least <= most")
    clips_dir = Path(clips_dir).resolve()
    clips_dir.mkdir(parents=True, exist_ok=True)
    rows, clips = [], []
    for index in range(n):
        row, clip = _draw_row(split, seed, index, clips_dir, tracks, distances)
        rows.append(row)
        clips += [clip] if row["videos"] else []
    for _ in tqdm(_render(clips, workers), total=len(clips), desc=f"drawing {split} clips", disable=len(clips) < 50):
        pass
    return rows


def _render(clips: list[_Clip], workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(_Clip.render, clips)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_Clip.render, clips, chunksize=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tracks", choices=TRACKS, default="mixed")
    parser.add_argument("--distances", type=int, nargs=2, default=(10, 60), metavar=("LEAST", "MOST"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("data/synthetic"))
    args = parser.parse_args()
    rows = generate_rows(
        args.split,
        args.rows,
        args.seed,
        args.out / "clips",
        tracks=args.tracks,
        distances=tuple(args.distances),
        workers=args.workers,
    )
    print(f"wrote {write_rows(rows, args.out / f'{args.split}.jsonl')}: {len(rows)} rows")


if __name__ == "__main__":
    main()
