"""A test that failed once gets a second run that the first cannot spoil."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT

# Servers as the end-to-end tests have them: of a whole session and of one module.
FILE = """
import os
import subprocess

import pytest

@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e")

@pytest.fixture(scope="session")
def server(folder):
    with open({told!r}, "a") as told:
        print("start", folder, file=told)
        server = subprocess.Popen(["sleep", "1000"])
        yield server
        server.kill()
        print("stop", server.wait(), folder, file=told)

@pytest.fixture(scope="module")
def latched(server):
    return []

@pytest.fixture
def tidy(folder):
    yield
    is_first = not os.path.exists({told!r} + ".ended")
    open({told!r} + ".ended", "a").close()
    assert not is_first

def test_before(latched):
    latched.append("alarm")

def test_that_spoils_its_own_second_run(server, latched, folder):
    assert server.poll() is None
    assert not (folder / "log").exists()
    (folder / "log").touch()
    if latched:
        server.kill()
        server.wait()
    assert not latched

def test_after(server, folder):
    assert server.poll() is None
    assert (folder / "log").exists()

def test_whose_end_fails_once(server, folder, tidy):
    assert server.poll() is None
    assert not (folder / "mess").exists()
    (folder / "mess").touch()
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_second_run_has_servers_and_folders_of_its_own(tmp_path: Path, workers: str) -> None:
    """What the first killed, latched and wrote is gone; it was ended; later tests have the new."""
    told = tmp_path / "told"
    file = tmp_path / "test_it.py"
    file.write_text(FILE.format(told=str(told)))
    plugins = ("xdist.plugin", "pytest_rerunfailures", "tests.afresh", "no:cacheprovider")
    options = [word for name in plugins for word in ("-p", name)]
    options += ["--reruns", "1", "-n", workers, "--dist", "loadfile", "-rR"]
    options += ["--rootdir", str(tmp_path), "-c", os.devnull]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert " passed, 2 rerun in" in done.stdout
    lines = [line.split() for line in told.read_text().splitlines()]
    assert [words[0] for words in lines] == ["start", "stop"] * 3
    assert len({words[-1] for words in lines}) == 3
