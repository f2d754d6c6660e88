"""What a judge is, and the judge behind any OpenAI-compatible endpoint.

```python
judge = OpenAIJudge("gpt-4o", cache=VerdictCache("outputs/verdicts"), budget=Budget(max_tokens=2_000_000))
verdicts = judge.score([Exchange(conversation, reply, risk="none", emotion="sadness")])
print(judge.report())
```

A judge that cannot answer gives `None`, never a number, and counts why in `failures`.
"""

import asyncio
import concurrent.futures
import email.utils
import hashlib
import json
import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .answer_form import AnswerForm
from .judge_prompt import Exchange, answer_form, judge_messages, pair_form, pair_messages
from .rubric import Rubric, Verdict
from .spending import Budget, CostReport

if TYPE_CHECKING:  # the embedded judge runs without the cache's library
    from .verdict_cache import VerdictCache

logger = logging.getLogger(__name__)

# A failure of one of these kinds would be the same again.
FINAL = {"authentication", "bad_request", "not_found", "quota", "refusal"}
# A request that failed in one of these ways may have been answered, and billed, all the same.
MAYBE_BILLED = {"timeout", "connection", "no_completion"}
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between attempts
TEMPLATE_TOKENS = 64  # what a chat template adds to a request, at most


class Judge(ABC):
    """Scores replies.

    Attributes:
        name (`str`): of the judge, as in its verdicts.
        rubric (`Rubric`): what it judges by.
        failures (`Counter`): replies that got no verdict, by cause.
    """

    name: str
    rubric: Rubric
    failures: Counter

    @abstractmethod
    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict | None]:
        """One verdict a reply, in order; `None` where there is none. Works with and without a running event loop."""

    async def ascore(self, exchanges: Sequence[Exchange]) -> list[Verdict | None]:
        """[`score`], for callers in an event loop, which it does not block."""
        return await asyncio.to_thread(self.score, exchanges)


@dataclass(frozen=True)
class Preference:
    """Which of two replies a judge prefers, asked in both orders.

    Args:
        choices (`dict[str, str]`): by dimension "first", "second" or "tie". Where the two orders disagree it is a tie.
        overall (`str`): what more dimensions say, or "tie".
        disagreements (`int`): dimensions in which the choice depended on the order.
    """

    choices: dict[str, str]
    overall: str
    disagreements: int


@dataclass(frozen=True)
class _Question:
    """One request: its messages, the form of the answer, and the key it is cached by."""

    messages: list[dict[str, str]]
    form: AnswerForm
    key: str


class _NoAnswer(Exception):
    """An attempt failed. `kind` is the cause, `wait` how long the server asked to wait, in seconds, `usage` its bill."""

    def __init__(self, kind: str, wait: float | None = None, usage: tuple[int, int] | None = None):
        super().__init__(kind)
        self.kind, self.wait, self.usage = kind, wait, usage


class OpenAIJudge(Judge):
    """A model behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, `transformers serve` and others.

    One request asks for all items. An answer counts only if the whole message is JSON of the rubric's schema; servers that
    ignore the schema are told the form in the prompt. Failed attempts are repeated after a growing wait, or after the time that
    the server asked for, which then holds for all requests.

    Args:
        model (`str`): as the server names it.
        base_url (`str`, *optional*): the server's, e.g. "http://localhost:8000/v1"; OpenAI's by default.
        api_key (`str`, *optional*): the environment's `OPENAI_API_KEY` by default, which no server named by `base_url` is sent;
            a server without keys needs none.
        rubric (`Rubric`, *optional*): the English one by default.
        cache (`VerdictCache`, *optional*): keeps answers by model, rubric version and all that is sent. In one cache a name
            must mean one model.
        concurrency (`int`): requests under way at a time.
        attempts (`int`): requests for one answer at most.
        timeout (`float`): seconds for a request, from sending it to the last byte of the answer.
        budget (`Budget`, *optional*): nothing is sent that could exceed it; what is left then gets `None` with cause "budget".
        max_completion_tokens (`int`): of an answer; one that is longer is a failure.
        options (`dict`, *optional*): more fields of the request, e.g. `{"reasoning_effort": "low"}`; replaces `{"temperature": 0}`.
    """

    def __init__(
        self,
        model: str = "gpt-4o",
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        rubric: Rubric | None = None,
        cache: "VerdictCache | None" = None,
        concurrency: int = 64,
        attempts: int = 4,
        timeout: float = 60.0,
        budget: Budget | None = None,
        max_completion_tokens: int = 2048,
        options: dict | None = None,
    ):
        for name, value in (("concurrency", concurrency), ("attempts", attempts), ("timeout", timeout)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; give a number above 0.")
        if base_url is None:
            base_url = os.environ.get("OPENAI_BASE_URL")
            api_key = api_key or os.environ.get("OPENAI_API_KEY")
        if base_url is not None:
            _check_url(base_url)
            api_key = api_key or "none"
        if not api_key:
            raise ValueError("There is no API key: set OPENAI_API_KEY, or give the base_url of a server without keys.")
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            # Not shown: and an HTTP library would show it, in the error about the header.
            raise ValueError("The API key holds white space or characters that no header may hold; copy it again.")
        self.name = model
        self.rubric = rubric or Rubric.load()
        self.attempts, self.timeout = attempts, timeout
        self.budget = budget or Budget()
        self._settings = {
            "max_completion_tokens": max_completion_tokens,
            **({"temperature": 0} if options is None else options),
        }
        self._digests = {}  # of what many questions begin with
        self._cache = cache
        # A closure, since what is an attribute is soon printed. Attempts are counted, budgeted and spaced here, not by the client.
        self._connect = lambda: _client(api_key, base_url, timeout)
        self._loop = None  # of a thread: sync and async callers share one client, its connections and its limits
        self._process = None  # that has the thread; a forked one has none
        self._start = threading.Lock()
        self._concurrency = concurrency
        self._report = CostReport(model)
        self._reserved = Counter()  # tokens that requests under way may cost
        self._resume_at = 0.0  # no request is sent before this time of the loop

    def __repr__(self):
        return f"OpenAIJudge({self.name!r}, rubric version {self.rubric.version!r})"

    def __getstate__(self):
        raise TypeError(
            "A judge holds a key and connections, and cannot be copied or pickled; make one in each process."
        )

    @property
    def failures(self) -> Counter:
        return self._report.failures

    def report(self) -> CostReport:
        """What was done and spent since the judge was made."""
        self._report.cost = self.budget.cost(self._report.prompt_tokens, self._report.completion_tokens)
        return self._report

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict | None]:
        return self._verdicts(exchanges, self._answer_all([self._question(exchange) for exchange in exchanges]))

    async def ascore(self, exchanges: Sequence[Exchange]) -> list[Verdict | None]:
        questions = [self._question(exchange) for exchange in exchanges]
        answers, missing = self._look_up(questions)
        if missing:
            answers |= await asyncio.wrap_future(self._run(self._ask_all(missing)))
        return self._verdicts(exchanges, [answers[question.key] for question in questions])

    def compare(self, pairs: Sequence[tuple[Exchange, str]]) -> list[Preference | None]:
        """Which of two replies to the same conversation is better; each pair is asked in both orders.

        Args:
            pairs (`Sequence[tuple[Exchange, str]]`): an exchange with the first reply, and the second reply.

        Returns:
            `list[Preference | None]`: `None` where either order got no answer.
        """
        questions = []
        for exchange, second in pairs:
            swapped = replace(exchange, reply=second)
            questions += [self._pair_question(exchange, second), self._pair_question(swapped, exchange.reply)]
        answers = self._answer_all(questions)
        choices = pair_form(self.rubric).choices
        return [_preference(*both, choices) for both in zip(answers[::2], answers[1::2], strict=True)]

    def close(self) -> None:
        """Ends connections and the thread that holds them. A judge may be used again afterwards."""
        with self._start:
            loop, self._loop = self._loop, None
            if loop is None or self._process != os.getpid():
                return
            asyncio.run_coroutine_threadsafe(self._client.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _question(self, exchange: Exchange) -> _Question:
        return self._with_key(judge_messages(self.rubric, exchange), answer_form(self.rubric, exchange.risk))

    def _pair_question(self, exchange: Exchange, second: str) -> _Question:
        return self._with_key(pair_messages(self.rubric, exchange, second), pair_form(self.rubric))

    def _with_key(self, messages: list[dict[str, str]], form: AnswerForm) -> _Question:
        system, user = (message["content"] for message in messages)
        if system not in self._digests:  # the same for many questions, and long
            fixed = json.dumps([self.name, self.rubric.version, self._settings, system], sort_keys=True)
            self._digests[system] = hashlib.sha256(fixed.encode())
        digest = self._digests[system].copy()
        digest.update(user.encode())
        return _Question(messages, form, digest.hexdigest())

    def _verdicts(self, exchanges: Sequence[Exchange], answers: list[dict | None]) -> list[Verdict | None]:
        # The choices are "no" and "yes": their numbers are the answers.
        return [
            None
            if answer is None
            else self.rubric.verdict(
                dict(zip(answer, map(float, answer.values()), strict=True)), exchange.risk, self.name
            )
            for exchange, answer in zip(exchanges, answers, strict=True)
        ]

    def _answer_all(self, questions: Sequence[_Question]) -> list[dict | None]:
        answers, missing = self._look_up(questions)
        if missing:
            future = self._run(self._ask_all(missing))
            try:
                answers |= future.result()
            except BaseException:
                future.cancel()  # a caller that was interrupted pays for nothing more
                raise
        return [answers[question.key] for question in questions]

    def _look_up(self, questions: Sequence[_Question]) -> tuple[dict[str, dict], list[_Question]]:
        """Answers that the cache has, by key, and the questions to ask, each once."""
        answers, missing = {}, {}
        for question in questions:
            if question.key in answers or question.key in missing:
                continue
            kept = None if self._cache is None else self._cache.get(question.key)
            answer = None if kept is None else question.form.unpack(kept)
            if answer is not None:
                answers[question.key] = answer
                self._report.cached += 1
            else:
                missing[question.key] = question
        return answers, list(missing.values())

    def _run(self, work: Coroutine) -> concurrent.futures.Future:
        with self._start:
            if self._loop is None or self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                self._client = self._connect()
                self._slots = asyncio.Semaphore(self._concurrency)
                self._settled = asyncio.Condition()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=f"judge {self.name}")
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _ask_all(self, questions: list[_Question]) -> dict[str, dict | None]:
        answers = await asyncio.gather(*(self._ask(question) for question in questions))
        return {question.key: answer for question, answer in zip(questions, answers, strict=True)}

    async def _ask(self, question: _Question) -> dict | None:
        """The answer to one question, or `None` after the last attempt; the cause is counted and logged."""
        async with self._slots:
            for attempt in range(1, self.attempts + 1):
                try:
                    answer = await self._attempt(question)
                except _NoAnswer as failure:
                    wait = self._wait(attempt, failure)
                    if wait is None or attempt == self.attempts:
                        self._report.failures[failure.kind] += 1
                        if failure.kind != "budget" or self.failures["budget"] == 1:
                            logger.warning("judge %s: no answer (attempt %d): %s", self.name, attempt, failure.kind)
                        return None
                    self._report.retries[failure.kind] += 1
                    await asyncio.sleep(wait)
                else:
                    self._report.answered += 1
                    if self._cache is not None:
                        self._cache.set(question.key, question.form.pack(answer))
                    return answer

    def _wait(self, attempt: int, failure: _NoAnswer) -> float | None:
        """Seconds before the next attempt; `None` if there is none."""
        if failure.kind in FINAL or failure.kind == "budget":
            return None
        if failure.wait is None:
            return min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.5, 1)
        if failure.wait > LONGEST_WAIT:
            return None
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + failure.wait)
        return failure.wait * random.uniform(1, 1.1)  # not all at once

    async def _attempt(self, question: _Question) -> dict:
        """One request.

        Raises:
            _NoAnswer: nothing came, or nothing that is an answer.
        """
        while (pause := self._resume_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(pause)
        # Bytes bound tokens from above: every token of a message is a byte at least.
        prompt = TEMPLATE_TOKENS + len(
            json.dumps([question.messages, question.form.schema], ensure_ascii=False).encode("utf-8")
        )
        bound = (prompt, self._settings["max_completion_tokens"])
        await self._reserve(bound)
        usage = bound  # stays the bill where it is not known: interrupted, timed out, or not said by the server
        try:
            answer, usage = await self._send(question, bound)
            return answer
        except _NoAnswer as failure:
            usage = failure.usage or (bound if failure.kind in MAYBE_BILLED else (0, 0))
            raise
        finally:
            self._reserved.subtract(prompt=bound[0], completion=bound[1])
            self._report.prompt_tokens += usage[0]
            self._report.completion_tokens += usage[1]
            async with self._settled:
                self._settled.notify_all()

    async def _reserve(self, bound: tuple[int, int]) -> None:
        """Sets tokens aside before they are spent. Waits for requests under way, which mostly cost less than they may."""
        async with self._settled:
            while not self.budget.allows(
                self._report.prompt_tokens + self._reserved["prompt"] + bound[0],
                self._report.completion_tokens + self._reserved["completion"] + bound[1],
            ):
                if not self._reserved.total():
                    raise _NoAnswer("budget")
                await self._settled.wait()
            self._reserved.update(prompt=bound[0], completion=bound[1])

    async def _send(self, question: _Question, bound: tuple[int, int]) -> tuple[dict, tuple[int, int]]:
        import openai

        self._report.requests += 1
        try:
            async with asyncio.timeout(self.timeout):
                # The typed method would copy and check every message, for a third of the whole cost.
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=str,
                    body={
                        "model": self.name,
                        "messages": question.messages,
                        "response_format": {
                            "type": "json_schema",
                            "json_schema": {"name": "verdict", "strict": True, "schema": question.form.schema},
                        },
                        **self._settings,
                    },
                )
        except (openai.OpenAIError, TimeoutError) as error:
            # Not chained and without its message: errors hold requests, and those the key and people's words.
            raise _NoAnswer(_kind(error), _asked_wait(error)) from None
        return _read(response, question.form, bound)


def _client(api_key: str, base_url: str | None, timeout: float):
    from openai import AsyncOpenAI

    return AsyncOpenAI(api_key=api_key, base_url=base_url, timeout=timeout, max_retries=0)


def _check_url(base_url: str) -> None:
    """Refuses a URL with a password or a query in it: logs and errors of every library show URLs."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError('The base_url is no address like "http://localhost:8000/v1".')
    if url.username or url.password or url.query:
        raise ValueError("The base_url holds a password or a query; give the key as api_key.")


def _read(body: str, form: AnswerForm, bound: tuple[int, int]) -> tuple[dict, tuple[int, int]]:
    """Answer and usage (prompt and completion tokens) of a response.

    Raises:
        _NoAnswer: it holds no answer.
    """
    usage = bound
    try:
        content = json.loads(body)
        usage = _usage(content.get("usage"), bound)
        choice = content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        if message.get("refusal") or reason == "content_filter":
            raise _NoAnswer("refusal", usage=usage)
        if reason == "length":
            raise _NoAnswer("truncated", usage=usage)
        text = message["content"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _NoAnswer("no_completion", usage=usage) from None
    answer = form.parse(text)
    if answer is None:
        raise _NoAnswer("off_form", usage=usage)
    return answer, usage


def _usage(usage: object, bound: tuple[int, int]) -> tuple[int, int]:
    """Prompt and completion tokens as the server says; the bound where it says nothing that can be."""
    if not isinstance(usage, dict):
        return bound
    tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return tokens if all(type(count) is int and count >= 0 for count in tokens) else bound


def _kind(error: Exception) -> str:
    import openai

    if isinstance(error, openai.RateLimitError):
        return "quota" if error.code == "insufficient_quota" else "rate_limit"
    kinds = {
        openai.APITimeoutError: "timeout",
        TimeoutError: "timeout",
        openai.APIConnectionError: "connection",
        openai.AuthenticationError: "authentication",
        openai.PermissionDeniedError: "authentication",
        openai.NotFoundError: "not_found",
        openai.BadRequestError: "bad_request",
        openai.UnprocessableEntityError: "bad_request",
        openai.APIStatusError: "server_error",
    }
    return next((kind for errors, kind in kinds.items() if isinstance(error, errors)), "no_completion")


def _asked_wait(error: Exception) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number or a date), if there is one."""
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(wait, 0.0) if wait == wait else None


def _preference(straight: dict | None, swapped: dict | None, choices: dict[str, tuple[str, ...]]) -> Preference | None:
    """`straight` and `swapped`: answers to the pair in both orders, by dimension the number of the choice."""
    if straight is None or swapped is None:
        return None
    turned = {"first": "second", "second": "first", "tie": "tie"}
    found, disagreements = {}, 0
    for name, options in choices.items():
        says, again = options[straight[name]], turned[options[swapped[name]]]
        found[name] = says if says == again else "tie"
        disagreements += says != again
    lead = sum((says == "first") - (says == "second") for says in found.values())
    return Preference(found, "first" if lead > 0 else "second" if lead < 0 else "tie", disagreements)
