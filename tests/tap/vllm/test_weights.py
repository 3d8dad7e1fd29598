"""Which files a worker loaded: those of its folder, or of the local cache, or a reason."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.errors import WeightsUnread
from sidecar.tap.vllm.weights import files_of
from sidecar.wire.frame import Manifest, Status
from tests.tap.vllm.test_worker import is_state, seated

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(model: object, load_format: object = "auto", **more: object) -> SimpleNamespace:
    """What is read of a VllmConfig."""
    given = {"revision": None, "tokenizer": str(model), "tokenizer_revision": None} | more
    cache = given.pop("download_dir", None)
    return SimpleNamespace(
        model_config=SimpleNamespace(model=str(model), **given),
        load_config=SimpleNamespace(load_format=load_format, download_dir=cache),
    )


def names(vllm_config: SimpleNamespace) -> list[str]:
    return sorted(found.name for found in files_of(vllm_config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (made / name).write_bytes(name.encode())
    return made


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A cache of Hugging Face with one model in it, as its client lays it out."""
    repo = tmp_path / "cache" / "models--someone--toy"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (repo / "blobs" / name).write_bytes(name.encode())
        (snapshot / name).symlink_to(repo / "blobs" / name)
    return tmp_path / "cache"


def test_a_folder_is_read_as_it_is(folder: Path) -> None:
    """Weights, configuration and tokenizer."""
    assert names(config(folder)) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_name_is_looked_up_in_the_local_cache(revision, cached: Path, folder: Path) -> None:
    """At the revision that was asked for; its tokenizer may be another's."""
    made = config("someone/toy", revision=revision, download_dir=str(cached), tokenizer=str(folder))
    assert names(made) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("missing", ["tokenizer", "revision", "tokenizer_revision"])
def test_a_release_without_an_attribute_is_read_all_the_same(missing, folder: Path) -> None:
    """The model's own is meant."""
    made = config(folder)
    delattr(made.model_config, missing)
    assert "tokenizer.json" in names(made)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (config("someone/unknown", download_dir="/nowhere"), "nor in the local cache"),
        (config("not a name at all!"), "nor in the local cache"),
        (config("m", "dummy"), "random numbers"),
        (config("m", "sharded_state"), "a shard of its own"),
        (config("m", "runai_streamer"), "load format runai_streamer"),
        (config("m", "of_a_plugin"), "load format of_a_plugin"),
    ],
)
def test_what_cannot_be_told_has_a_reason(made: SimpleNamespace, reason: str) -> None:
    """Absent by name, never a guess."""
    with pytest.raises(WeightsUnread, match=reason):
        files_of(made)


def test_modelscope_is_not_read(folder: Path, monkeypatch) -> None:
    """Its cache lies elsewhere."""
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    with pytest.raises(WeightsUnread, match="ModelScope"):
        files_of(config(folder))


def is_manifest(state: str):
    return lambda frame: isinstance(frame.body, Manifest) and frame.body.state == state


def of_folder(folder: Path) -> dict[str, dict[str, object]]:
    return {"model_config": {"model": str(folder)}, "load_config": {"load_format": "auto"}}


def test_a_worker_attests_its_files_once_it_is_warm(folder, ranks, tap_on) -> None:
    """Hashing is announced when the model is loaded, and done after the warm-up; then the status
    names the digests too."""
    made = seated(**of_folder(folder))
    made.load_model()
    tap_on.wait_for(is_manifest("hashing"))
    made.compile_or_warm_up_model()
    manifest = tap_on.wait_for(is_manifest("complete")).body
    assert len(manifest.files) == 3
    status = tap_on.wait_for(
        lambda frame: is_state("live")(frame) and frame.body.identity.weights_digest
    ).body
    assert status.identity.weights_digest == manifest.weights_digest
    assert status.identity.tokenizer_digest == manifest.tokenizer_digest
    assert status.identity.model_name == "toy"
    made.shutdown()


@pytest.mark.parametrize("place", ["tp", "pp"])
def test_one_rank_of_an_engine_attests(place, folder, ranks, tap_on) -> None:
    """The others load from the same files, and say nothing of them."""
    setattr(ranks, place, 1)
    made = seated(**of_folder(folder))
    made.load_model()
    made.compile_or_warm_up_model()
    tap_on.wait_for(lambda frame: isinstance(frame.body, Status))
    assert not any(isinstance(frame.body, Manifest) for frame in tap_on.read(0.3))


@pytest.mark.parametrize(
    ("key", "load_config", "reason"),
    [
        ("0", {"load_format": "auto"}, "SIDECAR_WEIGHTS_DIGEST=1"),
        ("1", {"load_format": "dummy"}, "random numbers"),
        ("1", object(), "could not be listed"),
    ],
)
def test_without_files_to_hash_the_reason_travels(
    key, load_config, reason, ranks, tap_on, monkeypatch
) -> None:
    """Switched off, not on disk, or another release's configuration: the tap works without."""
    monkeypatch.setenv("SIDECAR_WEIGHTS_DIGEST", key)
    made = seated(load_config=load_config)
    made.load_model()
    assert reason in tap_on.wait_for(is_manifest("absent")).body.reason
    made.compile_or_warm_up_model()
    tap_on.wait_for(is_state("live"))
