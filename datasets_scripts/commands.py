"""`multimood data`: cut clips out of films, build a corpus, push it to the Hub, and look at it.

multimood data cut mesc/ --episodes films/ --out clips/
multimood data build mesc mesc/ --clips clips/ --out data/mesc --form parquet --push you/mesc
multimood data inspect mesc/ --clips clips/ --sheet mesc.html
"""

import argparse
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from .schema import Row

CORPORA = ("mesc", "dfew", "meld", "mafw", "own")
SCHEMES = ("official", "episode_disjoint")
FORMS = ("rows", "parquet", "folder")
NAMED = 5  # things of a kind that a summary names


def add_data_command(commands: argparse._SubParsersAction) -> None:
    """Add `data` and its subcommands to the parsers of `multimood`."""
    data = commands.add_parser("data", help="cut, build, push and look at corpora")
    tasks = data.add_subparsers(required=True, metavar="TASK")

    cut = tasks.add_parser("cut", help="cut the clips of MESC's utterances out of your own episodes")
    cut.add_argument("root", type=Path, help="folder with MESC.csv")
    cut.add_argument("--out", type=Path, required=True, help="folder of the clips; finished ones there are kept")
    cut.set_defaults(run=_cut)

    build = tasks.add_parser("build", help="make rows of a corpus, for training here or for the Hub")
    build.add_argument("corpus", choices=CORPORA)
    build.add_argument("root", type=Path, help="folder of the corpus, in its own layout")
    build.add_argument("--out", type=Path, required=True, help="folder of the dataset")
    build.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of DFEW and MAFW")
    build.add_argument(
        "--form",
        choices=FORMS,
        help="rows: JSON lines beside the clips as they are (default); parquet: with embedded clips (default with --push); "
        "folder: copies of the clips",
    )
    build.add_argument("--push", metavar="USER/NAME", help="push the dataset to the Hub, private")
    build.add_argument("--public", action="store_true", help="push it public")
    build.add_argument("--i-have-the-rights", action="store_true", help="needed to push clips of MESC")
    build.set_defaults(run=_build)

    inspect = tasks.add_parser("inspect", help="print a corpus's figures, and draw a sheet")
    inspect.add_argument("root", type=Path, help="folder with MESC.csv, or a file of rows (JSON lines)")
    inspect.add_argument("--sheet", type=Path, metavar="FILE", help="write an HTML page with charts and sampled rows")
    inspect.add_argument("--samples", type=int, default=8, help="rows with clips to show on it")
    inspect.set_defaults(run=_inspect)

    for task in (build, inspect):
        task.add_argument("--scheme", choices=SCHEMES, default="official", help="which split of MESC")
        task.add_argument("--clips", type=Path, help="MESC: folder of clips, cut by `multimood data cut`")
    for task in (cut, build, inspect):
        task.add_argument(
            "--skip-bad",
            action="store_true",
            help="leave out bad input, and list it in skipped.jsonl in the folder of the results (inspect: of the sheet, or "
            "the present one)",
        )
    for task, needed in ((cut, True), (build, False)):
        task.add_argument("--episodes", type=Path, required=needed, help="MESC: folder of your episodes")
        task.add_argument(
            "--offsets", type=Path, help="CSV of season,episode,offset: seconds to add to the time codes"
        )
        task.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that cut")


def _cut(args: argparse.Namespace) -> None:
    from .cut import Span, cut_clips, read_offsets
    from .mesc import clip_name, read_dialogues
    from .report import SkipReport

    skipped = SkipReport() if args.skip_bad else None
    spans = [
        Span(clip_name(said), said.season, said.episode, said.start, said.end)
        for dialogue in read_dialogues(args.root, skip_bad=skipped)
        for said in dialogue.utterances
    ]
    offsets = read_offsets(args.offsets) if args.offsets else {}
    report = cut_clips(spans, args.episodes, args.out, offsets=offsets, workers=args.workers)
    print(f"{report['cut']:,} clips cut, {report['there']:,} were there, of {report['clips']:,}; in {args.out}")
    missing = [f"S{lost['season']:02}E{lost['episode']:02}" for lost in report["missing_episodes"]]
    clips = sum(lost["clips"] for lost in report["missing_episodes"])
    _tell(f"episodes are missing, with {clips:,} clips", missing)
    _tell("clips were not cut", [f"{lost['name']} ({lost['reason']})" for lost in report["not_cut"]])
    _tell("files tell no episode by their names", report["unused_files"])
    _tell("clips overlap the next, and were cut all the same", [lap["name"] for lap in report["overlapping"]])
    print(f"report: {args.out / 'cut_report.json'}")
    _tell_skipped(skipped, args.out)


def _tell(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        print(f"{len(names):,} {what}: {', '.join(names[:NAMED])}{more}")


def _tell_skipped(skipped, out: Path) -> None:
    if skipped is not None:
        path = skipped.write(out / "skipped.jsonl")
        counts = ", ".join(f"{count:,} {kind}" for kind, count in skipped.counts.most_common()) or "nothing"
        print(f"left out: {counts}; report: {path}")


def _build(args: argparse.Namespace) -> None:
    from .hub import push_dataset, write_dataset
    from .report import SkipReport

    if args.push and args.form == "rows":
        raise ValueError("the form rows names clips of this machine; push parquet or folder")
    if args.clips and args.episodes:
        raise ValueError(
            "give --clips or --episodes, not both: clips that were cut already, or films to cut them from"
        )
    if args.corpus != "mesc" and (args.clips or args.episodes):
        raise ValueError(f"--clips and --episodes are for MESC; {args.corpus} has its clips in its folder")
    if args.corpus == "mesc" and args.episodes:
        args.clips = args.out / "cut"
        _cut(argparse.Namespace(**{**vars(args), "out": args.clips}))
    form = args.form or ("parquet" if args.push else "rows")
    skipped = SkipReport() if args.skip_bad else None
    for config, splits in _configs(args, skipped):
        how = f"`multimood data build {args.corpus}`, version {_version()}, form {form}"
        written = write_dataset(args.out, args.corpus, config, splits, form, how)
        for split, statistics in written.items():
            clips = f"{statistics.clips:,} clips" if statistics.clips else "text only, no clips"
            print(f"{args.out / config}: {split} {statistics.rows:,} rows, {clips}")
    _tell_skipped(skipped, args.out)
    if args.push:
        url = push_dataset(args.out, args.push, public=args.public, have_rights=args.i_have_the_rights)
        print(f"pushed to {url} ({'public' if args.public else 'private'})")


def _configs(args: argparse.Namespace, skipped) -> Iterable[tuple[str, dict[str, list[Row]]]]:
    """Configurations of a corpus, each with the rows of its splits."""
    if args.corpus == "mesc":
        yield args.scheme, _mesc_rows(args, skipped)
    elif args.corpus == "own":
        from .own import load_own

        yield "default", {"train": load_own(args.root, skip_bad=skipped)}
    elif args.corpus == "meld":
        from .meld import SPLITS, load_meld

        yield "default", {split: load_meld(args.root, split, skip_bad=skipped) for split in SPLITS}
    else:
        from .dfew import load_dfew
        from .mafw import SPLITS, load_mafw

        load = partial(load_dfew, joined=args.out / "joined") if args.corpus == "dfew" else load_mafw
        for fold in args.folds:
            yield f"fold_{fold}", {split: load(args.root, fold, split, skip_bad=skipped) for split in SPLITS}


def _mesc_rows(args: argparse.Namespace, skipped) -> dict[str, list[Row]]:
    from .mesc import dialogue_rows, read_dialogues, split_dialogues

    splits = split_dialogues(read_dialogues(args.root, skip_bad=skipped), args.root, args.scheme)
    if lacking := {"train", "validation", "test"} - splits.keys():
        note = f"no {' and no '.join(sorted(lacking))} split: it needs val.json and test.json beside MESC.csv"
        print(f"multimood: note: {note}, or --scheme episode_disjoint", file=sys.stderr)
    rows = {
        split: [row for dialogue in of for row in dialogue_rows(dialogue, clips=args.clips, skip_bad=skipped)]
        for split, of in splits.items()
    }
    if args.clips is None:
        print("multimood: note: rows are text only: give --clips, or --episodes to cut them", file=sys.stderr)
    return rows


def _version() -> str:
    from importlib.metadata import version

    return version("multimood")


def _inspect(args: argparse.Namespace) -> None:
    from .inspect_rows import RowStatistics, format_table, mesc_tables, write_sheet
    from .mesc import read_dialogues, split_dialogues
    from .report import SkipReport
    from .schema import read_rows

    skipped = SkipReport() if args.skip_bad else None
    if (args.root / "MESC.csv").is_file():
        dialogues = read_dialogues(args.root, skip_bad=skipped)
        print(format_table(mesc_tables(dialogues, split_dialogues(dialogues, args.root, args.scheme))))
        splits = _mesc_rows(args, skipped) if args.sheet else {}
    elif args.root.is_file():
        splits = {args.root.stem: list(read_rows(args.root, skip_bad=skipped))}
        print(format_table({name: RowStatistics.of(rows).summary() for name, rows in splits.items()}))
    else:
        raise ValueError(f"{args.root} is neither a file of rows nor a folder with MESC.csv; build its rows first")
    if args.sheet:
        print(f"sheet: {write_sheet(args.sheet, args.root.name, splits, args.samples)}")
    _tell_skipped(skipped, args.sheet.parent if args.sheet else Path())
