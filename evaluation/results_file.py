"""Results and what they were found on, in one JSON file."""

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "transformers", "av", "numpy")


def host() -> dict[str, str | int]:
    """The machine: "kind" names the file of a result, the rest says more."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "kind": accelerator.lower().replace(" ", "-") if accelerator else f"cpu{cores}",
        "cores": cores,
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def write_results(folder: Path, name: str, results: dict, **settings) -> Path:
    """Writes `folder/<name>-<host kind>.json`: results, settings (such as the seed), date, machine and versions.

    Returns:
        `Path`: the file, replaced where it was there.
    """
    machine = host()
    content = {
        "name": name,
        "date": date.today().isoformat(),
        "host": machine,
        "versions": {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
        "settings": settings,
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{machine['kind']}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
