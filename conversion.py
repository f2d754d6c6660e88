"""`multimood convert`: the released MultiMood weights → a folder that transformers' AutoClasses load."""

import argparse
import tempfile
from pathlib import Path

DESCRIPTION = """\
Converts a checkpoint of the authors' training code: a whole model, or LoRA adapters with non_lora_trainables.bin on a
base model. Every tensor is used or named as unused, and nothing is left at random; where that cannot be, nothing is
written. Pickled files are read as tensors only: what would run code is refused.
"""


def add_parser(commands) -> None:
    """Adds the subcommand to the `multimood` command's."""
    convert = commands.add_parser(
        "convert",
        help="make the authors' released weights loadable",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("original", metavar="ORIGINAL", help="folder or Hub id of the checkpoint or the adapters")
    convert.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist, or be empty")
    convert.add_argument("--base", metavar="MODEL", help="folder or Hub id of the model that adapters were trained on")
    convert.add_argument(
        "--vision",
        metavar="CONFIG",
        help="folder or Hub id of the vision tower, for its configuration, where it is none of SigLIP's released ones",
    )
    convert.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out the original's tensors of these names (* for any part of it); may be given several times",
    )
    convert.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """What `multimood convert` does; see `convert`."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    report, has_processor = convert(args.original, args.out, args.base, args.vision, args.ignore)
    print(f"{report.written} tensors written to {args.out}, in {len(report.files)} file(s).")
    if report.merged:
        print(f"{report.merged} of them with a LoRA adapter merged in.")
    for title, named in (("unused", report.unused), ("of the base model, replaced", report.replaced)):
        for why in sorted(set(named.values())):
            names = [name for name, reason in named.items() if reason == why]
            print(f"{len(names)} {title} ({why}):")
            print("".join(f"  {name}\n" for name in names), end="")
    if not has_processor:
        print("The original has no tokenizer, so there is no processor: AutoModel works, AutoProcessor does not.")


def convert(
    original: str, out: Path, base: str | None = None, vision: str | None = None, ignore: list[str] | None = None
):
    """
    Converts a checkpoint; the arguments are those of the command.

    Returns:
        [`ConversionReport`], and whether a processor was made: it takes the original's tokenizer.

    Raises:
        ValueError: the original cannot be converted, or `out` holds something.
        OSError: a file cannot be read or written.
    """
    from transformers import AutoConfig

    from .modeling_multimood.convert_original import convert_weights, original_config
    from .modeling_multimood.original_checkpoint import open_checkpoint

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a folder that is not")
    place = _folder(original)
    checkpoint = open_checkpoint(place, _folder(base or _base_of(place)))
    vision_config = None
    if vision is not None:
        vision_config = AutoConfig.from_pretrained(vision)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        vision_config.vision_use_head = False
    config = original_config(checkpoint, vision_config)
    processor = _processor(checkpoint, config)
    generation = {}
    if processor is not None:
        settings = processor.model_settings()
        generation = {name: settings[name] for name in ("pad_token_id", "eos_token_id")}
        names = ("video_token_id", "audio_token_id", "history_token_id", "memory_token_id")
        config = original_config(checkpoint, vision_config, **{name: settings[name] for name in names})
        config.turn_grammar = settings["turn_grammar"]
    out.parent.mkdir(parents=True, exist_ok=True)
    # All of it or nothing: a folder that is only half there would load, in part at random.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as part:
        folder = Path(part) / out.name
        folder.mkdir()
        report = convert_weights(checkpoint, config, folder, ignore or (), generation)
        if processor is not None:
            processor.save_pretrained(folder)
        folder.replace(out)
    return report, processor is not None


def _folder(source: str | None) -> Path | None:
    """A folder, downloaded where it is a Hub id."""
    if source is None or Path(source).is_dir():
        return source and Path(source)
    if Path(source).exists() or source.count("/") != 1:
        raise ValueError(f"{source} is neither a folder nor a Hub id")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.txt", "*.jinja"]))


def _base_of(place: Path) -> str | None:
    """The base model that adapters name."""
    import json

    file = place / "adapter_config.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")


def _processor(checkpoint, config):
    """The processor that makes the original's inputs; `None` where the original has no tokenizer."""
    from transformers import AutoTokenizer, SiglipImageProcessorPil

    from .processors.feature_extraction_beats import BeatsFeatureExtractor
    from .processors.processing_multimood import MultiMoodProcessor

    place = next((folder for folder in checkpoint.folders if (folder / "tokenizer_config.json").is_file()), None)
    if place is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(place)
    size = config.vision_config.image_size
    # The original's compressor reads with the language model's tokenizer.
    return MultiMoodProcessor.from_backbones(
        vision=SiglipImageProcessorPil(size={"height": size, "width": size}),
        audio=BeatsFeatureExtractor(),
        history=tokenizer,
        text=tokenizer,
        vision_config=config.vision_config,
        audio_config=config.audio_config,
        num_frames=checkpoint.settings.get("num_frames", 8),
        original_sampling=True,
        square_frames=checkpoint.settings.get("image_aspect_ratio") == "pad",
    )
