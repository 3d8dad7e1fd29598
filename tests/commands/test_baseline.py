"""`sidecar baseline`: from recordings to a file that arms the channels, and who may believe it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sidecar import cli
from sidecar.store.baseline_file import read_baseline, read_file
from tests.commands.conftest import Week
from tests.jobs.traffic import IDENTITY, PER_WINDOW, record


def run(*arguments: object) -> int:
    return cli.main(["baseline", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says that refuses: one line on stderr, beside its progress."""
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [each for each in said.err.splitlines() if each.startswith("sidecar: ")]
    return line


@pytest.fixture
def short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The baseline of an hour."""
    record(tmp_path / "hour", 1 / 24)
    path = tmp_path / "hour.baseline"
    assert run("fit", tmp_path / "hour", "-o", path) == 0
    capsys.readouterr()
    return path


def test_a_week_arms_every_channel(week: Week, capsys: pytest.CaptureFixture[str]) -> None:
    """What fit wrote is calibrated, and shows what it is of."""
    assert run("show", week.baseline) == 0
    shown = capsys.readouterr().out
    baseline = read_baseline(week.baseline)

    assert f"baseline {baseline.digest[:12]}" in shown
    assert f"{baseline.num_requests} requests, 2028 windows, 2026-09-21 00:00Z" in shown
    for line in ("traffic: armed", "mix: armed", "tail: armed", "signed by: nobody"):
        assert f"  {line}" in shown
    assert f"weights_digest: {IDENTITY.weights_digest}" in shown
    assert "kernels: not known" in shown
    assert " 50.00%  chat|" in shown
    assert baseline.calibration is not None
    assert baseline.calibration.replay["num_months"] == 10


def test_an_hour_arms_nothing_and_says_what_is_missing(short: Path, capsys) -> None:
    """In the same words as the exporter would."""
    assert run("show", short, "--json") == 0
    shown = json.loads(capsys.readouterr().out)

    assert shown["channels"]["traffic"]["state"] == "collecting"
    assert "12 of 2016 windows" in shown["channels"]["traffic"]["reason"]
    assert shown["digest"] == read_baseline(short).digest
    assert (shown["num_windows"], shown["num_requests"]) == (12, 12 * PER_WINDOW)
    assert shown["num_tail_requests"] == 12 * PER_WINDOW
    assert sum(shown["strata"].values()) == pytest.approx(1)


def test_the_demo_preset_arms_what_the_default_does_not(tmp_path: Path, capsys) -> None:
    """And is called what it is."""
    record(tmp_path / "day", 0.25)
    path = tmp_path / "demo.baseline"
    assert run("fit", tmp_path / "day", "-o", path, "--preset", "demo", "--months", 1) == 0
    shown = capsys.readouterr().out

    assert "traffic: armed" in shown
    assert "demo preset" in shown


def test_progress_is_told_beside_the_result(tmp_path: Path, capsys) -> None:
    """On stderr, and each pass in full."""
    record(tmp_path / "hour", 1 / 24)
    assert run("fit", tmp_path / "hour", "-o", tmp_path / "a.baseline") == 0
    said = capsys.readouterr().err
    num = 12 * PER_WINDOW

    for title in ("survey", "fit", "request tail"):
        assert f"{title}: {num} of {num}, done\n" in said


def test_replicas_add_up(tmp_path: Path, short: Path, capsys) -> None:
    """Fitted apart with one plan and merged, they are the fit of all; the tail is left to do."""
    record(tmp_path / "second", 1 / 24, first_day=1, seed=2)
    other, both = tmp_path / "second.baseline", tmp_path / "both.baseline"
    assert run("fit", tmp_path / "second", "-o", other, "--plan-of", short) == 0
    assert run("merge", other, short, "-o", both) == 0
    assert run("merge", short, other, "-o", tmp_path / "again.baseline") == 0
    merged = read_file(both)
    assert merged.fit is not None
    assert merged.baseline.num_windows == 24
    assert merged.baseline.num_requests == 24 * PER_WINDOW
    assert merged.baseline.digest == read_baseline(tmp_path / "again.baseline").digest
    assert "tail: collecting: 0 of 10000 requests" in capsys.readouterr().out

    assert run("calibrate", both, tmp_path / "hour", tmp_path / "second") == 0
    tail = read_baseline(both).tail
    assert tail is not None
    assert tail.num_requests == 24 * PER_WINDOW
    whole = tmp_path / "whole.baseline"
    folders = (tmp_path / "hour", tmp_path / "second")
    assert run("fit", *folders, "-o", whole, "--plan-of", short) == 0
    assert read_baseline(whole).reservoir == pytest.approx(
        read_baseline(both).reservoir, rel=1e-12, nan_ok=True
    )


def test_what_does_not_add_up_is_refused_by_name(tmp_path: Path, short: Path, capsys) -> None:
    """Another plan, another model, or a file that was made final."""
    record(tmp_path / "other", 1 / 24, seed=2)
    alone, final = tmp_path / "alone.baseline", tmp_path / "final.baseline"
    assert run("fit", tmp_path / "other", "-o", alone) == 0
    assert run("fit", tmp_path / "other", "-o", final, "--final", "--plan-of", short) == 0
    capsys.readouterr()
    assert final.stat().st_size < short.stat().st_size

    line = refused(capsys, "merge", short, alone, "-o", tmp_path / "x")
    assert ".baseline: two fits of different plans" in line
    line = refused(capsys, "merge", short, final, "-o", tmp_path / "x")
    assert "final.baseline: written with --final" in line
    other = msgspec.structs.replace(IDENTITY, weights_digest="cd" * 32)
    record(tmp_path / "tampered", 1 / 24, identity=other)
    line = refused(capsys, "fit", tmp_path / "hour", tmp_path / "tampered", "-o", tmp_path / "x")
    assert "weights_digest" in line
    assert str(tmp_path / "tampered") in line
    assert not (tmp_path / "x").exists()


def test_only_the_trusted_key_makes_a_baseline_believed(tmp_path: Path, short: Path, capsys):
    """Unsigned, signed by another, or changed after: each is refused with the reason."""
    key, other = tmp_path / "mine.key", tmp_path / "other.key"
    assert run("keygen", key) == 0
    assert run("keygen", other) == 0
    assert key.stat().st_mode & 0o077 == 0
    capsys.readouterr()
    public = f"{key}.pub"
    assert "is not signed" in refused(capsys, "verify", short, "--key", public)

    before = read_file(short)
    assert run("sign", short, "--sign-with", key) == 0
    assert run("verify", short, "--key", public) == 0
    assert "not checked" not in capsys.readouterr().out
    signed = read_file(short)
    assert signed.baseline.digest == before.baseline.digest
    assert signed.fit is not None
    assert run("verify", short) == 0
    assert "not checked: give --key" in capsys.readouterr().out
    assert "not by the trusted key" in refused(capsys, "verify", short, "--key", f"{other}.pub")

    assert "would not be any more" in refused(capsys, "calibrate", short)
    assert run("calibrate", short, "--sign-with", key) == 0
    assert run("verify", short, "--key", public) == 0
    capsys.readouterr()

    changed = bytearray(short.read_bytes())
    changed[-100] ^= 1
    short.write_bytes(changed)
    line = refused(capsys, "verify", short, "--key", public)
    assert f"{short}: the file is torn or was changed" in line


def test_keys_are_never_overwritten(tmp_path: Path, capsys) -> None:
    """The old pair stays."""
    assert run("keygen", tmp_path / "mine.key") == 0
    before = (tmp_path / "mine.key").read_bytes()
    capsys.readouterr()

    assert "mine.key" in refused(capsys, "keygen", tmp_path / "mine.key")
    assert (tmp_path / "mine.key").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "{}/missing", "-o", "x"], "missing"),
        (["fit", "{}/empty", "-o", "x"], "no recordings in this folder"),
        (["fit", "{}/text.parquet", "-o", "x"], "text.parquet"),
        (["show", "{}/missing.baseline"], "there is no baseline"),
        (["show", "{}/text.parquet"], "no file of this package"),
        (["verify", "{}/text.parquet"], "no file of this package"),
        (["sign", "{}/text.parquet", "--sign-with", "{}/missing.key"], "missing.key"),
        (["fit", "{}/hour", "-o", "{}/empty", "--months", "0"], "cannot write"),
        (["fit", "{}/hour", "-o", "x", "--ray", "nowhere:1:2"], "--ray nowhere:1:2"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, capsys, arguments, said) -> None:
    """Status 2, no traceback, nothing on stdout."""
    record(tmp_path / "hour", 1 / 24)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("hello")

    line = refused(capsys, *(each.format(tmp_path) for each in arguments))
    assert said in line


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    """Ray for --ray, and pyarrow for recordings."""
    record(tmp_path / "hour", 1 / 24)
    for name, extra, options in (
        ("ray", "fleet", "'--ray', 'auto'"),
        ("pyarrow", "recordings", ""),
    ):
        code = (
            f"import sys\nsys.modules[{name!r}] = None\nfrom sidecar.cli import main\n"
            f"sys.exit(main(['baseline', 'fit', {str(tmp_path / 'hour')!r}, '-o', 'x', {options}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 2
        assert f"pip install 'llm-internals-sidecar[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_calibration_may_go_to_another_file(week: Week, tmp_path: Path) -> None:
    """The first stays as it is; the same seed gives the same limits."""
    copy = tmp_path / "copy.baseline"
    shutil.copy(week.baseline, copy)
    again = tmp_path / "again.baseline"
    assert run("calibrate", copy, "-o", again, "--months", 10) == 0

    assert copy.read_bytes() == week.baseline.read_bytes()
    assert read_baseline(again).digest == read_baseline(copy).digest
