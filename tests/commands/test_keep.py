"""`sidecar keep`: a container that never ends by itself."""

import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar import cli
from sidecar.commands import keep

# Keeps a command that notes each of its starts, with pauses that a test can wait for.
KEEPER = """
import sys
from pathlib import Path
from sidecar.commands.keep import Keeper, Patience

patience = Patience(least_pause=0.05, most_pause=0.2, look=0.05, misses=3, grace=2.0)
stuck = Path(sys.argv[1])

def look():
    is_well = not stuck.exists()
    with stuck.with_name("looks").open("a") as looks:
        looks.write(f"{is_well}\\n")
    return is_well

is_well = look if sys.argv[2] == "looked at" else None
sys.exit(Keeper([sys.executable, "-c", sys.argv[3], *sys.argv[4:]], is_well, patience).run())
"""
NOTES = "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n');"
FAILS = NOTES + "sys.exit(3)"
STAYS = NOTES + "import time; time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + STAYS
HEARS = (
    "import signal, sys, time;"
    "signal.signal(signal.SIGHUP, lambda *_: open(sys.argv[1], 'a').write('read again\\n'));"
    + NOTES
    + "[time.sleep(0.05) for _ in range(12000)]"
)


class Kept:
    """A keeper in a process of its own, and the file in which its command notes its starts."""

    def __init__(self, folder: Path, command: str, *, looked_at: bool = False) -> None:
        self.notes = folder / "notes"
        self.looks = folder / "looks"
        self.stuck = folder / "stuck"
        how = "looked at" if looked_at else "left alone"
        arguments = ("-c", KEEPER, str(self.stuck), how, command, str(self.notes))
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stderr=subprocess.PIPE, text=True
        )

    def lines(self) -> list[str]:
        return lines_of(self.notes)

    def ends(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status after this signal, and what it said."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120.0
    while not is_true():
        assert time.monotonic() < until, "it did not become true within two minutes"
        time.sleep(0.02)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    """Starts keepers, and leaves none behind."""
    made: list[Kept] = []

    def start(command: str, **more: bool) -> Kept:
        made.append(Kept(tmp_path, command, **more))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.communicate()


def test_what_fails_is_started_again(kept: Callable[..., Kept]) -> None:
    """A command that fails every time is started for ever, and each end is told."""
    keeper = kept(FAILS)
    wait_until(lambda: len(keeper.lines()) >= 4)

    status, said = keeper.ends()

    assert status == 0
    assert "ended with status 3; started again in 0.05 s" in said
    assert "started again in 0.1 s" in said
    assert "started again in 0.2 s" in said
    assert "started again in 0.4 s" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_ends_the_command_first(
    kept: Callable[..., Kept], number: signal.Signals
) -> None:
    """Either signal ends both with status 0, and nothing is started again."""
    keeper = kept(STAYS)
    wait_until(lambda: len(keeper.lines()) == 1)

    status, said = keeper.ends(number)

    assert (status, said) == (0, "")
    assert not Path(f"/proc/{keeper.lines()[0]}").exists()


def test_what_will_not_end_is_killed(kept: Callable[..., Kept]) -> None:
    """A command that ignores SIGTERM does not keep the container from ending."""
    keeper = kept(DEAF)
    wait_until(lambda: len(keeper.lines()) == 1)

    assert keeper.ends()[0] == 0
    assert not Path(f"/proc/{keeper.lines()[0]}").exists()


def test_what_is_silent_for_long_is_started_again(kept: Callable[..., Kept]) -> None:
    """A command that was well and is no more is killed and started again."""
    keeper = kept(STAYS, looked_at=True)
    wait_until(lambda: len(keeper.lines()) == 1)
    wait_until(lambda: "True" in lines_of(keeper.looks))
    keeper.stuck.touch()
    wait_until(lambda: len(keeper.lines()) >= 2)

    assert "does not answer any more; killed" in keeper.ends()[1]


def test_what_was_never_well_is_left_to_start(kept: Callable[..., Kept], tmp_path: Path) -> None:
    """A command that takes long to come up is not killed meanwhile."""
    (tmp_path / "stuck").touch()
    keeper = kept(STAYS, looked_at=True)
    wait_until(lambda: len(lines_of(keeper.looks)) >= 20)
    wait_until(lambda: len(keeper.lines()) == 1)

    assert "True" not in lines_of(keeper.looks)
    assert len(keeper.lines()) == 1
    assert keeper.ends() == (0, "")


def test_sighup_reaches_the_command(kept: Callable[..., Kept]) -> None:
    """So that a baseline is read again; the keeper itself goes on."""
    keeper = kept(HEARS)
    wait_until(lambda: len(keeper.lines()) == 1)
    keeper.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "read again" in keeper.lines())

    assert keeper.process.poll() is None
    assert keeper.ends()[0] == 0


def test_once_never_fails(capfd: pytest.CaptureFixture[str]) -> None:
    """What lays the tap may fail, and the pod starts all the same."""
    assert cli.main(["keep", "--once", "no-such-command"]) == 0

    assert (
        "`sidecar no-such-command` ended with status 2; going on without" in capfd.readouterr()[1]
    )


def test_once_says_nothing_of_success(capfd: pytest.CaptureFixture[str]) -> None:
    """The command's own words and options reach it."""
    assert cli.main(["keep", "--once", "fleet", "--help"]) == 0

    told = capfd.readouterr()
    assert "--prometheus" in told.out
    assert told.err == ""


def test_a_look_asks_over_http() -> None:
    """An answer is well, an error of the server is not, and neither is nobody."""
    statuses = [200, 503]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        look = keep.answers(f"http://127.0.0.1:{server.server_address[1]}/healthz")
        assert look()
        assert not look()
        server.shutdown()
    assert not look()


@pytest.mark.parametrize("words", [["keep"], ["keep", "--health", "file:///x", "serve"]])
def test_a_wrong_use_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No command, or no address: status 2 and the remedy."""
    assert cli.main(words) == 2
    assert "; give " in capsys.readouterr().err
