"""The house: imports point one way, Ray and W&B stay in their rooms, nothing heavy loads early."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import raynn

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "raynn"

# From the ground up: a module may import, at the top or inside a function, only modules that stand before it.
PLAIN = (  # these load neither torch nor ray, not even through what they import
    "errors",
    "termination",
    "head",
    "settings",
    "problems",
    "jobfile",
    "metrics",
    "resources",
    "scales",
    "distributions",
    "expressions",
    "ledger",
    "race",
    "halving",
    "median",
    "exploration",
    "bandit",
    "population",
    "schedulers",
    "search",
    "pareto",
    "knobs",
    "regularization",
    "ablation",
    "costs",
    "rules",
    "stopping",
    "director",
    "progress",
    "estimate",
    "scaling",
    "generators",
    "mnist1d",
    "corpora",
    "catalog",
    "azure",
    "fragments",
    "sources",
    "folder",
    "remote",
    "storage",
    "tracking",
    "feeds",
    "mirrors",
    "sweeps",
    "dashboard",
    "columns",
    "tokens",
    "cleaning",
    "times",
    "splits",
    "hashing",
    "summaries",
    "encodings",
    "ragged",
    "preprocessing",
    "ahead",
    "encoded",
    "footprint",
    "drivers",
    "preparation",
    "cache",
    "windows",
    "corpus",
    "draft",
    "series",
    "forecast",
    "lanes",
    "pictures",
    "charts",
    "page",
    "importance",
    "trial_table",
    "search_report",
    "study_report",
    "watch",
)
ORDER = (
    *PLAIN,
    "collectives",
    "sharding",
    "randomness",
    "meeting",
    "dropout",
    "image_operations",
    "sequence_augmentation",
    "augmentation",
    "mixing",
    "objectives",
    "penalties",
    "perturbation",
    "averaging",
    "norms",
    "optimization",
    "evaluation",
    "networks.layers",
    "networks.normalization",
    "networks.inputs",
    "networks.feedforward",
    "networks.cnn",
    "networks.zoneout",
    "networks.recurrent",
    "networks.rnn",
    "networks.lstm",
    "networks.transformer",
    "networks.text_generator",
    "networks.custom",
    "networks.forecasting",
    "networks.drawing",
    "networks.unet",
    "networks.flow_matching",
    "networks.pixels",
    "networks.vae",
    "networks.image_generator",
    "networks",  # the table, after its entries
    "generation",
    "ranges",
    "space",
    "searchable",
    "bayesian",
    "evolution",
    "suggestions",
    "warm_start",
    "checkpoint",
    "job",
    "tasks",
    "shards",
    "batches",
    "gradients",
    "refit",
    "compiler",
    "allocator",
    "loop",
    "memory",
    "training",
    "placement",
    "rehearsal",
    "probe",
    "nodes",
    "capacity",
    "cluster",
    "data",
    "controller",
    "restarts",
    "worker",
    "outputs",
    "forecasts",
    "documents",
    "run",
    "image_quality",
    "prediction",
    "scan",
    "export",
    "samples",
    "judgment",
    "findings",
    "anatomy",
    "inspection",
    "gallery",
    "sync",
    "exhibits",
    "run_report",
    "card",
    "report",
    "hosts",
    "trainer",
    "outcome",
    "trial",
    "desk",
    "tuner",
    "studies",
    "upload",
    "readiness",
    "connection",
    "submit",
    "check",
    "answers",
    "",  # raynn/__init__.py, the public names
    "cli",
    "__main__",
)
ROOMS = {
    "ray": {
        *("probe", "capacity", "head", "cluster", "data", "controller", "restarts", "worker"),
        *("hosts", "trainer", "trial", "desk", "tuner", "upload", "connection"),
    },
    "wandb": {"sweeps", "dashboard"},
}
DRAWERS = {"utils", "util", "common", "base", "helpers", "helper", "manager", "engine", "misc"}
MAX_LINES = 500


def module_name(path: Path) -> str:
    """`networks.cnn` for raynn/networks/cnn.py; a package has its folder's name, raynn itself none."""
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


FILES = {module_name(path): path for path in sorted(HOUSE.rglob("*.py"))}
OUR_NAMES = {f"raynn.{name}" for name in FILES if name}
PYTHON_FILES = sorted([*FILES.values(), *(ROOT / "tests").rglob("*.py")])


def imported(tree: ast.AST) -> set[str]:
    """Full names of all modules that the source imports, wherever the statement stands.

    A text that is the full name of a module of ours counts too: that is how import_module is called.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write `from raynn.x import y`"
            module = str(node.module)
            inside = {f"{module}.{alias.name}" for alias in node.names}
            modules = inside & OUR_NAMES
            names.update(modules)
            if inside - modules:
                names.add(module)
        elif isinstance(node, ast.Constant) and node.value in OUR_NAMES:
            names.add(str(node.value))
    return names


IMPORTS = {name: imported(ast.parse(path.read_text())) for name, path in FILES.items()}


def modules_loaded(*arguments: str) -> set[str]:
    """Top-level packages that `python ARGUMENTS` loads, as Python's own import log tells."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    log, other = [], []
    for line in done.stderr.splitlines():
        (log if line.startswith("import time:") else other).append(line)
    assert done.returncode == 0, "\n".join(other)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in log}


def test_every_module_has_its_place_in_the_order() -> None:
    homeless, empty = sorted(set(FILES) - set(ORDER)), sorted(set(ORDER) - set(FILES))
    assert not homeless, f"these files have no place in ORDER: {homeless}"
    assert not empty, f"these places in ORDER have no file: {empty}"


def test_the_map_of_the_house_shows_the_order() -> None:
    on_the_map = re.findall(r"^    (\w+)(?:\.py|/) ", str(raynn.__doc__), flags=re.MULTILINE)
    assert on_the_map == [name for name in ORDER if name not in ("", "__main__") and "." not in name]


@pytest.mark.parametrize("name", sorted(set(ORDER) & set(FILES)))
def test_imports_point_one_way(name: str) -> None:
    ours = {full.removeprefix("raynn").removeprefix(".") for full in IMPORTS[name] & {"raynn", *OUR_NAMES}}
    late = sorted(ours - {name, *ORDER[: ORDER.index(name)]})
    assert not late, f"raynn.{name} imports {late}, which stand after it in ORDER"


@pytest.mark.parametrize(("package", "rooms"), ROOMS.items())
def test_ray_and_wandb_stay_in_their_rooms(package: str, rooms: set[str]) -> None:
    users = {name for name, full in IMPORTS.items() if package in {each.partition(".")[0] for each in full}}
    assert users <= rooms, f"{package} belongs in {sorted(rooms)}, not in {sorted(users - rooms)}"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-c", "import raynn"), id="import raynn"),
        pytest.param(("-c", "import raynn.cli"), id="import raynn.cli"),
        pytest.param(("-m", "raynn", "--help"), id="raynn --help"),
        pytest.param(("-c", f"import {', '.join(f'raynn.{name}' for name in PLAIN)}"), id="plain modules"),
    ],
)
def test_nothing_heavy_loads_early(arguments: tuple[str, ...]) -> None:
    loaded = modules_loaded(*arguments)
    assert "raynn" in loaded
    early = loaded & {"torch", "ray", "wandb"}
    assert not early, f"{sorted(early)} loaded; import it inside the function that needs it"


def test_the_import_log_sees_a_late_import() -> None:
    assert "wave" in modules_loaded("-c", "def f():\n import wave\nf()")


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_fits_one_reading(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines, at most {MAX_LINES}; which topic can have a file of its own?"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_a_drawer(path: Path) -> None:
    words = {word for part in path.relative_to(ROOT).with_suffix("").parts for word in part.split("_")}
    assert not words & DRAWERS, f"{sorted(words & DRAWERS)} says nothing about what is inside"
