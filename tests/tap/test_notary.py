"""The notary: digests that anybody can check, of files that are what was loaded, at a low price."""

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import WeightsUnread
from sidecar.tap import notary
from sidecar.tap.notary import CHUNK_BYTES, TELL_NS, Notary, find_files
from sidecar.wire.frame import MAX_FILES, Manifest

MODEL = {
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two" * 1000,
    "model.safetensors.index.json": b"{}",
    "config.json": b'{"hidden_size": 8}',
    "modeling_own.py": b"pass",
}
TOKENIZER = {"tokenizer.json": b"tok", "tokenizer_config.json": b"{}", "chat_template.jinja": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with what is none of its files."""
    made = tmp_path / "model"
    (made / "original").mkdir(parents=True)
    (made / "original" / "consolidated.pth").write_bytes(b"another form of it")
    for name, content in (MODEL | TOKENIZER | {"README.md": b"words"}).items():
        (made / name).write_bytes(content)
    return made


def eventually(read: Callable[[], Manifest], is_there: Callable[[Manifest], bool]) -> Manifest:
    deadline = time.monotonic() + 60
    while not is_there(found := read()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def attested(made: Notary) -> Manifest:
    made.start()
    found = eventually(made.get, lambda manifest: manifest.state != "hashing")
    made.stop()
    return found


def sha256sum(folder: Path, names: list[str]) -> str:
    """What an operator computes with the ordinary tool."""
    lines = subprocess.run(
        ["sha256sum", *sorted(names)], cwd=folder, capture_output=True, check=True
    ).stdout
    return hashlib.sha256(lines).hexdigest()


def test_digests_are_those_of_the_ordinary_tool(folder: Path) -> None:
    """Of every file that decides what is computed, and of no other."""
    found = attested(Notary(find_files(folder, folder)))
    assert (found.state, found.reason) == ("complete", "")
    assert found.weights_digest == sha256sum(folder, list(MODEL))
    assert found.tokenizer_digest == sha256sum(folder, list(TOKENIZER))
    told = {file.name: (file.num_bytes, file.sha256) for file in found.files}
    assert told == {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in (MODEL | TOKENIZER).items()
    }


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_a_file_of_any_length_is_hashed_whole(size: int, tmp_path: Path) -> None:
    """Whether it fills its last chunk or not."""
    content = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "model.safetensors").write_bytes(content[:size])
    (file,) = attested(Notary(find_files(tmp_path, None))).files
    assert file.sha256 == hashlib.sha256(content[:size]).hexdigest()


def test_the_order_of_a_folder_is_no_matter(folder: Path) -> None:
    """The same files have the same digest, however they were listed."""
    files = find_files(folder, folder)
    one, other = attested(Notary(files)), attested(Notary(reversed(files)))
    assert one == other


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json"])
def test_one_byte_changes_the_digest_of_its_kind_alone(name: str, folder: Path) -> None:
    """Weights and configuration count for the weights, not for the tokenizer."""
    before = attested(Notary(find_files(folder, folder)))
    content = bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(content)
    after = attested(Notary(find_files(folder, folder)))
    assert after.weights_digest != before.weights_digest
    assert after.tokenizer_digest == before.tokenizer_digest


def test_a_renamed_shard_is_another_model() -> None:
    """Names are in the digest: two files that changed places are not the same weights."""
    assert notary._digest([("a", "1"), ("b", "2")]) != notary._digest([("a", "2"), ("b", "1")])


def test_a_tokenizer_of_another_folder_is_that_one(folder: Path, tmp_path: Path) -> None:
    """The one beside the weights is not used, and not told."""
    (tmp_path / "tokenizer.json").write_bytes(b"another")
    found = attested(Notary(find_files(folder, tmp_path)))
    assert found.tokenizer_digest == sha256sum(tmp_path, ["tokenizer.json"])
    assert attested(Notary(find_files(folder, None))).tokenizer_digest == ""


def test_a_model_may_be_one_file(tmp_path: Path) -> None:
    """As a GGUF file is."""
    (tmp_path / "other.gguf").write_bytes(b"not this one")
    (tmp_path / "model.gguf").write_bytes(b"all of it")
    found = attested(Notary(find_files(tmp_path / "model.gguf", None)))
    assert [file.name for file in found.files] == ["model.gguf"]


@pytest.mark.parametrize("content", [{}, {"config.json": b"{}"}])
def test_a_folder_without_weights_is_told_of(content: dict, tmp_path: Path) -> None:
    """Rather than given a digest of a configuration."""
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(WeightsUnread, match="holds no weights"):
        find_files(tmp_path, None)


def test_a_folder_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    """With what is wrong and the remedy."""
    with pytest.raises(WeightsUnread, match=r"none: No such file.*let the engine's user"):
        find_files(tmp_path / "none", None)


@pytest.mark.parametrize("change", ["rewritten", "replaced", "removed"])
def test_a_file_that_changed_before_it_was_hashed_has_no_digest(change: str, folder: Path) -> None:
    """What was loaded is gone: a digest of what is there now would be a lie."""
    made = Notary(find_files(folder, folder))
    path = folder / "model-00001-of-00002.safetensors"
    if change == "rewritten":
        path.write_bytes(b"eno")
    elif change == "replaced":
        (folder / "new").write_bytes(b"one")
        (folder / "new").replace(path)
    else:
        path.unlink()
    found = attested(made)
    assert (found.state, found.weights_digest, found.files) == ("absent", "", [])
    assert path.name in found.reason


def test_a_file_that_changed_after_it_was_hashed_is_a_finding(folder: Path) -> None:
    """The digests of what was loaded stay; the reason names the file, also when it comes back."""
    path = folder / "config.json"
    status, content = path.stat(), path.read_bytes()
    made = Notary(find_files(folder, folder), check_seconds=0.01)
    made.start()
    before = eventually(made.get, lambda manifest: manifest.state == "complete")
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # made to look untouched
    after = eventually(made.get, lambda manifest: bool(manifest.reason))
    path.unlink()
    time.sleep(0.1)
    made.stop()
    assert "1 files changed on disk" in after.reason
    assert "config.json" in after.reason
    assert after.weights_digest == before.weights_digest
    assert made.get() == after


def test_more_files_than_a_manifest_lists_are_digested_all_the_same(tmp_path: Path) -> None:
    """And it says so."""
    names = [f"{number:05}.safetensors" for number in range(MAX_FILES + 1)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    found = attested(Notary(find_files(tmp_path, None)))
    assert len(found.files) == MAX_FILES
    assert f"{MAX_FILES} of {MAX_FILES + 1} files" in found.reason
    assert found.weights_digest == sha256sum(tmp_path, names)


def test_the_manifest_is_told_when_it_is_news_and_every_minute(folder: Path) -> None:
    """A sidecar that starts later hears of it within the minute."""
    made = Notary(find_files(folder, folder))
    now = 10**18
    told = made.due(now)
    assert told is not None
    assert told.state == "hashing"
    assert made.due(now + TELL_NS - 1) is None
    assert made.due(now + TELL_NS) is not None
    attested(made)
    told = made.due(now + TELL_NS + 1)
    assert told is not None
    assert told.state == "complete"
    assert made.due(now + TELL_NS + 2) is None
    assert made.due(now) is not None  # a clock set back keeps nobody silent


def test_who_has_nothing_to_attest_says_why() -> None:
    """And starts no thread."""
    made = Notary.absent("the weights are random numbers " + "x" * 5000)
    num_threads = threading.active_count()
    made.start()
    assert threading.active_count() == num_threads
    assert made.get().state == "absent"
    assert made.get().reason.startswith("the weights are random numbers")
    assert len(made.get().reason) == 2048


class Clock:
    """A clock that moves a second at each look, so that every chunk took one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(("share", "rest"), [(0.25, 3.0), (0.5, 1.0)])
def test_it_rests_after_each_chunk(share, rest, tmp_path, monkeypatch) -> None:
    """So long that it works for its share of the time."""
    (tmp_path / "model.bin").write_bytes(bytes(2 * CHUNK_BYTES + 1))
    made = Notary(find_files(tmp_path, None), share=share, clock=Clock())
    rests: list[float] = []
    monkeypatch.setattr(made._stopping, "wait", lambda seconds: rests.append(seconds) or False)
    made._hash(made._files[0])
    assert rests == [rest] * 3


def test_it_stops_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """An engine that ends is not kept; nothing is attested."""
    (tmp_path / "model.bin").write_bytes(bytes(2 * CHUNK_BYTES))
    made = Notary(find_files(tmp_path, None), share=1e-9)  # a rest of years
    made.start()
    made.stop()
    made._thread.join(60)
    assert not made._thread.is_alive()
    assert made.get().state == "hashing"


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="no priorities here")
def test_its_thread_goes_behind_every_other(tmp_path: Path, monkeypatch) -> None:
    """The priority is the thread's own, not the engine's."""
    (tmp_path / "model.bin").write_bytes(b"x")
    seen: list[int] = []

    def look(_manifest: object) -> Manifest:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return Manifest("complete")

    monkeypatch.setattr(notary, "_manifest", look)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    attested(Notary(find_files(tmp_path, None)))
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
