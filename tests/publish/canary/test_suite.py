"""The suite of known-safe tasks: what is bundled, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigError
from sidecar.publish.canary import suite as suites
from sidecar.publish.canary.suite import read_suite
from sidecar.wire.canary import Canary, parse

TEXT = "Write one sentence about a garden in the rain, please. "


def line(number: int, **changes: Any) -> dict[str, Any]:
    """One prompt of a suite."""
    given = {"id": f"p{number}", "route": "chat", "length": "short", "tags": ["a"], "prompt": TEXT}
    return given | changes


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    """A file of these lines behind eight good ones."""
    path = folder / "suite.jsonl"
    all_lines = [line(number) for number in range(8)] + list(lines)
    texts = (each if isinstance(each, str) else json.dumps(each) for each in all_lines)
    path.write_text("\n".join(texts) + "\n")
    return path


def test_the_bundled_suite_is_broad() -> None:
    """32 prompts, at least four routes, two lengths in each of them, every one with tags."""
    prompts = read_suite().prompts

    assert len(prompts) == 32
    assert len({prompt.route for prompt in prompts}) >= 4
    assert min(Counter((each.route, each.length) for each in prompts).values()) >= 2
    assert all(prompt.tags for prompt in prompts)


def test_a_long_prompt_is_longer() -> None:
    """The two lengths are told apart by their text too."""
    prompts = read_suite().prompts
    short = max(len(each.prompt) for each in prompts if each.length == "short")

    assert all(len(each.prompt) > 2 * short for each in prompts if each.length == "long")


def test_every_bundled_name_can_be_signed() -> None:
    """A tag made of it can be read back."""
    for name in read_suite().names:
        assert parse(str(Canary(name, 1))) == Canary(name, 1)


def test_prompts_keep_the_order_of_their_file(tmp_path: Path) -> None:
    """Empty lines are no prompts."""
    path = written(tmp_path, "", line(9), line(8))

    assert read_suite(path).names == (*(f"p{k}" for k in range(8)), "p9", "p8")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (line(3), "suite.jsonl:9: id 'p3' stands twice"),
        (line(8, color="red"), "suite.jsonl:9: .*color"),
        (line(8, id="a b"), "suite.jsonl:9: id 'a b'"),
        (line(8, id="x" * 65), "1 to 64"),
        (line(8, length="medium"), "suite.jsonl:9: .*medium"),
        (line(8, prompt="too short"), "suite.jsonl:9: "),
        (line(8, prompt="x" * 16_385), "suite.jsonl:9: "),
        (line(8, route=""), "suite.jsonl:9: "),
        ("{", "suite.jsonl:9: .*fields are id, route"),
        ('"text"', "suite.jsonl:9: "),
    ],
)
def test_a_bad_line_is_refused_with_its_place(
    tmp_path: Path, bad: dict[str, Any] | str, words: str
) -> None:
    """And with what is wrong there."""
    with pytest.raises(ConfigError, match=words):
        read_suite(written(tmp_path, bad))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Not with a traceback."""
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"id": "\xff"}')

    with pytest.raises(ConfigError, match=r"suite\.jsonl:9"):
        read_suite(path)


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    """A median needs several."""
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(json.dumps(line(number)) for number in range(7)))

    with pytest.raises(ConfigError, match="7 prompts; write 8 to 256"):
        read_suite(path)


def test_too_many_prompts_are_refused(tmp_path: Path) -> None:
    """A canary costs the served model something."""
    with pytest.raises(ConfigError, match="257 prompts"):
        read_suite(written(tmp_path, *(line(number) for number in range(8, 257))))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """Only as much as is needed to know."""
    with pytest.raises(ConfigError, match=f"more than {suites.MAX_BYTES} bytes"):
        read_suite(written(tmp_path, " " * suites.MAX_BYTES))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the remedy."""
    with pytest.raises(ConfigError, match=r"absent\.jsonl.*give a file"):
        read_suite(tmp_path / "absent.jsonl")


def test_the_digest_is_of_what_is_sent(tmp_path: Path) -> None:
    """Tags may change without a new reference; a prompt may not."""
    digest = read_suite(written(tmp_path, line(8))).digest

    assert read_suite(written(tmp_path, line(8, tags=["b"]))).digest == digest
    assert read_suite(written(tmp_path, line(8, prompt=TEXT + "!"))).digest != digest


@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Never with another error."""
    path = tmp_path_factory.mktemp("suite") / "any.jsonl"
    path.write_bytes(data)

    with pytest.raises(ConfigError):
        read_suite(path)
