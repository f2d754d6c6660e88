"""Where benchmarks leave what they found."""

from pathlib import Path

from multimood.evaluation.results_file import write_results

RESULTS = Path(__file__).parent / "results"


def write(name: str, results: dict, **settings) -> Path:
    """Write `benchmarks/results/<name>-<host kind>.json`; see `write_results`."""
    return write_results(RESULTS, name, results, **settings)
