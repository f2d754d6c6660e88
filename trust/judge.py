"""Judges that score a reply by the rubric: through any OpenAI-compatible endpoint, or several judges as one.

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
import json
import logging
import os
import random
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from .judge_prompt import Exchange, answer_schema, judge_messages, pair_messages, pair_schema
from .rubric import DIMENSIONS, Rubric, Verdict
from .verdict_cache import VerdictCache, cache_key

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
class Budget:
    """What a judge may spend, in tokens, in money or in both. It is the caller's money: prices are not guessed.

    Args:
        max_tokens (`int`, *optional*): prompt and completion tokens together.
        max_cost (`float`, *optional*): in the currency of the prices.
        input_price, output_price (`float`, *optional*): of a million tokens; needed with `max_cost`, and for a report in money.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; give a number of at least 0.")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("Give both prices or none.")
        if self.max_cost is not None and self.input_price is None:
            raise ValueError("max_cost needs input_price and output_price, of a million tokens each.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """In the prices' currency; `None` without prices."""
        if self.input_price is None:
            return None
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6

    def allows(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Whether so many tokens in all are within the budget."""
        if self.max_tokens is not None and prompt_tokens + completion_tokens > self.max_tokens:
            return False
        return self.max_cost is None or self.cost(prompt_tokens, completion_tokens) <= self.max_cost


@dataclass
class CostReport:
    """What a judge did and spent since it was made.

    Args:
        judge (`str`): its name.
        requests (`int`): sent, repeated attempts included.
        cached (`int`): answers that were taken from the cache.
        answered (`int`): answers that came and were valid.
        failures (`Counter`): questions left without an answer, by cause.
        retries (`Counter`): attempts that failed and were repeated, by cause.
        prompt_tokens, completion_tokens (`int`): as the server counted them; an upper bound where it did not say.
        cost (`float`, *optional*): in the currency of the budget's prices.
    """

    judge: str
    requests: int = 0
    cached: int = 0
    answered: int = 0
    failures: Counter = field(default_factory=Counter)
    retries: Counter = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def __str__(self):
        causes = ", ".join(f"{cause} {count}" for cause, count in self.failures.most_common()) or "none"
        money = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.judge}: {self.answered} answered, {self.cached} from the cache, {self.failures.total()} without an answer "
            f"({causes}); {self.requests} requests, {self.retries.total()} repeated, "
            f"{self.prompt_tokens} + {self.completion_tokens} tokens{money}"
        )


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
    """One request: its messages, the schema of the answer, and the key it is cached by."""

    messages: list[dict[str, str]]
    schema: dict
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
        cache: VerdictCache | None = None,
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
        self.name = model
        self.rubric = rubric or Rubric.load()
        self.attempts, self.timeout = attempts, timeout
        self.budget = budget or Budget()
        self._settings = {
            "max_completion_tokens": max_completion_tokens,
            **({"temperature": 0} if options is None else options),
        }
        self._key_parts = (model, self.rubric.version, json.dumps(self._settings, sort_keys=True))
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
        return [_preference(*both) for both in zip(answers[::2], answers[1::2], strict=True)]

    def close(self) -> None:
        """Ends connections and the thread that holds them. A judge may be used again afterwards."""
        with self._start:
            if self._loop is None:
                return
            loop, self._loop = self._loop, None
        asyncio.run_coroutine_threadsafe(self._client.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _question(self, exchange: Exchange) -> _Question:
        messages = judge_messages(self.rubric, exchange)
        return self._with_key(messages, answer_schema(self.rubric, exchange.risk))

    def _pair_question(self, exchange: Exchange, second: str) -> _Question:
        return self._with_key(pair_messages(self.rubric, exchange, second), pair_schema(self.rubric))

    def _with_key(self, messages: list[dict[str, str]], schema: dict) -> _Question:
        return _Question(messages, schema, cache_key(*self._key_parts, *(message["content"] for message in messages)))

    def _verdicts(self, exchanges: Sequence[Exchange], answers: list[dict | None]) -> list[Verdict | None]:
        verdicts = []
        for exchange, answer in zip(exchanges, answers, strict=True):
            if answer is not None:
                items = {item: float(says == "yes") for part in answer.values() for item, says in part.items()}
                answer = self.rubric.verdict(items, exchange.risk, self.name)
            verdicts.append(answer)
        return verdicts

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
            kept = self._cache.get(question.key) if self._cache else None
            if kept is not None and _conforms(kept, question.schema):
                answers[question.key] = kept
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
                threading.Thread(target=self._loop.run_forever, daemon=True, name=f"judge {self.name}").start()
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
                    if self._cache:
                        self._cache.set(question.key, answer)
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
            json.dumps([question.messages, question.schema], ensure_ascii=False).encode("utf-8")
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
                response = await self._client.chat.completions.with_raw_response.create(
                    model=self.name,
                    messages=question.messages,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "verdict", "strict": True, "schema": question.schema},
                    },
                    **self._settings,
                )
        except (openai.OpenAIError, TimeoutError) as error:
            # Not chained and without its message: errors hold requests, and those the key and people's words.
            raise _NoAnswer(_kind(error), _asked_wait(error)) from None
        return _read(response.text, question.schema, bound)


class JudgeEnsemble(Judge):
    """Several judges as one: the mean of their answers, and how far they disagree.

    Args:
        judges (`Sequence[Judge]`): with different names and one rubric. Half of them at least must have a verdict on a reply;
            otherwise it has none.
    """

    def __init__(self, judges: Sequence[Judge]):
        names = [judge.name for judge in judges]
        if not judges or len(set(names)) != len(names):
            raise ValueError(f"An ensemble takes judges with different names; these are {names}.")
        if any(judge.rubric != judges[0].rubric for judge in judges):
            raise ValueError("The judges of an ensemble must have one rubric.")
        self.judges = tuple(judges)
        self.name = f"mean of {', '.join(names)}"
        self.rubric = judges[0].rubric
        self.failures = Counter()

    def __repr__(self):
        return f"JudgeEnsemble({list(self.judges)})"

    def score(self, exchanges: Sequence[Exchange]) -> list["EnsembleVerdict | None"]:
        with concurrent.futures.ThreadPoolExecutor(len(self.judges)) as pool:
            rows = pool.map(lambda judge: judge.score(exchanges), self.judges)
            members = zip(*rows, strict=True)
            return [self._join(verdicts) for verdicts in members]

    def _join(self, verdicts: Sequence[Verdict | None]) -> "EnsembleVerdict | None":
        found = [verdict for verdict in verdicts if verdict is not None]
        if len(found) * 2 < len(verdicts):
            self.failures["too_few_members"] += 1
            return None
        members = {judge.name: verdict for judge, verdict in zip(self.judges, verdicts, strict=True)}
        items = dict.fromkeys(item for verdict in found for item in verdict.answers)
        answers = {item: [verdict.answers[item] for verdict in found if item in verdict.answers] for item in items}
        scores = {name: [verdict.scores[name] for verdict in found] for name in DIMENSIONS}
        failed = tuple(dict.fromkeys(gate for verdict in found for gate in verdict.failed_gates))
        return EnsembleVerdict(
            {item: statistics.fmean(values) for item, values in answers.items()},
            {name: statistics.fmean(values) for name, values in scores.items()},
            failed,
            0.0 if failed else statistics.fmean(verdict.total for verdict in found),
            self.name,
            members,
            {name: statistics.pstdev(values) for name, values in scores.items()} if len(found) > 1 else None,
        )


@dataclass(frozen=True)
class EnsembleVerdict(Verdict):
    """The mean verdict of several judges. One member that finds a gate failed is enough to fail it.

    Args:
        members (`dict[str, Verdict | None]`): by judge; `None` where a member had none.
        disagreement (`dict[str, float]`, *optional*): by dimension, the standard deviation of the members' scores, in
            [0, 0.5]; `None` where one member alone had a verdict.
    """

    members: dict[str, Verdict | None]
    disagreement: dict[str, float] | None


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


def _conforms(answer: object, schema: dict) -> bool:
    """Whether an answer is of a schema of objects and choices: nothing missing, nothing added."""
    if "enum" in schema:
        return isinstance(answer, str) and answer in schema["enum"]
    properties = schema["properties"]
    return (
        isinstance(answer, dict)
        and answer.keys() == properties.keys()
        and all(_conforms(answer[name], properties[name]) for name in properties)
    )


def _read(body: str, schema: dict, bound: tuple[int, int]) -> tuple[dict, tuple[int, int]]:
    """Answer and usage (prompt and completion tokens) of a response.

    The message must be the JSON object and nothing else: JSON found inside other text may be the reply's own, quoted.

    Raises:
        _NoAnswer: it is not.
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
    try:
        answer = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, TypeError, RecursionError):
        raise _NoAnswer("not_json", usage=usage) from None
    if not _conforms(answer, schema):
        raise _NoAnswer("off_schema", usage=usage)
    return answer, usage


def _usage(usage: object, bound: tuple[int, int]) -> tuple[int, int]:
    """Prompt and completion tokens as the server says; the bound where it says nothing that can be."""
    if not isinstance(usage, dict):
        return bound
    tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return tokens if all(type(count) is int and count >= 0 for count in tokens) else bound


def _unique(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


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


def _preference(straight: dict | None, swapped: dict | None) -> Preference | None:
    if straight is None or swapped is None:
        return None
    turned = {"first": "second", "second": "first", "tie": "tie"}
    choices = {name: says if says == turned[swapped[name]] else "tie" for name, says in straight.items()}
    disagreements = sum(straight[name] != turned[swapped[name]] for name in straight)
    lead = sum((says == "first") - (says == "second") for says in choices.values())
    return Preference(choices, "first" if lead > 0 else "second" if lead < 0 else "tie", disagreements)
