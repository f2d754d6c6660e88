"""An OpenAI-compatible server whose answers are known beforehand, with failures and latency on demand.

```python
with running_server(failures=("http_429",), share=0.3) as server:
    judge = OpenAIJudge("test", base_url=server.base_url)
    assert server.stats()["requests"] == 64
```

It is a process of its own: `python judge_server.py '{"latency": 1.0}'` prints its port. An answer follows from the reply and
the item alone, by [`expected`], so that a test knows every right verdict.
"""

import hashlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAILURES = (
    "http_429",
    "http_500",
    "time_out",
    "cut_connection",
    "cut_body",
    "cut_json",
    "length",
    "out_of_range",
    "prose",
    "fenced",
    "missing_field",
    "extra_field",
    "repeated_field",
    "null_field",
    "null_content",
    "no_choices",
    "empty_body",
    "refusal",
)


def expected(reply: str, item: str) -> bool:
    """Whether this server says "yes" to an item about a reply."""
    return hashlib.sha256(f"{item}:{reply}".encode("utf-8", "surrogatepass")).digest()[0] < 224


def chosen(reply: str, failures: tuple[str, ...], share: float) -> str | None:
    """The failure that befalls a reply, or `None`."""
    if not failures:
        return None
    digest = hashlib.sha256(b"failure:" + reply.encode("utf-8", "surrogatepass")).digest()
    return failures[digest[1] % len(failures)] if digest[0] < 256 * share else None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # clients connect all at once

    def __init__(self, settings: dict):
        super().__init__(("127.0.0.1", 0), Handler)
        self.latency = settings.get("latency", 0.0)
        self.failures, self.share = tuple(settings.get("failures", ())), settings.get("share", 1.0)
        self.once = settings.get("once", False)  # each reply fails the first time only
        self.retry_after = settings.get("retry_after")
        self.time_out = settings.get("time_out", 60.0)
        self.echo_key = settings.get("echo_key", False)  # an error tells the key, as some servers do
        self.usage = settings.get("usage", True)
        self.biased = settings.get("biased", False)  # of two replies the first is better, always
        self.stats, self.lock, self.under_way = Counter(), threading.Lock(), 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send(200, dict(self.server.stats))

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.under_way += 1
            server.stats["requests"] += 1
            server.stats["most_at_once"] = max(server.stats["most_at_once"], server.under_way)
        try:
            time.sleep(server.latency)
            self.respond(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a client that gave up
        finally:
            with server.lock:
                server.under_way -= 1

    def respond(self, request: dict) -> None:
        server, data = self.server, quoted(request["messages"][-1]["content"])
        reply = data.get("reply", data.get("first reply"))
        failure = chosen(reply, server.failures, server.share)
        if failure and server.once:
            with server.lock:
                server.stats[f"seen {reply}"] += 1
                if server.stats[f"seen {reply}"] > 1:
                    failure = None
        if failure:
            with server.lock:
                server.stats[failure] += 1
        schema = request["response_format"]["json_schema"]["schema"]["properties"]
        if "reply" in data:
            answer = {
                dimension: {item: "yes" if expected(reply, item) else "no" for item in part["properties"]}
                for dimension, part in schema.items()
            }
        else:
            better = "first" if server.biased or len(reply) > len(data["second reply"]) else "second"
            answer = dict.fromkeys(schema, better)
        self.fail(failure, answer) if failure else self.complete(json.dumps(answer))

    def fail(self, failure: str, answer: dict) -> None:
        """Answers with a failure, each of which holds a number or a verdict that a careless reader would take."""
        text = json.dumps(answer)
        part = next(iter(answer))
        item = next(iter(answer[part]))
        wrong = {
            "cut_json": lambda: text[: len(text) // 2],
            "out_of_range": lambda: json.dumps({**answer, part: {**answer[part], item: 11}}),
            "prose": lambda: f"Here is my verdict: {text} I hope this helps.",
            "fenced": lambda: f"```json\n{text}\n```",
            "missing_field": lambda: json.dumps(
                {**answer, part: {k: v for k, v in answer[part].items() if k != item}}
            ),
            "extra_field": lambda: json.dumps({**answer, "score": 10}),
            "repeated_field": lambda: text.replace(f'"{item}": ', f'"{item}": "yes", "{item}": ', 1),
            "null_field": lambda: json.dumps({**answer, part: {**answer[part], item: None}}),
        }
        if failure in wrong:
            self.complete(wrong[failure]())
        elif failure in ("http_429", "http_500", "http_401", "http_400"):
            message = f"failed for {self.headers['Authorization']}" if self.server.echo_key else "failed on purpose"
            error = {"message": message, "type": "test", "code": message}
            self.send(int(failure[5:]), {"error": error}, self.server.retry_after)
        elif failure == "time_out":
            time.sleep(self.server.time_out)
            self.complete(text)
        elif failure == "cut_connection":
            self.close_connection = True
        elif failure == "cut_body":
            body = json.dumps(completion(text)).encode()[:100]
            self.send_raw(200, body)
        elif failure == "empty_body":
            self.send_raw(200, b"")
        elif failure == "null_content":
            self.complete(None)
        elif failure == "no_choices":
            self.send(200, {**completion(text), "choices": []})
        elif failure == "length":
            self.complete(text, finish_reason="length")
        elif failure == "refusal":
            self.complete(text, refusal="I can't judge this.")
        else:
            raise ValueError(f"there is no failure {failure!r}")

    def complete(self, text: str | None, **choice) -> None:
        body = completion(text, **choice)
        if not self.server.usage:
            del body["usage"]
        self.send(200, body)

    def send(self, status: int, content: dict, retry_after: str | None = None) -> None:
        self.send_raw(status, json.dumps(content).encode(), retry_after)

    def send_raw(self, status: int, body: bytes, retry_after: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(body)


def completion(text: str | None, finish_reason: str = "stop", refusal: str | None = None) -> dict:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
    }


def quoted(message: str) -> dict[str, str]:
    """The fields between the data lines, by the grammar that the prompt promises: a name, a colon, a JSON string."""
    lines = message.split("\n")
    fields = {}
    for line in lines[lines.index("<data>") + 1 : lines.index("</data>")]:
        name, _, value = line.partition(": ")
        fields[name] = json.loads(value) if value.startswith('"') else value
    return fields


class Running:
    """A server's address, and what it counted."""

    def __init__(self, port: int):
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> Counter:
        with urllib.request.urlopen(f"{self.base_url}/stats") as response:
            return Counter(json.load(response))


@contextmanager
def running_server(**settings) -> Iterator[Running]:
    """A server process on a free port."""
    command = [sys.executable, __file__, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Running(int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    server = Server(json.loads(sys.argv[1]))
    print(server.server_address[1], flush=True)
    server.serve_forever()
