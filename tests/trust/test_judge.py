"""Judges against a real OpenAI-compatible server in a process of its own."""

import asyncio
import json
import logging
import pickle
import re
import signal
import subprocess
import sys
import time
import traceback
from email.utils import formatdate

import pytest
from judge_server import FAILURES, chosen, expected, running_server
from steering_replies import STEERING

from multimood.trust.ensemble import JudgeEnsemble
from multimood.trust.judge import OpenAIJudge
from multimood.trust.judge_prompt import Exchange
from multimood.trust.risk_state import RiskLevel
from multimood.trust.rubric import Rubric
from multimood.trust.rule_judge import RuleJudge
from multimood.trust.spending import Budget
from multimood.trust.verdict_cache import VerdictCache

CONVERSATION = [{"speaker": "client", "text": "My sister moved out and the house is so quiet."}]
KEY = "sk-planted-4f9a1c77e2b04d5f"
RUBRIC = Rubric.load()
# What a failure is counted as, once the attempts are used up.
CAUSES = {
    "http_400": "bad_request",
    "http_401": "authentication",
    "http_429": "rate_limit",
    "http_500": "server_error",
    "time_out": "timeout",
    "cut_connection": "connection",
    "cut_body": "no_completion",
    "empty_body": "no_completion",
    "no_choices": "no_completion",
    "length": "truncated",
    "refusal": "refusal",
    **dict.fromkeys(("cut_json", "out_of_range", "prose", "fenced", "missing_field", "extra_field"), "off_form"),
    **dict.fromkeys(("repeated_field", "null_field", "null_content"), "off_form"),
}


def exchanges(count, **changes):
    return [exchange(f"That sounds lonely. ({number})", **changes) for number in range(count)]


def exchange(reply, **changes):
    return Exchange(**{"conversation": CONVERSATION, "reply": reply, "risk": "none", "emotion": "sadness", **changes})


def right(exchange, judge="test"):
    items = [item.id for asked in RUBRIC.questions(exchange.risk).values() for item in asked]
    return RUBRIC.verdict({item: float(expected(exchange.reply, item)) for item in items}, exchange.risk, judge)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Nobody learns more from a longer wait between attempts."""
    monkeypatch.setattr("multimood.trust.judge.FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


def judge_of(server, **settings):
    return OpenAIJudge("test", base_url=server.base_url, **settings)


@pytest.mark.parametrize("risk", RiskLevel)
def test_verdicts_are_the_servers(server, risk):
    asked = exchanges(8, risk=risk)
    with judge_of(server) as judge:
        assert judge.score(asked) == [right(exchange) for exchange in asked]
    assert len({verdict.total for verdict in map(right, asked)}) > 1, "or the comparison would show nothing"


def test_one_request_a_reply_and_equal_ones_once():
    with running_server() as server, judge_of(server) as judge:
        verdicts = judge.score([exchange("a"), exchange("b"), exchange("a")])
        assert server.stats()["requests"] == judge.report().requests == 2
    assert verdicts[0] == verdicts[2] != verdicts[1]


def test_cached_verdicts_cost_no_request(tmp_path):
    asked = exchanges(12)
    with running_server() as server:
        with judge_of(server, cache=VerdictCache(tmp_path)) as judge:
            first = judge.score(asked)
        with judge_of(server, cache=VerdictCache(tmp_path)) as judge:
            assert judge.score(asked) == first
            assert judge.report().cached == 12
            assert server.stats()["requests"] == 12
    with judge_of(server, cache=VerdictCache(tmp_path)) as judge:  # the server is gone
        assert judge.score(asked) == first


@pytest.mark.parametrize("change", ["model", "rubric version", "options", "conversation", "reply", "emotion", "risk"])
def test_a_verdict_is_cached_by_all_it_depends_on(change, server, tmp_path):
    cache, model, settings, asked = VerdictCache(tmp_path), "test", {}, exchange("a")
    with OpenAIJudge(model, base_url=server.base_url, cache=cache) as judge:
        judge.score([asked])
    if change == "model":
        model = "other"
    elif change == "rubric version":
        settings["rubric"] = Rubric("2", RUBRIC.language, RUBRIC.dimensions)
    elif change == "options":
        settings["options"] = {"temperature": 1}
    else:
        conversation = [*CONVERSATION, {"speaker": "client", "text": "I cry."}]
        values = {"conversation": conversation, "reply": "b", "emotion": "joy", "risk": "low"}
        asked = exchange(**{"reply": "a", change: values[change]})
    with OpenAIJudge(model, base_url=server.base_url, cache=cache, **settings) as judge:
        judge.score([asked])
        assert judge.report().cached == 0
        judge.score([asked])
        assert judge.report().cached == 1


def test_only_so_many_requests_at_a_time():
    with running_server(latency=0.05) as server, judge_of(server, concurrency=3) as judge:
        judge.score(exchanges(12))
        assert server.stats()["most_at_once"] == 3


def test_sync_and_async_callers_inside_and_outside_a_loop(server):
    asked = exchanges(4)
    wanted = [right(exchange) for exchange in asked]
    with judge_of(server) as judge:

        async def main():
            assert judge.score(asked) == wanted
            return await asyncio.gather(*(judge.ascore([exchange]) for exchange in asked))

        assert judge.score(asked) == wanted
        assert asyncio.run(main()) == [[verdict] for verdict in wanted]
        assert asyncio.run(judge.ascore(asked)) == wanted  # another loop
    assert judge.score(asked) == wanted, "and again after it was closed"
    judge.close()


def test_a_cancelled_caller_pays_for_nothing_more():
    with running_server(latency=0.3) as server, judge_of(server, concurrency=1) as judge:

        async def main():
            await asyncio.wait_for(judge.ascore(exchanges(10)), 0.4)

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        time.sleep(0.8)
        assert server.stats()["requests"] <= 3


@pytest.mark.parametrize("failure", [*FAILURES, "http_401", "http_400"])
def test_a_failure_gives_no_verdict_and_is_counted(failure):
    with (
        running_server(failures=[failure]) as server,
        judge_of(server, attempts=2, timeout=0.5 if failure == "time_out" else 30) as judge,
    ):
        assert judge.score(exchanges(2)) == [None, None]
        assert judge.failures == {CAUSES[failure]: 2}
        assert judge.report().answered == 0
        again = failure not in ("refusal", "http_400", "http_401")
        assert server.stats()["requests"] == (4 if again else 2)
        assert judge.report().retries == ({CAUSES[failure]: 2} if again else {})


def test_a_server_that_is_not_there_gives_no_verdict():
    with running_server() as server:
        pass
    with judge_of(server, attempts=1) as judge:
        assert judge.score(exchanges(1)) == [None]
        assert judge.failures == {"connection": 1}


def test_thirty_per_cent_failures_leave_every_other_verdict_right(tmp_path):
    asked = exchanges(120)
    failing = [chosen(exchange.reply, FAILURES, 0.3) for exchange in asked]
    assert 0.2 < sum(map(bool, failing)) / len(asked) < 0.4
    assert len(set(failing)) > len(FAILURES) * 0.7
    with running_server(failures=FAILURES, share=0.3) as server:
        with judge_of(server, attempts=2, timeout=3, cache=VerdictCache(tmp_path)) as judge:
            verdicts = judge.score(asked)
        assert verdicts == [None if fails else right(exchange) for exchange, fails in zip(asked, failing, strict=True)]
        assert judge.failures.total() == sum(map(bool, failing))
        assert len(VerdictCache(tmp_path)) == failing.count(None), "no failure is kept"


def test_failures_that_pass_leave_every_verdict_right():
    asked = exchanges(120)
    passing = [failure for failure in FAILURES if failure != "refusal"]  # a refusal is final
    with (
        running_server(failures=passing, share=0.3, once=True) as server,
        judge_of(server, timeout=3) as judge,
    ):
        assert judge.score(asked) == [right(exchange) for exchange in asked]
        assert judge.failures == {}
        assert judge.report().retries.total() == sum(bool(chosen(e.reply, tuple(passing), 0.3)) for e in asked)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_wait_that_a_server_asks_for_is_kept(form):
    asked = "1" if form == "seconds" else formatdate(time.time() + 3, usegmt=True)
    with (
        running_server(failures=["http_429"], once=True, retry_after=asked) as server,
        judge_of(server) as judge,
    ):
        start = time.monotonic()
        assert judge.score(exchanges(1)) == [right(exchange) for exchange in exchanges(1)]
        assert time.monotonic() - start > 0.9


def test_a_wait_beyond_reason_is_a_failure_at_once():
    with running_server(failures=["http_429"], retry_after="86400") as server, judge_of(server) as judge:
        assert judge.score(exchanges(1)) == [None]
        assert (judge.failures, judge.report().requests) == ({"rate_limit": 1}, 1)


def test_a_killed_run_goes_on_from_the_cache(tmp_path):
    program = f"""
from multimood.trust.judge import OpenAIJudge
from multimood.trust.judge_prompt import Exchange
from multimood.trust.verdict_cache import VerdictCache
asked = [Exchange({CONVERSATION!r}, f"That sounds lonely. ({{number}})", "none", "sadness") for number in range(40)]
OpenAIJudge("test", base_url=%r, cache=VerdictCache({str(tmp_path)!r}), concurrency=2).score(asked)
"""
    with running_server(latency=0.1) as server:
        with subprocess.Popen([sys.executable, "-c", program % server.base_url]) as process:
            while server.stats()["requests"] < 12:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        asked, kept, before = exchanges(40), len(VerdictCache(tmp_path)), server.stats()["requests"]
        assert before - 2 <= kept + 2 <= 38, "what was answered was kept: at most the two under way are lost"
        with judge_of(server, cache=VerdictCache(tmp_path)) as judge:
            assert judge.score(asked) == [right(exchange) for exchange in asked]
            assert (judge.report().cached, judge.report().requests) == (kept, 40 - kept)


def test_the_budget_in_tokens_is_never_exceeded(caplog, tmp_path):
    # The server bills 1,200 tokens a request; a request may cost some 13,000.
    with (
        running_server() as server,
        judge_of(server, budget=Budget(max_tokens=30_000), cache=VerdictCache(tmp_path)) as judge,
    ):
        verdicts = judge.score(exchanges(40))
        report = judge.report()
        assert report.prompt_tokens + report.completion_tokens <= 30_000
        found = sum(verdict is not None for verdict in verdicts)
        assert 10 <= found < 40, "unspent reservations are given back"
        assert judge.failures == {"budget": 40 - found}
        assert caplog.text.count("budget") == 1, "said once, not for each reply"
        sent = report.requests
        assert judge.score(exchanges(40))[0] == verdicts[0], "what is cached costs nothing"
        assert judge.report().requests == sent == server.stats()["requests"]


def test_the_budget_in_money_is_never_exceeded():
    prices = {"input_price": 2.5, "output_price": 10.0}
    with running_server() as server, judge_of(server, budget=Budget(max_cost=0.1, **prices)) as judge:
        verdicts = judge.score(exchanges(40))
        found = sum(verdict is not None for verdict in verdicts)
        assert 0 < found < 40
        assert judge.report().cost == pytest.approx(found * (1000 * 2.5 + 200 * 10) / 1e6)
        assert judge.report().cost <= 0.1
        assert "cost 0." in str(judge.report())


def test_requests_without_a_bill_are_counted_by_their_bound():
    with running_server(usage=False) as server, judge_of(server) as judge:
        judge.score(exchanges(1))
        assert judge.report().completion_tokens == 2048
        assert judge.report().prompt_tokens > 5000
    with running_server(failures=["time_out"]) as server, judge_of(server, attempts=1, timeout=0.3) as judge:
        judge.score(exchanges(1))
        assert judge.report().completion_tokens == 2048, "it may be billed all the same"
    with running_server(failures=["http_429"]) as server, judge_of(server, attempts=1) as judge:
        judge.score(exchanges(1))
        assert judge.report().completion_tokens == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_cost": 1.0}, "needs input_price"),
        ({"input_price": 1.0}, "both input_price"),
        ({"max_tokens": -1}, "max_tokens is -1"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Budget(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": f"http://user:{KEY}@localhost/v1"}, "holds a password"),
        ({"base_url": f"http://localhost/v1?key={KEY}"}, "holds a password or a query"),
        ({"base_url": "localhost"}, "is no address"),
        ({"api_key": f"{KEY}\n", "base_url": "http://localhost/v1"}, "holds white space"),
        ({"concurrency": 0, "base_url": "http://localhost/v1"}, "concurrency is 0"),
        ({"attempts": 0, "base_url": "http://localhost/v1"}, "attempts is 0"),
        ({}, "There is no API key"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_no_key_is_shown(settings, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match=message) as error:
        OpenAIJudge("test", **settings)
    assert KEY not in "".join(traceback.format_exception(error.value))


def everything_of(error):
    """An exception, its causes and contexts, with arguments, attributes and representation."""
    seen = []
    while error is not None:
        seen += [repr(error), str(error), repr(error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(seen)


@pytest.mark.parametrize("failure", [None, "http_401", "http_429", "http_500", "cut_connection", "time_out", "prose"])
def test_no_key_in_logs_caches_representations_and_exceptions(failure, server, tmp_path, caplog, capfd, monkeypatch):
    """The server tells the key in its errors; openai, its HTTP library and asyncio log all they can."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio", "multimood"):
        caplog.set_level(logging.DEBUG, logger=name)
    cache = VerdictCache(tmp_path)
    with running_server(failures=[failure] if failure else [], echo_key=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        judge = OpenAIJudge("test", cache=cache, attempts=2, timeout=0.5 if failure == "time_out" else 30)
        with judge:
            verdicts = judge.score(exchanges(2))
            assert verdicts == ([None, None] if failure else [right(exchange) for exchange in exchanges(2)])
            shown = [
                repr(judge),
                str(judge),
                repr(vars(judge)),
                str(judge.report()),
                repr(judge.report()),
                repr(verdicts),
            ]
            shown += [repr(cache), repr(JudgeEnsemble([judge]))]
            with pytest.raises(TypeError) as error:
                pickle.dumps(judge)
            shown.append(everything_of(error.value))
            with pytest.raises(ValueError, match="reply is of type") as error:
                judge.score([exchange(None)])
            shown.append(everything_of(error.value))
    out, err = capfd.readouterr()
    logged = "\n".join(
        f"{record.getMessage()} {record.args!r} {record.exc_text} {vars(record)!r}" for record in caplog.records
    )
    assert "openai" in {record.name.split(".")[0] for record in caplog.records}, "the libraries did log"
    for text in (*shown, logged, caplog.text, out, err):
        assert KEY not in text
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        assert KEY.encode() not in path.read_bytes()


def test_a_key_in_the_environment_goes_to_no_other_server(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running_server(failures=["http_400"], echo_key=True) as server, judge_of(server, attempts=1) as judge:
        judge.score(exchanges(1))
        client = judge._client
        assert client.api_key != KEY


@pytest.mark.parametrize("failure", ["prose", "http_500"])
def test_no_word_of_a_conversation_is_logged_or_kept(failure, tmp_path, caplog):
    with (
        running_server(failures=[failure], share=0.5) as server,
        judge_of(server, attempts=1, cache=VerdictCache(tmp_path)) as judge,
    ):
        judge.score(exchanges(10))
    assert "no answer" in caplog.text
    assert "lonely" not in caplog.text
    assert "sister" not in caplog.text
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or (b"lonely" not in path.read_bytes() and b"sister" not in path.read_bytes())


def test_steering_replies_change_nothing_but_their_own_field(server):
    """The server reads the prompt by its grammar, so a reply that broke out would change what it answers."""
    asked = [exchange(reply, risk="high") for reply in STEERING.values()]
    assert len(asked) >= 50
    with judge_of(server) as judge:
        assert judge.score(asked) == [right(exchange) for exchange in asked]
        assert judge.failures == {}


@pytest.mark.parametrize("name", STEERING)
def test_steering_words_open_no_gate_of_the_embedded_judge(name):
    judge = RuleJudge()
    harmful = "You are right, it's hopeless. You should stop taking your pills. Let's keep this our secret."
    plain, steering = judge.score([exchange(harmful), exchange(f"{harmful} {STEERING[name]}")])
    assert plain.total == steering.total == 0
    assert set(plain.failed_gates) <= set(steering.failed_gates)


def test_forged_answers_of_a_steered_judge_are_no_verdicts():
    """A judge that gives in mostly repeats what the reply dictates, which is not of the rubric's form."""
    from multimood.trust.judge_prompt import answer_form

    form = answer_form(RUBRIC, RiskLevel.NONE)
    assert [name for name, reply in STEERING.items() if form.parse(reply) is not None] == []
    good = json.dumps({part: dict.fromkeys(fields, "yes") for part, fields in form.fields.items()})
    assert form.parse(good) is not None
    for wrapped in (
        f"{good} yes",
        f"{good}{good}",
        f"[{good}]",
        f'"{good}"',
        f"\ufeff{good}",
        good.replace("yes", "YES"),
    ):
        assert form.parse(wrapped) is None


def test_pairs_are_asked_in_both_orders(server):
    # This server prefers the longer reply, in whatever place.
    with judge_of(server) as judge:
        longer, shorter = judge.compare([(exchange("A long reply."), "Short."), (exchange("Short."), "A long reply.")])
        assert (longer.overall, shorter.overall) == ("first", "second")
        assert set(longer.choices.values()) == {"first"}
        assert longer.disagreements == 0
        assert judge.report().requests == 2, "the second pair is the first one, swapped"


def test_a_preference_for_a_place_is_a_tie():
    with running_server(biased=True) as server, judge_of(server) as judge:
        preference = judge.compare([(exchange("A long reply."), "Short.")])[0]
    assert preference.overall == "tie"
    assert set(preference.choices.values()) == {"tie"}
    assert preference.disagreements == 7


def test_a_pair_without_both_answers_has_no_preference():
    replies = [exchange.reply for exchange in exchanges(40)]
    first = next(reply for reply in replies if chosen(reply, ("prose",), 0.3))
    second = next(reply for reply in replies if not chosen(reply, ("prose",), 0.3))
    with running_server(failures=["prose"], share=0.3) as server, judge_of(server, attempts=1) as judge:
        assert judge.compare([(exchange(first), second)]) == [None]


def test_an_ensemble_is_the_mean_and_says_how_far_it_disagrees(server):
    asked = exchanges(5)
    with judge_of(server) as judge:
        members = [judge, RuleJudge()]
        verdicts = JudgeEnsemble(members).score(asked)
        alone = [member.score(asked) for member in members]
    for verdict, first, second in zip(verdicts, *alone, strict=True):
        for dimension in verdict.scores:
            a, b = first.scores[dimension], second.scores[dimension]
            assert verdict.scores[dimension] == pytest.approx((a + b) / 2)
            assert verdict.disagreement[dimension] == pytest.approx(abs(a - b) / 2)
        assert verdict.members == {"test": first, "rules (weak)": second}
        failed = set(first.failed_gates) | set(second.failed_gates)
        assert set(verdict.failed_gates) == failed
        assert verdict.total == (0 if failed else pytest.approx((first.total + second.total) / 2))


def test_an_ensemble_goes_on_without_a_member_and_stops_without_most(server):
    asked = exchanges(3)
    with running_server(failures=["prose"]) as broken, judge_of(server) as judge:
        others = [OpenAIJudge(f"broken {n}", base_url=broken.base_url, attempts=1) for n in range(2)]
        pair, three = JudgeEnsemble([judge, others[0]]), JudgeEnsemble([judge, *others])
        verdicts = pair.score(asked)
        assert [verdict.scores for verdict in verdicts] == [right(exchange).scores for exchange in asked]
        assert verdicts[0].members["broken 0"] is None
        assert verdicts[0].disagreement is None
        assert three.score(asked) == [None] * 3
        assert three.failures == {"too_few_members": 3}
        for other in others:
            other.close()


def test_members_of_an_ensemble_must_differ_and_share_a_rubric(server):
    with pytest.raises(ValueError, match="different names"):
        JudgeEnsemble([RuleJudge(), RuleJudge()])
    other = Rubric("2", RUBRIC.language, RUBRIC.dimensions)
    with pytest.raises(ValueError, match="one rubric"):
        JudgeEnsemble([RuleJudge(), judge_of(server, rubric=other)])


def test_the_report_reads_well(server):
    with judge_of(server) as judge:
        judge.score(exchanges(2))
        assert re.fullmatch(
            r"test: 2 answered, 0 from the cache, 0 without an answer \(none\); 2 requests, 0 repeated, 2000 \+ 400 tokens",
            str(judge.report()),
        )
