"""The Gradio page: a clip is uploaded or recorded, answered, and forgotten.

    python -m multimood.spaces_demo.app

`MULTIMOOD_MODEL` names another model: a folder, or a repository on the Hub.

A conversation lives in the memory of this process, one for each open page, until the visitor starts over or an hour has
passed. Uploads are deleted as soon as they are read.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported

import gradio as gr

import multimood
from multimood.session import SupportReply, SupportSession
from multimood.trust.crisis import CrisisPolicy
from multimood.trust.helplines import load_helplines

TINY = Path(multimood.__file__).parent / "assets" / "multimood-tiny"
TOY = " The model behind this page is a toy, trained on drawn faces and synthetic voices: its answers mean nothing."
DISCLOSURE = (
    "**You are talking to an AI, not to a person.** It makes mistakes, it misses emergencies, and it is "
    "**not a substitute for care**."
)
CONSENT = "Allow recording with my camera and microphone"
PRIVACY = (
    "Clips and sound are deleted as soon as they are read. The conversation is forgotten when you start over, or an "
    "hour after your last turn."
)
FIELDS = {"client_emotion": "You may feel", "therapist_emotion": "The reply feels", "strategy": "The reply's strategy"}
CAVEAT = "Guesses of a model from face, voice and words, each with its probability. They are often wrong."
SCREEN = "A screen of the words alone, in English. It misses people and is no finding about you."
COUNTRY, YOUNG = "Your country, for crisis lines", "I'm under 18"
OTHER_COUNTRY = ("Another one, or not said", "")
FAILED = "The model could not answer this turn; the written reply stands in for it."
SHOWN = 3  # labels of a field
EMPTY_MEMORY = "Nothing is remembered yet."
FORGET_AFTER = 3600  # seconds without a turn
UNSENT = (60, 600)  # seconds: how often uploads that were never sent are looked for, and how old they may get

# A long word must not widen a phone's page; and gradio's trimming fetches a program from elsewhere.
CSS = """
.gradio-container { max-width: 1080px !important; margin: auto !important; }
.message * { overflow-wrap: anywhere !important; }
button[aria-label="Trim video to selection"] { display: none; }
#disclosure { border-left: 4px solid var(--color-accent); padding: 10px 16px; background: var(--background-fill-secondary); }
#privacy p, #memory p, #risk p, #help p { font-size: var(--text-sm); margin: 0; }
#estimates { background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: var(--block-radius); padding: 4px 2px; }
#estimates p { font-size: var(--text-sm); margin: 0; }
#estimates h3 { font-size: var(--text-md); margin: 12px 0 4px; }
#estimates li { display: grid; grid-template-columns: 1fr 34% 3.2em; gap: 10px; align-items: center; list-style: none; margin: 3px 0; }
#estimates ul { margin: 0; padding: 0; }
#estimates .bar { background: var(--border-color-primary); border-radius: 4px; height: 8px; }
#estimates .bar div { background: var(--color-accent); border-radius: 4px; height: 100%; }
#estimates li span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""


def build_page(session: SupportSession, is_toy: bool = False) -> gr.Blocks:
    """The page, for any number of visitors.

    Args:
        session (`SupportSession`): its model, processor and generation settings serve all visitors; each begins a
            conversation of their own.
        is_toy (`bool`): say that the answers mean nothing.
    """

    @cache
    def policy(country: str, young: bool) -> CrisisPolicy:
        return CrisisPolicy(country or None, young=young)

    def answer(
        conversation: SupportSession | None,
        chat: list[dict],
        words: str,
        clip: str | None,
        sound: str | None,
        country: str,
        young: bool,
    ) -> Iterator[dict]:
        conversation = conversation or session.begin_another()
        conversation.policy = policy(country, young)
        try:
            with conversation.stream(words, _take(clip), _take(sound)) as stream:
                given = [name for name, path in (("clip", clip), ("sound", sound)) if path]
                said = "\n\n".join(
                    part for part in (words.strip(), given and f"*with a {' and '.join(given)}*") if part
                )
                chat = [*chat, {"role": "user", "content": said}, {"role": "assistant", "content": "…"}]
                cleared = {words_box: "", clip_box: None, sound_box: None, state: conversation}
                yield {chat_box: chat, estimates: _bars(stream.probabilities), **cleared}
                written = ""
                for piece in stream:
                    written += piece
                    chat[-1]["content"] = written
                    yield {chat_box: chat}
            reply = stream.reply
            yield {chat_box: chat, memory_box: _memory_line(conversation, reply), risk_box: _risk_line(reply)}
            if reply.error:
                gr.Warning(reply.error, title=FAILED)
        except (ValueError, OSError) as error:
            gr.Warning(str(error), title="This could not be answered")
            yield {clip_box: None, sound_box: None}  # their files are gone

    def start_over() -> dict:
        return {
            state: None,
            chat_box: [],
            memory_box: EMPTY_MEMORY,
            risk_box: "",
            clip_box: None,
            sound_box: None,
            estimates: _bars({}),
        }

    with gr.Blocks(title="MultiMood", analytics_enabled=False, delete_cache=UNSENT) as page:
        state = gr.State(None, time_to_live=FORGET_AFTER)
        gr.Markdown("# MultiMood\nEmotional support that sees, hears and remembers.")
        gr.Markdown(DISCLOSURE + (TOY if is_toy else ""), elem_id="disclosure")
        help_box = gr.Markdown(_help(session.policy), elem_id="help")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                chat_box = gr.Chatbot(
                    label="Conversation",
                    height=440,
                    buttons=[],
                    feedback_options=None,
                    placeholder="Write, or show and tell in a clip, and press Send.",
                )
                words_box = gr.Textbox(label="Your words", placeholder="What is on your mind?", lines=2, max_lines=6)
                with gr.Row():
                    send = gr.Button("Send", variant="primary", scale=2)
                    again = gr.Button("Start over", scale=1)
            with gr.Column(scale=2, min_width=300):
                country = load_helplines().region(session.policy.region)
                country_box = gr.Dropdown(_countries(), value=country.code if country else "", label=COUNTRY)
                young_box = gr.Checkbox(label=YOUNG, value=session.policy.young)
                consent = gr.Checkbox(label=CONSENT)
                with gr.Tab("Clip"):
                    clip_box = gr.Video(
                        label="Your clip, with its sound",
                        sources=["upload"],
                        include_audio=True,
                        webcam_options=gr.WebcamOptions(mirror=False),
                        buttons=[],
                    )
                with gr.Tab("Sound only"):
                    sound_box = gr.Audio(
                        label="Your voice; goes before the clip's sound",
                        sources=["upload"],
                        type="filepath",
                        buttons=[],
                    )
                gr.Markdown(PRIVACY, elem_id="privacy")
                show = gr.Checkbox(label="Show estimates", value=True)
                estimates = gr.HTML(_bars({}), elem_id="estimates")
                risk_box = gr.Markdown("", elem_id="risk")
                memory_box = gr.Markdown(EMPTY_MEMORY, elem_id="memory")

        outputs = {state, chat_box, words_box, clip_box, sound_box, memory_box, risk_box, estimates}
        gr.on(
            [send.click, words_box.submit],
            answer,
            [state, chat_box, words_box, clip_box, sound_box, country_box, young_box],
            outputs,
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        gr.on([again.click, chat_box.clear], start_over, None, outputs, api_visibility="private")
        consent.change(_recorders, consent, [clip_box, sound_box], api_visibility="private")
        show.change(lambda on: gr.HTML(visible=on), show, estimates, api_visibility="private")
        for box in (country_box, young_box):
            box.change(
                lambda country, young: _help(policy(country, young)),
                [country_box, young_box],
                help_box,
                show_progress="hidden",
                api_visibility="private",
            )
    return page


def launch(page: gr.Blocks, **options):
    """Serve the page without anything that would reach beyond this server."""
    font = ("system-ui", "sans-serif")  # gradio's own fonts would be fetched
    theme = gr.themes.Soft(primary_hue="teal", secondary_hue="teal", font=font, font_mono=("monospace",)).set(
        button_primary_background_fill="*primary_700",  # white on it is easy to read
        button_primary_background_fill_hover="*primary_800",
        checkbox_border_color="*neutral_500",
        body_background_fill="*neutral_50",
        block_border_width="1px",
        block_label_text_color="*primary_800",
        block_title_text_color="*primary_800",
    )
    return page.launch(theme=theme, css=CSS, ssr_mode=False, run_history=False, footer_links=[], **options)


def _recorders(allowed: bool) -> tuple[gr.Video, gr.Audio]:
    """Camera and microphone are there only while they are allowed."""
    return (
        gr.Video(sources=["upload", "webcam"] if allowed else ["upload"]),
        gr.Audio(sources=["upload", "microphone"] if allowed else ["upload"]),
    )


def _take(upload: str | None) -> bytes | None:
    """The content of an upload, whose file is deleted."""
    if upload is None:
        return None
    try:
        return Path(upload).read_bytes()
    finally:
        Path(upload).unlink(missing_ok=True)


def _bars(probabilities: dict[str, dict[str, float]]) -> str:
    """Each field's most probable labels as bars."""
    parts = [f"<p>{CAVEAT}</p>"]
    for field, of in probabilities.items():
        best = sorted(of.items(), key=lambda item: -item[1])[:SHOWN]
        rows = "".join(
            f'<li><span>{label}</span><div class="bar"><div style="width: {p:.1%}"></div></div><span>{p:.0%}</span></li>'
            for label, p in best
        )
        parts.append(f"<h3>{FIELDS[field]}</h3><ul>{rows}</ul>")
    return "".join(parts)


def _countries() -> list[tuple[str, str]]:
    """(name, code), by name."""
    regions = load_helplines().regions.values()
    return [OTHER_COUNTRY, *sorted((region.name.removeprefix("the "), region.code) for region in regions)]


def _help(policy: CrisisPolicy) -> str:
    return f"**Someone to talk to:** {policy.resource(0)[0]} **In danger:** {policy.emergency(0)[0]}"


def _risk_line(reply: SupportReply) -> str:
    return f"**Risk read from your words:** {reply.risk['level']}. {SCREEN}"


def _memory_line(conversation: SupportSession, reply: SupportReply) -> str:
    tokens = reply.prompt_tokens
    return (
        f"**Memory:** {conversation.utterances} utterances said, {conversation.memory_slots} of them remembered as one "
        f"vector each. This turn read {sum(tokens.values()):,} tokens and saved {reply.saved_tokens:,}."
    )


def main() -> None:
    """Load the model and open the page."""
    source = os.environ.get("MULTIMOOD_MODEL", TINY)
    page = build_page(SupportSession.from_pretrained(source), is_toy=Path(source) == TINY)
    launch(page, inbrowser="SPACE_ID" not in os.environ)  # set on the Hub, where there is no browser to open


if __name__ == "__main__":
    main()
