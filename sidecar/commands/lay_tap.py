"""`sidecar lay-tap FOLDER`: put the tap where another container's vLLM finds it, on PYTHONPATH.

Guarantees: only what runs inside the engine is laid (some 60 small files, all Python), and the
description of the package, by which vLLM finds its plugin; what was laid before is replaced as a
whole; a folder that cannot be written is one line with the remedy.
"""

import argparse
import shutil
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import sidecar
from sidecar.errors import ConfigError

HELP: Final = "put the tap into a folder for the PYTHONPATH of another container's vLLM"
_PACKAGE: Final = Path(sidecar.__file__).parent
_NAME: Final = "llm-internals-sidecar"
_GROUP: Final = "vllm.general_plugins"
# What sidecar.tap imports: the layers below it, and they import nothing else.
_PARTS: Final = ("__init__.py", "errors.py", "config.py", "wire", "tap")


def add(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("folder", type=Path, help="made when it is not there")


def run(parsed: argparse.Namespace) -> int:
    """Lay it, and say so."""
    try:
        lay(parsed.folder)
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"lay-tap: {error}; give a folder that this user can write") from error
    print(f"sidecar: the tap {sidecar.__version__} lies in {parsed.folder}; put it on PYTHONPATH")
    return 0


def lay(folder: Path) -> None:
    """Copy the tap and its description into `folder`. Raises OSError, ConfigError."""
    described = _description()
    package = folder / _PACKAGE.name
    _remove(package, *folder.glob("llm_internals_sidecar-*.dist-info"))
    package.mkdir(parents=True)
    for part in _PARTS:
        source = _PACKAGE / part
        if source.is_dir():
            shutil.copytree(source, package / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, package / part)
    # Last, so that vLLM never finds a plugin whose files are not all there.
    info = folder / f"llm_internals_sidecar-{sidecar.__version__}.dist-info"
    info.mkdir()
    for name, text in described.items():
        (info / name).write_text(text)


def _description() -> dict[str, str]:
    """The files by which Python knows the package, and vLLM its plugin."""
    try:
        found = distribution(_NAME)
    except PackageNotFoundError as error:
        raise ConfigError(f"lay-tap: {error}; install this package with pip first") from error
    points: list[EntryPoint] = [each for each in found.entry_points if each.group == _GROUP]
    lines = [f"[{_GROUP}]", *(f"{each.name} = {each.value}" for each in points), ""]
    metadata = f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: {sidecar.__version__}\n"
    return {"METADATA": metadata, "entry_points.txt": "\n".join(lines)}


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
