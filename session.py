"""One person's conversation: a model, what it remembers of the talk, and the turn at hand. What apps call.

```python
session = SupportSession.from_pretrained("assets/multimood-tiny")
session.add_history([{"speaker": "client", "text": "My sister is called Ruth."}])
reply = session.respond(text="I didn't sleep again.", video="clip.mp4")
print(reply.turn.strategy, reply.turn.response)
```

The last `processor.verbatim_pairs` pairs stay as words in the prompt. What leaves this window is appended to a
`ConversationMemory` once and costs the language model one token an utterance from then on, so a turn costs the same
however long the talk has been.

What the person says is assessed for risk of suicide and self-harm before the model reads it, and the model's response is
a draft that `trust/crisis.py` checks and completes before it is shown or remembered. The risk is kept beside the memory
and not in it, so no compression touches it.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .modeling_multimood.conversation_memory import ConversationMemory
from .modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration
from .modeling_multimood.turn_grammar import SupportTurnLogitsProcessor, TurnOpening
from .processors.processing_multimood import MultiMoodProcessor
from .processors.turn import CLIPS_PER_TURN, LABELS, SPEAKERS, SupportTurn, build_prompt, render_utterance
from .trust.crisis import CheckedReply, CrisisPolicy, PolicyState
from .trust.risk import RiskAssessor
from .trust.risk_state import RiskLevel, RiskState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupportReply:
    """What a turn gave and what it cost.

    Args:
        turn (`SupportTurn`): the most probable labels, and the response as it was shown: the model's draft, checked and
            completed. Where the model failed and there is risk, the labels may be None.
        probabilities (`dict[str, dict[str, float]]`): for "client_emotion", "therapist_emotion" and "strategy" each
            label's probability, summing to 1. Estimates of a model, not findings about a person.
        modalities (`tuple[str, ...]`): what the answer is based on, of "video", "audio", "text" and "memory". A silent
            film gives no "audio".
        prompt_tokens (`dict[str, int]`): the prompt's tokens by kind: "text", "video", "audio", "memory". Those of
            memory are its slots, one an utterance.
        saved_tokens (`int`): tokens the remembered utterances would have cost as words, less the memory's slots.
        new_tokens (`int`): tokens of the model's draft.
        seconds (`dict[str, float]`): wall time of "media" (decoding and tokenizing), "prefill" (reading the prompt and
            choosing the labels) and "generation"; what failed is absent.
        risk (`dict`): "level" and "peak", each "none", "low", "high" or "imminent", and "evidence": the signs in this
            turn's words, each with "start", "end", "text", "category" and "level". A screen's reading, not a finding.
        disclosures (`tuple[str, ...]`): what the response says beside the matter: "ai_start", "ai_asked" or "ai_again"
            (an AI is talking), "pause" (a break may be good).
        referral (`tuple[str, ...]`): crisis lines, emergency numbers and pages that the response names.
        removed (`tuple[str, ...]`): for each sentence left out of the draft, the rule that it broke.
        error (`str`, *optional*): why the model failed, where the written crisis reply stands in for it.
    """

    turn: SupportTurn
    probabilities: dict[str, dict[str, float]]
    modalities: tuple[str, ...]
    prompt_tokens: dict[str, int]
    saved_tokens: int
    new_tokens: int
    seconds: dict[str, float]
    risk: dict
    disclosures: tuple[str, ...] = ()
    referral: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict:
        """The reply as plain JSON types."""
        return asdict(self)


@dataclass
class _Reading:
    """A turn that has been read but not answered: the model's inputs, and what will be kept of it."""

    inputs: BatchFeature
    modalities: tuple[str, ...]
    prompt_tokens: dict[str, int]
    seconds: dict[str, float]


class SupportSession:
    """The conversation of one person with one model.

    Turns are strictly ordered: a second turn cannot begin before the first is answered. A turn that fails, or whose
    stream is closed early, leaves the conversation as it was, with two exceptions for the person's safety: a sign of risk
    that was said stays known, and where there is risk a failing model does not fail the turn, but the written crisis
    reply is given.

    Args:
        model (`MultiMoodForConditionalGeneration`): may be shared by many sessions.
        processor (`MultiMoodProcessor`): the model's own; `processor.verbatim_pairs` is the window's size.
        problem_type (`str`, *optional*): what the talk is about, as the corpus has it, e.g. "work pressure".
        situation (`str`, *optional*): a few words on the person's situation.
        max_slots (`int`, *optional*): most vectors the memory keeps; neighbours that are alike are then joined.
        max_new_tokens (`int`): most tokens of a response.
        assessor (`RiskAssessor`, *optional*): reads the words for risk; by default the English lexicon's.
        policy (`CrisisPolicy`, *optional*): checks and completes the responses; it knows the person's country and whether
            they are a minor. May be replaced between turns: `session.policy = CrisisPolicy("DE")`.
        **generation: what else `model.generate` takes, e.g. `do_sample=True, temperature=0.7`.
    """

    def __init__(
        self,
        model: MultiMoodForConditionalGeneration,
        processor: MultiMoodProcessor,
        *,
        problem_type: str | None = None,
        situation: str | None = None,
        max_slots: int | None = None,
        max_new_tokens: int = 128,
        assessor: RiskAssessor | None = None,
        policy: CrisisPolicy | None = None,
        **generation,
    ):
        self.model = model
        self.processor = processor
        self.problem_type = problem_type
        self.situation = situation
        self.memory: ConversationMemory = model.new_memory(max_slots=max_slots)
        self.window: list[dict] = []  # the latest utterances, {"speaker", "text"}, that stay as words
        self.utterances = 0  # said so far, by both
        self.assessor = assessor or RiskAssessor()
        self.policy = policy or CrisisPolicy()
        self.risk = RiskState()  # of all that was said; outside the memory
        self.policy_state = PolicyState()
        self.generation = {"max_new_tokens": max_new_tokens, **generation}
        self._remembered_tokens = 0  # what the utterances in the memory would have cost as words
        self._turn = threading.Lock()  # held from a turn's reading to its commit

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | os.PathLike, *, device: str | torch.device | None = None, dtype="auto", **settings
    ) -> "SupportSession":
        """Load model and processor and begin a conversation.

        Args:
            path_or_id (`str` or `os.PathLike`): folder, or repository on the Hub.
            device (`str` or `torch.device`, *optional*): where the model runs; a GPU where there is one.
            dtype (`str` or `torch.dtype`): of the weights; "auto" is the checkpoint's own.
            **settings: see [`SupportSession`].
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        processor = MultiMoodProcessor.from_pretrained(path_or_id)
        model = MultiMoodForConditionalGeneration.from_pretrained(path_or_id, dtype=dtype).to(device).eval()
        return cls(model, processor, **settings)

    def begin_another(self) -> "SupportSession":
        """A new conversation with the same model and settings: of it, nothing is known of this one."""
        return SupportSession(
            self.model,
            self.processor,
            max_slots=self.memory.max_slots,
            assessor=self.assessor,
            policy=self.policy,
            **self.generation,
        )

    @property
    def memory_slots(self) -> int:
        """The memory's vectors: one an utterance, or fewer where `max_slots` is reached."""
        return self.memory.num_slots[0]

    @property
    def saved_tokens(self) -> int:
        """Tokens the remembered utterances would cost as words in each prompt, less the memory's slots."""
        return self._remembered_tokens - self.memory_slots

    def add_history(self, utterances: Iterable[dict]) -> None:
        """Take an earlier dialogue as said before the next turn.

        Consecutive utterances of one speaker become one, as they are in the rows the model learned from. All of them are
        assessed for risk.

        Args:
            utterances (`Iterable[dict]`): `{"speaker", "text"}` in order, of any number and length; other keys are
                ignored. Speakers are "client" and "therapist".

        Raises:
            ValueError: an utterance has an unknown speaker or no text; then none was taken.
            RuntimeError: a turn is being answered.
        """
        checked = [_checked(utterance, number) for number, utterance in enumerate(utterances, start=1)]
        merged = [
            {"speaker": speaker, "text": " ".join(utterance["text"] for utterance in said)}
            for speaker, said in groupby(checked, key=itemgetter("speaker"))
        ]
        with self._between_turns():
            risk = self._assess(merged)
            self._keep(merged)
            self.risk = risk

    def respond(self, text: str | None = None, video=None, audio=None) -> SupportReply:
        """Answer a turn. Arguments and errors as in [`stream`]."""
        with self.stream(text, video, audio) as stream:
            for _ in stream:
                pass
        return stream.reply

    def stream(self, text: str | None = None, video=None, audio=None) -> "ReplyStream":
        """Answer a turn, giving the response while it is written.

        The turn is read and its labels are chosen before this returns; the response is written in a thread. It is given
        by sentences, each checked before it is shown; where there is risk, all at once when it is whole.

        Args:
            text (`str`, *optional*): the person's words.
            video (*optional*): path, URL, bytes, file object or frames `(T, H, W, 3)` uint8, or a list of these, which
                are one timeline. Its own sound is heard too, unless `audio` is given.
            audio (*optional*): path, URL, bytes, file object or a 16 kHz mono waveform `(n,)`, or a list of these.

        Returns:
            [`ReplyStream`]: read it to its end, or close it; until then no other turn can begin.

        Raises:
            ValueError: nothing was given, or the prompt is longer than the language model can read.
            RuntimeError: another turn is being answered.
        """
        words = (text or "").strip()
        if not words and video is None and audio is None:
            raise ValueError("The turn is empty: give words (text=), a clip (video=) or sound (audio=).")
        self._begin()
        try:
            risk = self._assess([{"speaker": "client", "text": words}])
            try:
                reading = self._read_turn(words, video, audio)
                opening = self._predict(reading)
            except Exception as error:
                if risk.level is RiskLevel.NONE:
                    raise
                return ReplyStream(self, words, risk, error=error)
            return ReplyStream(self, words, risk, reading, opening)
        except BaseException:
            self._turn.release()
            raise

    def save(self, folder: str | os.PathLike) -> None:
        """Keep the conversation: memory, window, risk and settings. Ask the person first.

        The folder holds either the former or the new state whole, whenever the process dies. Its files hold, in the clear,
        the last words said and all that were signs of risk.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with self._between_turns():
            memory = f"memory-{uuid.uuid4().hex}.safetensors"
            self.memory.save(folder / memory)
            state = {
                "memory": memory,
                "window": self.window,
                "utterances": self.utterances,
                "remembered_tokens": self._remembered_tokens,
                "problem_type": self.problem_type,
                "situation": self.situation,
                "risk": self.risk.to_dict(),
                "policy": {"region": self.policy.region, "young": self.policy.young},
                "policy_state": self.policy_state.to_dict(),
            }
            part = folder / "conversation.json.part"
            part.write_text(json.dumps(state, ensure_ascii=False, indent=2), encoding="utf-8")
            part.replace(folder / "conversation.json")  # from here on the folder means the new state
        for old in folder.glob("memory-*.safetensors"):
            if old.name != memory:
                old.unlink()

    def load(self, folder: str | os.PathLike) -> None:
        """Go on with a conversation that [`save`] kept, in place of this one.

        This session's region goes before the kept one; minors' mode stays on if either has it. A conversation that was
        kept without its risk is assessed, if all of it is there as words.

        Raises:
            FileNotFoundError: the folder holds no conversation.
            ValueError: it was kept by another model, or without its risk, which can no longer be assessed.
        """
        folder = Path(folder)
        state = json.loads((folder / "conversation.json").read_text(encoding="utf-8"))
        with self._between_turns():
            if "risk" in state:
                risk, policy = RiskState.from_dict(state["risk"]), state["policy"]
            elif len(state["window"]) == state["utterances"]:
                risk, policy = self.assessor.assess(state["window"]), {"region": None, "young": False}
            else:
                raise ValueError(
                    f"{folder} was kept without the risk of what was said, and {state['utterances'] - len(state['window'])}"
                    " of its utterances are there only as vectors, which cannot be assessed. Begin a new conversation and "
                    "give it the dialogue with add_history()."
                )
            self.memory = self.model.load_memory(folder / state["memory"])
            self.risk, self.policy_state = risk, PolicyState(**state.get("policy_state", {}))
            self.policy = CrisisPolicy(
                self.policy.region or policy["region"],
                young=self.policy.young or policy["young"],
                language=self.policy.language,
                clock=self.policy.clock,
            )
            self.window, self.utterances = state["window"], state["utterances"]
            self._remembered_tokens = state["remembered_tokens"]
            self.problem_type, self.situation = state["problem_type"], state["situation"]

    # A turn: assess, read, predict, write the draft, check it, commit.

    def _assess(self, utterances: list[dict]) -> RiskState:
        """The risk after some more utterances. New signs are kept at once, whatever becomes of the turn."""
        spoken = [utterance for utterance in utterances if utterance["text"]]
        risk = self.assessor.assess(spoken, self.risk)
        risk = replace(risk, utterances=self.risk.utterances + len(utterances))  # a clip without words is one too
        if risk.evidence != self.risk.evidence:
            self.risk = risk
        return risk

    def _read_turn(self, words: str, video, audio) -> _Reading:
        start = time.perf_counter()
        conversation = self._messages(words, video, audio)
        inputs = self.processor.apply_chat_template(
            [conversation], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        ).to(self.model.device)

        ids, config = inputs["input_ids"], self.model.config
        tokens = {
            "video": int((ids == config.video_token_id).sum()),
            "audio": int((ids == config.audio_token_id).sum()),
            "memory": self.memory_slots,
        }
        tokens = {"text": ids.shape[1] - sum(tokens.values()), **tokens}
        longest, room = self._positions(), self.generation["max_new_tokens"]
        if longest is not None and ids.shape[1] + room > longest:
            raise ValueError(
                f"The prompt has {ids.shape[1]:,} tokens, of which this turn's {len(words):,} characters are a part; "
                f"with {room} for the response this is more than the {longest:,} the language model can read. "
                "Shorten the words, or give the earlier ones to add_history()."
            )
        modalities = tuple(kind for kind in ("video", "audio", "memory") if tokens[kind])
        modalities = (*modalities, "text") if words else modalities
        return _Reading(inputs, modalities, tokens, {"media": time.perf_counter() - start})

    def _predict(self, reading: _Reading) -> TurnOpening:
        start = time.perf_counter()
        memory = {"history_memory": self.memory} if self.memory_slots else {}
        opening = self.model.open_turn(**reading.inputs, **memory)
        reading.seconds["prefill"] = time.perf_counter() - start
        return opening

    def _write_response(
        self, reading: _Reading, opening: TurnOpening, streamer: TextIteratorStreamer, stop: StoppingCriteria
    ) -> list[int]:
        start = time.perf_counter()
        prompt = reading.inputs["input_ids"].shape[1]
        ids = self.model.generate(
            input_ids=opening.input_ids,
            attention_mask=opening.attention_mask,
            past_key_values=opening.past_key_values,
            logits_processor=[SupportTurnLogitsProcessor(self.model.config.turn_grammar, prompt)],
            stopping_criteria=StoppingCriteriaList([stop]),
            streamer=streamer,
            **self.generation,
        )
        reading.seconds["generation"] = time.perf_counter() - start
        return ids[0, opening.input_ids.shape[1] :].tolist()

    def _commit(
        self,
        words: str,
        risk: RiskState,
        checked: CheckedReply,
        reading: _Reading | None,
        opening: TurnOpening | None,
        new_tokens: int,
        error: Exception | None,
    ) -> SupportReply:
        probabilities = self._named(opening) if opening else {}
        labels = {field: max(of, key=of.get) for field, of in probabilities.items()}
        turn = SupportTurn(**{**dict.fromkeys(LABELS), **labels}, response=checked.text)
        saved = self.saved_tokens
        said = [{"speaker": "client", "text": words}, {"speaker": "therapist", "text": checked.text}]
        try:
            self._keep(said)
        except Exception as failure:
            if risk.level is RiskLevel.NONE:
                raise
            error = failure
            self.window = [*self.window, *said]  # it goes on into the memory with a later turn
            self.utterances += len(said)
        self.policy_state = checked.state
        self.risk = self.assessor.assess(said[1:], risk)
        return SupportReply(
            turn=turn,
            probabilities=probabilities,
            modalities=reading.modalities if reading else (),
            prompt_tokens=reading.prompt_tokens if reading else {},
            saved_tokens=saved,
            new_tokens=new_tokens,
            seconds=reading.seconds if reading else {},
            risk=_risk_report(risk),
            disclosures=checked.disclosures,
            referral=checked.referral,
            removed=checked.removed,
            error=None if error is None else f"{type(error).__name__}: {error}",
        )

    def _messages(self, words: str, video, audio) -> list[dict]:
        """The turn as a row's prompt, but for the memory, which stands in for the older history."""
        row = {
            "history": self.window,
            "problem_type": self.problem_type,
            "situation": self.situation,
            "utterance": words,
        }
        messages = build_prompt(row, verbatim_pairs=len(self.window))
        content = messages[-1]["content"]
        if isinstance(video, list | tuple):
            video = list(video)[-CLIPS_PER_TURN:]
        if audio is None and not hasattr(video, "shape"):  # frames carry no sound
            audio = video
        media = [("video", video), ("audio", audio)]
        # Before the words, which are last.
        content[-1:-1] = [{"type": kind, kind: source} for kind, source in media if source is not None]
        if self.memory_slots:
            content.insert(0, {"type": "history", "slots": self.memory_slots})
        return messages

    def _keep(self, utterances: list[dict]) -> None:
        """Add to the window, and move what leaves it to the memory."""
        window = [*self.window, *utterances]
        costs = [self._cost(utterance) for utterance in window]
        leave = max(len(window) - 2 * self.processor.verbatim_pairs, 0)
        # Half of what the model can read is for the window: very long utterances leave it early.
        budget = (self._positions() or sum(costs) * 2) // 2
        while sum(costs[leave:]) > budget:
            leave += 1
        if leave:
            encoded = self.processor.encode_history([window[:leave]])
            self.memory.append(**{name: ids.to(self.model.device) for name, ids in encoded.items()})
        self.window = window[leave:]
        self.utterances += len(utterances)
        self._remembered_tokens += sum(costs[:leave])

    def _cost(self, utterance: dict) -> int:
        """Tokens of the utterance where it stands in the prompt as words."""
        line = render_utterance(utterance) + "\n"
        return len(self.processor.tokenizer(line, add_special_tokens=False)["input_ids"])

    def _named(self, opening: TurnOpening) -> dict[str, dict[str, float]]:
        names = self.model.label_names
        return {
            field: dict(zip(names[field], row[0].tolist(), strict=True))
            for field, row in opening.probabilities.items()
        }

    def _positions(self) -> int | None:
        """Most tokens the language model can read; None where its architecture has no limit."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def _begin(self) -> None:
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("A turn is being answered: read its stream to the end, or close it, before the next.")

    @contextmanager
    def _between_turns(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        finally:
            self._turn.release()


class ReplyStream(Iterator[str]):
    """The pieces of a response while it is written, then the reply.

    ```python
    with session.stream(text="I didn't sleep again.") as stream:
        print(stream.probabilities["client_emotion"])
        for piece in stream:
            print(piece, end="", flush=True)
    print(stream.reply.turn.strategy)
    ```

    The pieces together are the response, but for white space around it. An error while writing is raised by the
    iteration, unless there is risk. Closing the stream before its end stops the writing and drops the turn.

    Attributes:
        risk (`RiskLevel`): the level that is answered.
        probabilities (`dict[str, dict[str, float]]`): as in [`SupportReply`]; empty where the model failed.
    """

    def __init__(
        self,
        session: SupportSession,
        words: str,
        risk: RiskState,
        reading: _Reading | None = None,
        opening: TurnOpening | None = None,
        error: Exception | None = None,
    ):
        self.risk = risk.level
        self.probabilities = session._named(opening) if opening else {}
        self._session, self._words, self._state = session, words, risk
        self._reading, self._opening, self._error = reading, opening, error
        self._composer = session.policy.begin(words, risk, session.policy_state)
        self._pieces: deque[str] = deque()
        self._checked: CheckedReply | None = None
        self._reply: SupportReply | None = None
        self._response_ids: list[int] = []
        self._stop = _StopWhenSet()
        self._streamer = TextIteratorStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._open = True
        self._thread = threading.Thread(target=self._write, name="multimood-response", daemon=True)
        self._thread.start()

    @property
    def reply(self) -> SupportReply:
        """The whole reply.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        if self._reply is None:
            raise RuntimeError("There is no reply: the stream was not read to its end.")
        return self._reply

    def __next__(self) -> str:
        while self._open:
            if self._pieces:
                return self._pieces.popleft()
            if self._checked is not None:
                self._finish()
                break
            try:
                self._give(self._composer.feed(next(self._streamer)))
            except StopIteration:
                self._end_draft()
        raise StopIteration

    def close(self) -> None:
        """Stop writing and drop the turn; nothing happens where the stream has ended."""
        if self._open:
            self._open = False
            self._stop.event.set()
            self._thread.join()
            self._session._turn.release()

    def __enter__(self) -> "ReplyStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _write(self) -> None:
        try:
            if self._opening is not None:
                self._response_ids = self._session._write_response(
                    self._reading, self._opening, self._streamer, self._stop
                )
        except BaseException as error:
            self._error = error
        if self._error is not None:
            self._streamer.on_finalized_text("", stream_end=True)  # wakes the reader

    def _give(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def _end_draft(self) -> None:
        self._thread.join()
        if self._error is not None:
            if self.risk is RiskLevel.NONE or not isinstance(self._error, Exception):
                self._end()
                raise self._error
            logger.error("The model failed with %s: the written crisis reply is given.", type(self._error).__name__)
            self._composer = self._session.policy.begin(self._words, self._state, self._session.policy_state)
        self._checked = self._composer.finish()
        self._give(self._composer.rest)

    def _finish(self) -> None:
        try:
            self._reply = self._session._commit(
                self._words,
                self._state,
                self._checked,
                self._reading,
                self._opening,
                len(self._response_ids),
                self._error,
            )
        finally:
            self._end()

    def _end(self) -> None:
        self._open = False
        self._session._turn.release()


class _StopWhenSet(StoppingCriteria):
    """Ends `generate` at the next token once `event` is set."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _risk_report(risk: RiskState) -> dict:
    """The risk as it stands in a reply, with the signs in the words that were assessed last."""
    names = {"level": risk.level.name.lower(), "peak": risk.peak.name.lower()}
    signs = [asdict(sign) for sign in risk.evidence if sign.utterance == risk.utterances - 1]
    return {**names, "evidence": [{**sign, "level": sign["level"].name.lower()} for sign in signs]}


def _checked(utterance: dict, number: int) -> dict:
    """The parts of an utterance that are kept; `number` is for the error."""
    text = utterance.get("text")
    if not isinstance(text, str):
        raise ValueError(f"Utterance {number} of the history has the text {text!r}: give a string.")
    if utterance.get("speaker") not in SPEAKERS:
        raise ValueError(
            f"Utterance {number} of the history ({text[:40]!r}) has the speaker {utterance.get('speaker')!r}: "
            f"use one of {', '.join(SPEAKERS)}."
        )
    return {"speaker": utterance["speaker"], "text": text}


__all__ = ["ReplyStream", "SupportReply", "SupportSession"]
