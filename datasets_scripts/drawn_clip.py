"""Clips of a drawn, speaking face: the pictures and sounds of the synthetic corpus.

A clip shows one of seven emotions twice, in the face and in the voice, and each alone tells them apart. Everything
else (who is drawn, the room, the noise, the syllables) comes from the person or the seed and says nothing about it.

The expressions are caricatures of the prototypes of Ekman and Friesen's *Facial Action Coding System* (1978); the
prosody follows the table of Juslin and Laukka, "Communication of emotions in vocal expression and music performance"
(Psychological Bulletin 129, 2003), exaggerated so that a tiny model can learn it in minutes.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

SAMPLE_RATE = 16_000  # Hz

_SUPERSAMPLE = 2
_CIRCLE = np.exp(2j * np.pi * np.arange(28) / 28)
_ACROSS = np.linspace(-1, 1, 13)  # from the left to the right corner of a mouth

# Highest first formants and lowest second ones (Hz) of the vowels a, e, i, o, u of an average adult.
_VOWELS = ((750, 1250), (500, 1850), (320, 2250), (480, 950), (350, 800))

_SKINS = ((246, 214, 190), (234, 190, 160), (214, 164, 128), (190, 138, 100), (160, 112, 80), (134, 94, 68))
_HAIRS = ((30, 24, 22), (72, 46, 30), (120, 78, 44), (196, 156, 88), (150, 60, 36), (168, 168, 168))


@dataclass(frozen=True)
class Person:
    """Who is drawn and speaks: all that a model must learn to ignore.

    Lengths are in half-heights of the face, positions in shares of the picture.
    """

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    hair_shape: str  # "short", "long", "bald" or "cap"
    lips: tuple[int, int, int]
    background: tuple[int, int, int]
    clothes: tuple[int, int, int]
    glasses: bool
    face_size: float  # half-height, in shares of the picture's
    face_width: float
    face_x: float
    face_y: float
    eye_distance: float
    eye_size: float
    mouth_width: float
    nose_length: float
    camera_noise: float  # standard deviation, in grey levels
    pitch: float  # of the calm voice, in Hz
    vocal_tract: float  # factor on all formants
    pulse_width: float  # of the glottal pulse, in seconds: small is bright
    loudness: float  # in dB
    rate: float  # factor on the syllables a second
    noise: float  # of the room, in dB below full scale (negative)

    @classmethod
    def from_seed(cls, seed: int) -> "Person":
        """The person of number `seed`; other numbers are other people.

        Raises:
            ValueError: if `seed` is negative.
        """
        if seed < 0:
            raise ValueError(f"A person's seed must not be negative, got {seed}.")
        rng = np.random.default_rng([0x9E5, seed])

        def colour(base, spread):
            return tuple(int(c) for c in np.clip(np.asarray(base) + rng.uniform(-spread, spread, 3), 0, 255))

        skin = colour(_SKINS[rng.integers(len(_SKINS))], 10)
        return cls(
            skin=skin,
            hair=colour(_HAIRS[rng.integers(len(_HAIRS))], 12),
            hair_shape=("short", "long", "bald", "cap")[rng.integers(4)],
            lips=colour(np.array(skin) * (0.6, 0.25, 0.25), 15),
            background=colour((130, 130, 130), 60),
            clothes=colour((110, 110, 110), 100),
            glasses=bool(rng.random() < 0.25),
            face_size=rng.uniform(0.385, 0.425),
            face_width=rng.uniform(0.76, 0.88),
            face_x=rng.uniform(0.47, 0.53),
            face_y=rng.uniform(0.49, 0.54),
            eye_distance=rng.uniform(0.33, 0.37),
            eye_size=rng.uniform(0.165, 0.195),
            mouth_width=rng.uniform(0.9, 1.1),
            nose_length=rng.uniform(0.2, 0.28),
            camera_noise=rng.uniform(2, 5),
            # Pitch is heard in ratios, so it is spread evenly over them.
            pitch=float(np.exp(rng.uniform(np.log(90), np.log(260)))),
            vocal_tract=rng.uniform(0.88, 1.15),
            pulse_width=rng.uniform(0.9e-4, 1.3e-4),
            loudness=rng.uniform(-3, 3),
            rate=rng.uniform(0.92, 1.08),
            noise=rng.uniform(-66, -54),
        )


@dataclass(frozen=True)
class _Expression:
    """A face at the height of an emotion; zeros are a face at rest, up is positive, lengths as in `Person`."""

    inner_brow: float = 0.0
    outer_brow: float = 0.0
    eyes: float = 1.0  # opening; 1 is a face at rest
    cheeks: float = 0.0  # pushing the lower lid up, as in a true smile
    gaze: float = 0.0
    wrinkles: float = 0.0  # of the nose, 0 to 1
    smile: float = 0.0  # height of the corners above the middle of the mouth
    mouth: float = 0.0  # opening
    width: float = 1.0  # of the mouth
    slant: float = 0.0  # of the mouth: one corner up
    teeth: float = 0.0  # share of the open mouth
    tongue: float = 0.0  # put out, 0 to 1
    lift: float = 0.0  # of the head
    tilt: float = 0.0  # of the head, in radians
    sway: float = 0.03  # of the head, from side to side
    sway_rate: float = 0.5  # in Hz
    talk: float = 0.12  # how far a syllable opens the mouth

    def towards(self, apex: "_Expression", share: float) -> "_Expression":
        """The face `share` of the way from this one to `apex`."""
        pairs = ((getattr(self, f.name), getattr(apex, f.name)) for f in fields(self))
        return _Expression(*(a + share * (b - a) for a, b in pairs))


@dataclass(frozen=True)
class _Prosody:
    """How an emotion sounds, relative to the person's calm voice."""

    level: float = 0.0  # of the pitch, in semitones
    phrase_fall: float = 1.0  # semitones from the start to the end of a phrase
    syllable_fall: float = 0.5  # semitones within a syllable
    swing: float = 0.0  # semitones up and down by turns
    tremor: float = 0.0  # semitones, at 8 Hz, and as much of the loudness
    rate: float = 3.6  # syllables a second, pauses not counted
    voiced: float = 0.75  # share of a syllable that sounds
    attack: float = 0.04  # seconds to full loudness
    phrase: int = 99  # syllables between two pauses
    pause: float = 0.0  # seconds
    loudness: float = 0.0  # dB
    dullness: float = 1.0  # factor on the width of the glottal pulse
    breath: float = 0.02  # share of noise
    creak: float = 0.0  # how much weaker each second pulse of the glottis is


_REST = _Expression()
_EXPRESSIONS = {
    "anger": _Expression(
        inner_brow=-0.19, outer_brow=0.1, eyes=0.7, smile=-0.08, mouth=0.2, width=1.1, teeth=1.0, lift=-0.03,
        sway=0.05, sway_rate=1.6, talk=0.1,
    ),
    "sadness": _Expression(
        inner_brow=0.2, outer_brow=-0.1, eyes=0.65, gaze=-0.5, smile=-0.16, width=0.9, lift=-0.08, tilt=0.14,
        sway=0.03, sway_rate=0.3, talk=0.05,
    ),
    "disgust": _Expression(
        inner_brow=-0.12, outer_brow=-0.08, eyes=0.4, cheeks=0.5, wrinkles=1.0, smile=-0.08, mouth=0.2, width=1.15,
        slant=0.2, tongue=1.0, lift=0.06, tilt=-0.14, sway=0.02, talk=0.06,
    ),
    "depression": _Expression(
        inner_brow=0.03, outer_brow=-0.03, eyes=0.2, gaze=-1.0, smile=-0.02, width=0.65, lift=-0.2, sway=0.01,
        sway_rate=0.2, talk=0.03,
    ),
    "neutral": _REST,
    "joy": _Expression(
        inner_brow=0.07, outer_brow=0.1, eyes=0.85, cheeks=0.7, smile=0.17, mouth=0.22, width=1.15, teeth=0.6,
        lift=0.04, sway=0.07, sway_rate=1.1, talk=0.1,
    ),
    "fear": _Expression(
        inner_brow=0.22, outer_brow=0.14, eyes=1.6, smile=-0.03, mouth=0.3, width=0.62, lift=0.02, sway=0.035,
        sway_rate=3.4, talk=0.08,
    ),
}  # fmt: skip
_PROSODIES = {
    "anger": _Prosody(
        level=4, syllable_fall=5, rate=5.2, voiced=0.6, attack=0.01, loudness=9, dullness=0.55, phrase=4, pause=0.12,
    ),
    "sadness": _Prosody(
        level=0, phrase_fall=9, rate=2.4, voiced=0.92, attack=0.12, phrase=3, pause=0.35, loudness=-4, dullness=1.7,
        breath=0.08,
    ),
    "disgust": _Prosody(
        level=-3, syllable_fall=7, rate=1.7, voiced=0.7, attack=0.06, loudness=0, creak=0.8,
    ),
    "depression": _Prosody(
        level=-4, phrase_fall=0, syllable_fall=0, rate=1.9, voiced=0.95, attack=0.1, loudness=-9, dullness=3.2,
    ),
    "neutral": _Prosody(),
    "joy": _Prosody(level=6, swing=5, syllable_fall=-3, rate=4.4, voiced=0.85, loudness=4, dullness=0.8),
    "fear": _Prosody(
        level=10, phrase_fall=-2, tremor=1.5, rate=6.5, voiced=0.7, attack=0.02, loudness=0, breath=0.25,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Speech:
    """When the syllables of a clip begin and end, and where in its phrase each stands."""

    onsets: np.ndarray  # (syllables,) seconds
    ends: np.ndarray  # (syllables,) seconds
    place: np.ndarray  # (syllables,) 0 at the start of a phrase, 1 at its end
    attack: float

    @classmethod
    def plan(cls, person: Person, prosody: _Prosody, seconds: float, rng: np.random.Generator) -> "_Speech":
        # A phrase's first syllable may fall anywhere, else the beginning of a clip would always be the same.
        start, step = rng.uniform(0, 0.12), 1 / (prosody.rate * person.rate)
        first = int(rng.integers(prosody.phrase)) if prosody.pause else 0
        onsets, ends, place = [], [], []
        number = first
        while start < seconds - 0.05:
            length = step * rng.uniform(0.88, 1.12)
            onsets.append(start)
            ends.append(start + prosody.voiced * length)
            place.append(number % prosody.phrase / max(1, prosody.phrase - 1) if prosody.pause else start / seconds)
            number += 1
            start += length + (prosody.pause * rng.uniform(0.85, 1.15) if number % prosody.phrase == 0 else 0)
        return cls(np.array(onsets), np.array(ends), np.array(place), prosody.attack)

    def loudness(self, times: np.ndarray) -> np.ndarray:
        """Loudness at `times` (seconds), from 0 to 1, of the same shape."""
        attack = np.minimum(self.attack, 0.4 * (self.ends - self.onsets))
        release = np.minimum(0.05, 0.4 * (self.ends - self.onsets))
        corners = np.stack([self.onsets, self.onsets + attack, self.ends - release, self.ends], 1)
        return np.interp(times, corners.ravel(), np.tile([0.0, 1.0, 0.8, 0.0], len(corners)))


def render_clip(
    path: str | Path,
    person: Person,
    emotion: str,
    *,
    seconds: float = 2.0,
    seed: int = 0,
    picture: bool = True,
    sound: bool = True,
    size: int = 64,
    fps: int = 8,
) -> None:
    """Writes an mp4 of `person` speaking under `emotion`.

    The same arguments give the same frames and samples. H.264 (MPEG-4 part 2 where PyAV was built without libx264)
    and AAC, 16 kHz mono.

    Args:
        path: File to write.
        person: Who is seen and heard.
        emotion: One of anger, sadness, disgust, depression, neutral, joy, fear.
        seconds: Length, to the nearest frame.
        seed: Of all that differs from clip to clip of one person: movement, syllables, noise.
        picture: Whether the clip has a video track.
        sound: Whether the clip has an audio track.
        size: Width and height in pixels, even.
        fps: Frames a second.

    Raises:
        ValueError: if the emotion is unknown, neither track is asked for, the size is odd or no frame fits.
    """
    if emotion not in _EXPRESSIONS:
        raise ValueError(f"Unknown emotion {emotion!r}; choose one of {', '.join(_EXPRESSIONS)}.")
    if not (picture or sound):
        raise ValueError("A clip needs a picture or a sound: leave at least one of `picture` and `sound` True.")
    if size < 16 or size % 2:
        raise ValueError(f"`size` must be even and at least 16 pixels, got {size}.")
    frames = round(seconds * fps)
    if frames < 1:
        raise ValueError(f"{seconds} s at {fps} frames a second holds no frame; ask for at least {1 / fps} s.")
    seconds = frames / fps
    speech_rng, face_rng, voice_rng = np.random.default_rng([0xC11, seed]).spawn(3)
    prosody = _PROSODIES[emotion]
    speech = _Speech.plan(person, prosody, seconds, speech_rng)
    video = _draw(person, _EXPRESSIONS[emotion], speech, frames, fps, size, face_rng) if picture else None
    audio = _speak(person, prosody, speech, seconds, voice_rng) if sound else None
    _write(path, video, fps, audio)


def _draw(person, apex, speech, frames, fps, size, rng) -> np.ndarray:
    """The frames (T, size, size, 3) uint8: rest, a quick onset, then the expression held, blinking and talking."""
    times = (np.arange(frames) + 0.5) / fps
    onset, rise = rng.uniform(0, 0.1), rng.uniform(0.15, 0.3)
    strength = rng.uniform(0.9, 1.1)
    blink = rng.integers(frames) if frames > 4 else -1
    sway_phase = rng.uniform(0, 2 * np.pi)
    talking = speech.loudness(times)
    light = rng.uniform(0.94, 1.06)
    noise = rng.standard_normal((frames, size, size, 1), dtype=np.float32) * person.camera_noise

    pictures = np.empty((frames, size, size, 3), np.float32)
    for i, time in enumerate(times):
        share = min(1.0, max(0.0, (time - onset) / rise))
        face = _REST.towards(apex, strength * share * share * (3 - 2 * share))
        angle = 2 * np.pi * face.sway_rate * time + sway_phase
        pictures[i] = _draw_frame(
            person,
            face,
            size,
            x=face.sway * math.sin(angle),
            tilt=face.tilt + 0.5 * face.sway * math.cos(angle),
            mouth=face.mouth + face.talk * talking[i],
            eyes=0.05 if i == blink else face.eyes,
        )
    return np.clip(pictures * light + noise, 0, 255).astype(np.uint8)


def _draw_frame(person, face, size, x, tilt, mouth, eyes) -> np.ndarray:
    """One frame (size, size, 3) uint8. Points are complex numbers: x + iy, y down, the face's middle at 0."""
    side = size * _SUPERSAMPLE
    image = Image.new("RGB", (side, side), person.background)
    draw = ImageDraw.Draw(image)
    unit = person.face_size * side
    origin = complex(person.face_x, person.face_y) * side
    turn = unit * complex(math.cos(tilt), math.sin(tilt))
    centre = origin + unit * complex(x, -face.lift)
    dark = tuple(c // 5 for c in person.skin)
    shade = tuple(int(c * 0.72) for c in person.skin)

    def place(points):
        return [(z.real, z.imag) for z in (centre + turn * np.asarray(points)).tolist()]

    def fill(points, colour):
        draw.polygon(place(points), fill=colour)

    def stroke(points, colour, width):
        draw.line(place(points), fill=colour, width=max(1, round(width * unit)), joint="curve")

    def oval(middle, half_width, half_height):
        return middle + half_width * _CIRCLE.real + 1j * half_height * _CIRCLE.imag

    # Shoulders do not move with the head.
    shoulders = origin + unit * oval(1.55j, 1.05, 0.62)
    draw.polygon([(z.real, z.imag) for z in shoulders.tolist()], fill=person.clothes)
    if person.hair_shape == "long":
        fill(oval(0.12j, person.face_width + 0.14, 1.12), person.hair)
    elif person.hair_shape != "bald":
        fill(oval(-0.16j, person.face_width + 0.08, 0.98), person.hair)
    fill(oval(0j, person.face_width, 1.0), person.skin)
    if person.hair_shape != "bald":
        top = _CIRCLE[_CIRCLE.imag < -0.62] if person.hair_shape != "cap" else _CIRCLE[_CIRCLE.imag < -0.5]
        fill(top.real * (person.face_width + 0.04) + 1.03j * top.imag, person.hair)

    for mirror in (-1, 1):
        middle = complex(mirror * person.eye_distance, -0.1)
        half = person.eye_size * np.array([1.0, 0.8 * eyes])
        eye = oval(middle, *half)
        # Raised cheeks cut the eye from below.
        eye = eye.real + 1j * np.minimum(eye.imag, middle.imag + half[1] * (1 - 1.3 * face.cheeks))
        if eyes > 0.12:
            fill(eye, (250, 250, 250))
            iris = middle + 1j * half[1] * (-0.25 * face.cheeks - 0.35 * face.gaze)
            radius = 0.085 if eyes < 1.3 else 0.07
            fill(oval(iris, radius, min(radius, 0.9 * half[1] * (1 - 0.5 * face.cheeks))), (25, 20, 20))
        stroke(eye[eye.imag <= middle.imag][np.argsort(eye[eye.imag <= middle.imag].real)], dark, 0.045)
        inner = complex(mirror * (person.eye_distance - 0.17), -0.36 - face.inner_brow)
        outer = complex(mirror * (person.eye_distance + 0.2), -0.36 - face.outer_brow)
        arch = (inner + outer) / 2 - 0.04j
        stroke([inner, arch, outer], dark, 0.085)
        if person.glasses:
            stroke(oval(middle, 0.26, 0.22), shade, 0.03)

    tip = 1j * (person.nose_length - 0.06 * face.wrinkles)
    stroke([-0.03 - 0.02j, tip - 0.09, tip + 0.05], shade, 0.05)
    for row in range(3):
        if face.wrinkles > 0.3 * (row + 0.5):
            y = 0.1j * row - 0.16j
            stroke([y - 0.13 - 0.04j, y, y + 0.13 - 0.04j], dark, 0.035)

    half_width = 0.34 * person.mouth_width * face.width
    line = 0.52j + half_width * _ACROSS + 1j * (face.smile * (1 - 2 * _ACROSS**2) + face.slant * _ACROSS)
    bulge = mouth * (1 - _ACROSS**2)
    upper, lower = line - 0.35j * bulge, line + 0.9j * bulge
    if mouth > 0.03:
        fill(np.concatenate([upper, lower[::-1]]), (60, 15, 20))
        if face.teeth > 0.1:
            bite = upper + min(1.0, face.teeth) * 0.85 * (lower - upper)
            fill(np.concatenate([upper, bite[::-1]]), (245, 240, 230))
    stroke(upper, person.lips, 0.06)
    stroke(lower, person.lips, 0.06)
    if face.tongue > 0.1:
        fill(oval(lower[len(lower) // 2] + 0.03j, 0.14, 0.03 + 0.14 * face.tongue), (225, 110, 120))
    return np.asarray(image.reduce(_SUPERSAMPLE))


def _speak(person, prosody, speech, seconds, rng) -> np.ndarray:
    """The voice (samples,) float32 at 16 kHz: glottal pulses through formants (the source-filter model)."""
    count = round(seconds * SAMPLE_RATE)
    times = np.arange(count) / SAMPLE_RATE
    number = np.arange(len(speech.onsets))

    # Pitch in semitones above the calm voice: straight lines between the start and the end of each syllable.
    height = prosody.level + prosody.phrase_fall * (0.5 - speech.place)
    height = height + prosody.swing * np.where((number + rng.integers(2)) % 2, 0.5, -0.5)
    height = height + rng.uniform(-0.4, 0.4, len(number))
    moves = np.stack([height + prosody.syllable_fall / 2, height - prosody.syllable_fall / 2], 1)
    semitones = np.interp(times, np.stack([speech.onsets, speech.ends], 1).ravel(), moves.ravel())
    shaking = np.sin(2 * np.pi * 8 * times + rng.uniform(0, 2 * np.pi))
    pitch = person.pitch * np.exp2((semitones + prosody.tremor * shaking) / 12)

    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    # A von Mises pulse is a Gaussian in time, so its spectrum falls off smoothly and nothing aliases.
    width = 2 * np.pi * pitch * person.pulse_width * prosody.dullness
    pulses = np.exp((np.cos(phase) - 1) / width**2) * (1 - prosody.creak * (0.5 + 0.5 * np.cos(phase / 2)))
    pulses /= np.sqrt(np.mean(pulses**2))
    source = pulses + prosody.breath * rng.standard_normal(count) * np.exp2(3 * prosody.breath)

    # Each syllable has one of the clip's two vowels.
    turns = rng.integers(2, size=len(number)).astype(float)
    share = np.interp(times, np.stack([speech.onsets, speech.ends], 1).ravel(), np.repeat(turns, 2))
    spectrum = np.fft.rfft(source)
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    first, second = (
        np.fft.irfft(spectrum * _formants(frequency / person.vocal_tract, *_VOWELS[vowel]), count)
        for vowel in rng.choice(len(_VOWELS), 2, replace=False)
    )
    voice = (share * first + (1 - share) * second) * speech.loudness(times)
    voice *= 1 + 0.4 * min(1.0, prosody.tremor) * shaking

    sounding = np.sqrt(np.sum(voice**2) / max(1.0, np.sum(speech.loudness(times) ** 2)))
    voice *= 0.05 * 10 ** ((person.loudness + prosody.loudness) / 20) / sounding
    room = rng.standard_normal(count) * 10 ** (person.noise / 20)
    return np.clip(voice + room, -1, 1).astype(np.float32)


def _formants(frequency, first, second):
    """Gain of the vocal tract at `frequency` (Hz); nothing passes at 0 Hz."""
    gain = sum(
        strength / (1 + ((frequency - centre) / band) ** 2)
        for centre, band, strength in ((first, 90, 1.0), (second, 120, 0.6), (2700, 200, 0.3), (3600, 300, 0.15))
    )
    return gain * np.minimum(1, frequency / 80)


def _write(path, video, fps, audio) -> None:
    """Writes `video` (T, H, W, 3) uint8 and `audio` (samples,) float32, each or None, by one thread: bit for bit."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        if video is not None:
            pictures = _video_stream(container, video.shape[2], video.shape[1], fps)
        if audio is not None:
            # The fast coder takes a tenth of the time of the default one.
            voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
            voice.bit_rate = 64_000
            voice.thread_count = 1
        if video is not None:
            for frame in video:
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(pictures.encode())
        if audio is not None:
            samples = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
            samples.sample_rate = SAMPLE_RATE
            container.mux(voice.encode(samples))
            container.mux(voice.encode())


def _video_stream(container, width, height, fps):
    if "libx264" in av.codecs_available:
        stream = container.add_stream("libx264", rate=fps)
        stream.options = {"preset": "ultrafast", "crf": "16", "x264-params": "threads=1"}
    else:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.options = {"q:v": "3"}
    stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
    return stream
