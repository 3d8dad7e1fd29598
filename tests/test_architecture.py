"""What may load what, and how large a function may be: rules that the import linter cannot see.

The linter reads import statements; these tests import each door in a fresh interpreter and look at
what is really loaded (`sidecar/__init__.py`, plugins and importlib strings included).
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sidecar"
WEB = {"fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry", "httpx"}
MODEL = {"torch", "triton", "transformers", "vllm"}
FILES = {"cryptography", "pyarrow", "ray", "rich"}
HEAVY = WEB | MODEL | FILES
MAX_LINES = 60


def modules(*rooms: str) -> list[str]:
    """Dotted names of all modules in these rooms, or of these modules."""
    found = []
    for room in rooms:
        folder = PACKAGE / room
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        for file in files:
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


def loaded(doors: Sequence[str], blocked: Sequence[str] = ()) -> tuple[set[str], set[str]]:
    """(top-level packages loaded, doors imported) by a fresh interpreter."""
    code = f"""
import importlib, json, sys
for name in {list(blocked)!r}:
    sys.modules[name] = None
imported = []
for door in {list(doors)!r}:
    try:
        importlib.import_module(door)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {list(blocked)!r}:
            raise
    else:
        imported.append(door)
present = {{name.split(".")[0] for name, module in sys.modules.items() if module is not None}}
print(json.dumps([sorted(present), imported]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    present, imported = json.loads(done.stdout.splitlines()[-1])
    return set(present), set(imported)


BASE_DOORS = ["sidecar", *modules("wire", "config", "errors")]


def test_the_base_loads_neither_side() -> None:
    """`sidecar`, the wire, configuration and errors load no web stack and no torch."""
    present, imported = loaded(BASE_DOORS)

    assert imported == set(BASE_DOORS)
    assert present & (WEB | MODEL) == set()


def test_the_fold_and_the_command_load_neither_side() -> None:
    """`sidecar metrics` runs with base dependencies, and a fold needs numpy only."""
    doors = [*modules("fold", "commands"), "sidecar.cli", "sidecar.publish.metrics.reference"]
    present, imported = loaded(doors)

    assert imported == set(doors)
    assert present & (WEB | MODEL) == set()


def test_commands_load_what_they_need_when_they_run() -> None:
    """The help of every command is there where only the base dependencies are."""
    doors = ["sidecar.cli", *modules("commands")]
    present, imported = loaded(doors, blocked=sorted(HEAVY))

    assert imported == set(doors)
    assert present & HEAVY == set()


def test_publishing_never_loads_torch() -> None:
    """The exporter's image has no torch, and needs none."""
    doors = modules("publish")
    present, imported = loaded(doors)

    assert imported == set(doors)
    assert present & MODEL == set()
    assert present >= {"fastapi", "prometheus_client"}


def test_the_tap_never_loads_a_web_stack() -> None:
    """All of sidecar.tap that can be imported without vLLM, which loads one itself."""
    present, imported = loaded(modules("tap"), blocked=["vllm"])

    assert len(imported) >= 3
    assert present & WEB == set()


def test_the_plugin_is_light() -> None:
    """It runs in every vLLM process, tapped or not: no torch and no web stack on import."""
    doors = ["sidecar.tap.guard", "sidecar.tap.vllm.plugin"]
    present, imported = loaded(doors, blocked=["vllm"])

    assert imported == set(doors)
    assert present & (WEB | MODEL) == set()


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def test_no_function_is_longer_than_sixty_lines() -> None:
    """One idea each. A kernel is one function to its compiler; its parameters are half of it."""
    lengths = {
        place: (node.end_lineno or node.lineno) - node.lineno + 1
        for place, node in functions()
        if not place.startswith("tap/") or "_kernel.py:" not in place
    }

    assert {place: n for place, n in lengths.items() if n > MAX_LINES} == {}


def test_there_is_no_global_statement() -> None:
    """State lives in objects that somebody made."""
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Global)
    ]

    assert found == []


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_every_module_says_what_it_is_for(file: Path) -> None:
    """From the first lines alone a stranger can tell where a change goes."""
    docstring = ast.get_docstring(ast.parse(file.read_text()))

    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
