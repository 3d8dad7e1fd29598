"""Installs the tap into the Python of a vLLM image, and proves that nothing else was moved.

Guarantees: packages are installed from the folder given, never from a network, and without what
they depend on; a dependency that is missing or too old, and a package that came, went or changed
its version, end this with status 1 and one line for each. Needs nothing but that Python and its
pip. Usage: python3 add_tap.py FOLDER_OF_WHEELS
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

NAME: Final = "llm-internals-sidecar"
GROUP: Final = "vllm.general_plugins"


def packages() -> dict[str, str]:
    """What this Python has, by name normalised, and in which version."""
    return {
        each.name.lower().replace("_", "-"): each.version
        for each in metadata.distributions()
        if each.name
    }


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Whatever changed beside our own package, one sentence each."""
    for name in sorted({*before, *after} - {NAME}):
        was, is_now = before.get(name, "absent"), after.get(name, "absent")
        if was != is_now:
            yield f"{name} was {was} and is {is_now}"


def lacking(has: Mapping[str, str]) -> Iterator[str]:
    """What the tap needs and this Python has not, one sentence each."""
    # pip's own, as every Python with pip has it; told when there is none.
    from pip._vendor.packaging.requirements import Requirement  # noqa: PLC0415

    for text in metadata.requires(NAME) or []:
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        found = has.get(needed.name.lower())
        if found is None or not needed.specifier.contains(found, prereleases=True):
            yield f"the tap needs {needed.name}{needed.specifier}, here is {found or 'none'}"


def install(folder: Path) -> None:
    """Put the wheels of `folder` into this Python, alone."""
    wheels = [str(path) for path in sorted(folder.glob("*.whl"))]
    words = ["--no-deps", "--no-index", "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *words, *wheels], check=True)


def main(folder: Path) -> int:
    """Install, then look; the exit status."""
    before = packages()
    try:
        install(folder)
        after = packages()
        told = [*moved(before, after), *lacking(after)]
    except (subprocess.CalledProcessError, ImportError) as error:
        told = [f"{error}; is this a vLLM image, with pip in its Python {sys.executable}?"]
    else:
        if not any(each.dist.name == NAME for each in metadata.entry_points(group=GROUP)):
            told.append("vLLM would not find the tap's plugin; was the wheel built from this repo?")
    for each in told:
        print(f"add_tap: {each}; take a vLLM release that docs/support.md names", file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
