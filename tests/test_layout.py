"""The layout of docs/architecture.md: imports go one way, published files work flat, nothing shadows a library."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PUBLISHED = ("modeling_multimood", "processors")

# Who may import whom inside the package. Nobody may import the leaves `spaces_demo` and `cli`.
KNOWS = {
    "modeling_multimood": set(),
    "processors": set(),
    "trust": set(),
    "datasets_scripts": {"processors"},
    "conversion": {"modeling_multimood", "processors"},
    "session": {"modeling_multimood", "processors", "trust", "datasets_scripts"},
    "training": {"modeling_multimood", "processors", "trust", "datasets_scripts", "session"},
    "evaluation": {"modeling_multimood", "processors", "trust", "datasets_scripts", "session"},
    "spaces_demo": {"modeling_multimood", "processors", "trust", "datasets_scripts", "session"},
    "cli": {"modeling_multimood", "processors", "trust", "datasets_scripts", "session", "conversion"},
}


def sources(unit: str) -> list[Path]:
    return sorted((ROOT / unit).rglob("*.py")) if (ROOT / unit).is_dir() else [ROOT / f"{unit}.py"]


def imports_of(source: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Every import of `source`, wherever it stands, as (line, absolute dotted path); own modules begin with "multimood"."""
    package = ("multimood", *source.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, tuple(alias.name.split("."))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            # `from multimood import session` names a module only in its alias; a longer path is right in any case.
            found += [(node.lineno, (*module, alias.name)) for alias in node.names]
    return found


@pytest.mark.parametrize("unit", KNOWS)
def test_imports_go_one_way(unit):
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {'.'.join(path)}"
        for source in sources(unit)
        for line, path in imports_of(source)
        if path[0] == "multimood" and len(path) > 1 and path[1] in KNOWS and path[1] not in KNOWS[unit] | {unit}
    ]
    assert sources(unit)
    assert wrong == []


@pytest.mark.parametrize("unit", ["datasets_scripts", "trust", *PUBLISHED])
def test_lower_folders_do_not_reach_up_through_the_lazy_root(unit):
    """`from multimood import SupportSession` would pass the rule above and still import upwards."""
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {'.'.join(path)}"
        for source in sources(unit)
        for line, path in imports_of(source)
        if path[0] == "multimood" and (len(path) == 1 or path[1] not in KNOWS)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", PUBLISHED)
def test_published_files_import_only_siblings_and_libraries(folder):
    siblings = {source.stem for source in sources(folder)}
    wrong = []
    for source in sources(folder):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                named = [node.module] if node.module else [alias.name for alias in node.names]
                ok = node.level == 1 and all(name in siblings for name in named)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                named = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                ok = not any(name.split(".")[0] == "multimood" for name in named)
            else:
                continue
            if not ok:
                wrong.append(f"{source.relative_to(ROOT)}:{node.lineno} imports {', '.join(named)}")
    assert wrong == []


def test_published_files_lie_flat_and_share_no_name():
    files = [source for folder in PUBLISHED for source in sources(folder) if source.name != "__init__.py"]
    assert all(source.parent.parent == ROOT for source in files), "remote code has no subfolders"
    names = [source.name for source in files]
    assert sorted(set(names)) == sorted(names)


def test_nothing_takes_a_librarys_name():
    """A script's own folder, and the folder one stands in, come before the libraries on Python's path."""
    ours = {"multimood", "tests", "benchmarks"}  # some distributions wrongly install the last two at top level
    libraries = set(sys.stdlib_module_names) | set(packages_distributions()) - ours
    tops = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = [ROOT, *tops, *(path for top in tops for path in top.rglob("*") if path.is_dir())]
    wrong = []
    for folder in folders:
        for path in folder.iterdir():
            importable = path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
            if importable and path.stem in libraries:
                wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


def test_every_folder_with_code_is_packaged():
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    packaged = next(
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "FOLDERS"
    )
    units = [unit for unit in KNOWS if (ROOT / unit).is_dir()]
    with_code = {".".join(source.parent.relative_to(ROOT).parts) for unit in units for source in sources(unit)}
    assert with_code == set(packaged)
