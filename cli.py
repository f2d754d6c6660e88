"""The `multimood` command.

    multimood respond --video clip.mp4 --text "I didn't sleep again." --history earlier.json
    multimood demo

Everything heavy is imported where it is used, so that `multimood --help` answers at once.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import conversion
from .datasets_scripts.commands import add_data_command

TINY = Path(__file__).parent / "assets" / "multimood-tiny"
TOY = "multimood-tiny is a toy, trained on drawn faces and synthetic voices. It is not for people in need."

SPEAKER_NAMES = {"client": "client", "user": "client", "therapist": "therapist", "sys": "therapist"}  # MESC's too
FIELD_NAMES = {
    "client_emotion": "Client's emotion",
    "therapist_emotion": "Therapist's emotion",
    "strategy": "Therapist's strategy",
}
BAR = 24  # characters of a probability of 1
SHOWN = 3  # labels of a field
ESTIMATES = "Estimates of a model, often wrong:"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 2 where the input is at fault, after one line that says how."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _note("note", message)
            args.run(args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        _note("error", error)
        return 2
    return 0


def _note(kind: str, message: object) -> None:
    print(f"multimood: {kind}: {' '.join(str(message).split())}", file=sys.stderr)


def read_history(path: str | Path) -> dict:
    """An earlier dialogue from a file.

    The file is JSON: a list of `{"speaker", "text"}`, or an object with such a list under "history" (a row) or "dialog"
    (a dialogue of MESC), with "problem_type" and "situation" beside it. A `.jsonl` file has an utterance a line.
    Speakers are "client" and "therapist", or MESC's "user" and "sys".

    Returns:
        `dict`: "utterances", "problem_type" and "situation"; the last two may be None.

    Raises:
        ValueError: with file and line or utterance, where the file has another form.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: a history is a JSON file") from error
    settings = {"problem_type": None, "situation": None}
    if path.suffix == ".jsonl":
        lines = enumerate(text.splitlines(), start=1)
        places = [(f"{path}, line {number}", _json(line, path, number)) for number, line in lines if line.strip()]
    else:
        content = _json(text, path)
        if isinstance(content, dict):
            settings = {name: content.get(name) for name in settings}
            content = content.get("history", content.get("dialog"))
        if not isinstance(content, list):
            raise ValueError(f'{path} holds no dialogue: give a list of utterances, or an object with "history"')
        places = [(f"{path}, utterance {number}", said) for number, said in enumerate(content, start=1)]
    return {"utterances": [_utterance(said, place) for place, said in places], **settings}


def _json(text: str, path: Path, line: int = 1):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg})") from error


def _utterance(said: object, place: str) -> dict:
    if not isinstance(said, dict):
        raise ValueError(f'{place}: {str(said)[:40]!r} is no utterance; write {{"speaker": "client", "text": "…"}}')
    if "dialog" in said or "history" in said:
        raise ValueError(f"{place}: a whole dialogue; give a file that holds just one")
    speaker = SPEAKER_NAMES.get(str(said.get("speaker")).lower())
    if speaker is None:
        raise ValueError(f'{place}: unknown speaker {said.get("speaker")!r}; use "client" or "therapist"')
    if not isinstance(said.get("text"), str):
        raise ValueError(f"{place}: the text is {said.get('text')!r}; give a string")
    return {"speaker": speaker, "text": said["text"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multimood", description="Emotional support that sees, hears and remembers.", epilog=TOY
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    respond = commands.add_parser("respond", help="answer a clip, a sound or words", epilog=TOY)
    respond.add_argument("--video", metavar="PATH", help="clip of the client; its sound is heard too")
    respond.add_argument("--audio", metavar="PATH", help="sound of the client, in place of the clip's own")
    respond.add_argument("--text", help="the client's words")
    respond.add_argument("--history", metavar="FILE", help="earlier dialogue: JSON or JSONL of speaker and text")
    respond.set_defaults(run=_respond)

    demo = commands.add_parser("demo", help="answer a freshly drawn clip, with a long history", epilog=TOY)
    demo.add_argument("--seed", type=int, help="draw the clip and the dialogue of this number again")
    demo.set_defaults(run=_demo)

    add_data_command(commands)
    conversion.add_parser(commands)

    for command in (respond, demo):
        command.add_argument(
            "--model", metavar="PATH", default=TINY, help="folder or Hub id (default: multimood-tiny)"
        )
        command.add_argument("--region", metavar="CODE", help="the client's country, e.g. US, for its crisis lines")
        command.add_argument("--minor", action="store_true", help="the client is a minor")
        command.add_argument("--no-estimates", action="store_true", help="show no emotions and no strategy")
        command.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    return parser


def _respond(args: argparse.Namespace) -> None:
    # Everything that can be wrong with the arguments is said before the model is loaded.
    if args.text is None and args.video is None and args.audio is None:
        raise ValueError("nothing to answer: give --video, --audio or --text")
    for source in (args.video, args.audio):
        if source is not None and "://" not in source and not Path(source).is_file():
            raise ValueError(f"{source} is no file")
    history = read_history(args.history) if args.history else {"utterances": []}
    _answer(args, history, text=args.text, video=args.video, audio=args.audio)


def _demo(args: argparse.Namespace) -> None:
    import random

    from .datasets_scripts.synthetic import asked_fact, generate_rows

    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1_000_000)
    (row,) = generate_rows("test", 1, seed, tempfile.mkdtemp(prefix="multimood-demo-"), tracks="both")
    if not args.json:
        subject, value, back = asked_fact(row)
        told = row["history"][-back]
        print(f"A drawn client (seed {seed}) comes back to the therapist about {row['problem_type']}.")
        print(f"They have said {len(row['history'])} things so far. It began:")
        _tell(row["history"][:2])
        print(f"{back} utterances ago the client told a fact that only the memory still holds ({subject}: {value}):")
        _tell([told])
        print("Now:")
        _tell([*row["history"][-1:], {"speaker": "client", "text": row["utterance"]}])
        print(f"  {row['videos'][0]}")
        print(
            f"Face and voice, and nothing else, show {row['client_emotion']}; fitting would be: {row['strategy']}.\n"
        )
    history = {"utterances": row["history"], "problem_type": row["problem_type"], "situation": row["situation"]}
    _answer(args, history, text=row["utterance"], video=row["videos"][0])


def _tell(utterances: list[dict]) -> None:
    for said in utterances:
        print(f"  {said['speaker'].capitalize() + ':':<11}{said['text']}")


def _answer(args: argparse.Namespace, history: dict, **turn) -> None:
    from .trust.crisis import CrisisPolicy

    policy = CrisisPolicy(args.region, young=args.minor)
    from transformers.utils import logging

    from .session import SupportSession

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if Path(args.model) == TINY:
        print(f"{TOY}\n", file=sys.stderr)
        if not TINY.is_dir():
            raise ValueError(f"{TINY} is not there: make it with `make tiny`, or give --model")
    settings = {name: history.get(name) for name in ("problem_type", "situation")}
    session = SupportSession.from_pretrained(args.model, policy=policy, **settings)
    session.add_history(history["utterances"])
    with session.stream(**turn) as stream:
        if not args.json:
            if stream.probabilities and not args.no_estimates:
                print(f"{ESTIMATES}\n{table(stream.probabilities)}\n")
            print("Therapist: ", end="", flush=True)
        for piece in stream:
            if not args.json:
                print(piece, end="", flush=True)
    reply = stream.reply
    if args.json:
        kept = reply.to_dict()
        if args.no_estimates:
            kept["probabilities"] = {}
            kept["turn"] = {"response": reply.turn.response}
        print(json.dumps(kept, ensure_ascii=False))
        return
    print(f"\n\n{_risk_line(reply.risk)}")
    if reply.error:
        _note("note", f"the model failed, and the written crisis reply stands in for it: {reply.error}")
        return
    tokens, seconds = reply.prompt_tokens, reply.seconds
    print(
        f"Memory: {tokens['memory']} utterances as {tokens['memory']} tokens, {reply.saved_tokens:,} tokens saved.\n"
        f"Prompt: {sum(tokens.values()):,} tokens ({', '.join(f'{kind} {count:,}' for kind, count in tokens.items())}).\n"
        f"Time: media {seconds['media']:.2f} s, prefill {seconds['prefill']:.2f} s, "
        f"response {seconds['generation']:.2f} s for {reply.new_tokens} tokens."
    )


def _risk_line(risk: dict) -> str:
    signs = "; ".join(f"{sign['text']!r} ({sign['category']})" for sign in risk["evidence"])
    return (
        f"Risk read from the words: {risk['level']}{f', by {signs}' if signs else ''}. A screen, which misses people."
    )


def table(probabilities: dict[str, dict[str, float]]) -> str:
    """Each field's most probable labels, with bars."""
    width = max(len(label) for of in probabilities.values() for label in of)
    lines = []
    for field, of in probabilities.items():
        name = FIELD_NAMES[field]
        for label, probability in sorted(of.items(), key=lambda item: -item[1])[:SHOWN]:
            lines.append(f"{name:<22}{label:<{width}}  {_bar(probability):<{BAR}} {probability:>6.1%}")
            name = ""
    return "\n".join(lines)


def _bar(probability: float) -> str:
    """`probability` · `BAR` characters, to the eighth of one."""
    eighths = round(probability * BAR * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


if __name__ == "__main__":
    sys.exit(main())
