"""The command line of the training scripts."""

import sys
from typing import Any

from trl import TrlParser


def parse_arguments(*dataclass_types: type) -> tuple[Any, ...]:
    """
    One object of each dataclass from the command line and from `--recipe file.yaml` (TRL's `--config` is the same).

    What the command line says goes before the recipe.

    Raises:
        ValueError: the recipe names an argument that none of the dataclasses has.
    """
    arguments = [
        part
        for argument in sys.argv[1:]
        for part in (argument.split("=", 1) if argument.startswith(("--recipe=", "--config=")) else [argument])
    ]
    arguments = ["--config" if argument == "--recipe" else argument for argument in arguments]
    return TrlParser(dataclass_types).parse_args_and_config(arguments)
