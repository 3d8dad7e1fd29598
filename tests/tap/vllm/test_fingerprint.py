"""The fingerprint: changes with whatever shapes the graph, and changes vLLM's compile key."""

import pytest

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.vllm import fingerprint
from sidecar.tap.vllm.fingerprint import KEY, write
from tests.tap.vllm.fakes import vllm_config

CONFIG = TapConfig()


def test_the_same_tap_has_the_same_fingerprint() -> None:
    """A restart of the same release finds the graph it compiled before."""
    assert fingerprint.fingerprint(128, CONFIG) == fingerprint.fingerprint(128, CONFIG)
    assert len(fingerprint.fingerprint(128, CONFIG)) == 16


def test_it_changes_with_the_rows() -> None:
    """Another capacity is another buffer in the graph."""
    assert fingerprint.fingerprint(128, CONFIG) != fingerprint.fingerprint(192, CONFIG)


@pytest.mark.parametrize(("name", "value"), [("__version__", "99.0"), ("SCHEMA", 99)])
def test_it_changes_with_the_release(name, value, monkeypatch) -> None:
    """Another version of the package or of the wire is another tap."""
    before = fingerprint.fingerprint(128, CONFIG)
    monkeypatch.setattr(fingerprint, name, value)
    assert fingerprint.fingerprint(128, CONFIG) != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_layers", 3),
        ("attention_requests", 3),
        ("router", False),
        ("sketch_layers", 3),
        ("sketch_size", 3),
        ("sketch_seed", 3),
        ("probe_file", "/probes.json"),
    ],
)
def test_it_changes_with_what_is_computed_in_the_graph(key, value) -> None:
    """Other layers, sizes or directions are other statements in the graph."""
    other = TapConfig(**{key: value})
    assert fingerprint.fingerprint(128, other) != fingerprint.fingerprint(128, CONFIG)


def test_it_stays_with_what_is_decided_outside_the_graph() -> None:
    """How often, where to and under which names costs no compilation."""
    other = TapConfig(
        socket="/elsewhere.sock", attention_every=3, confidence_every=3, adapters="a,b"
    )
    assert fingerprint.fingerprint(128, other) == fingerprint.fingerprint(128, CONFIG)


@pytest.mark.parametrize("module", ["stream", "probes", "sites", "router", "gates"])
def test_it_changes_with_every_traced_source(module, monkeypatch) -> None:
    """One changed line in what is traced, or in where, is another graph."""
    before = fingerprint.fingerprint(128, CONFIG)
    source = fingerprint.inspect.getsource

    def edited(traced: object) -> str:
        is_edited = traced is getattr(fingerprint, module)
        return source(traced) + "# edited" * is_edited

    monkeypatch.setattr(fingerprint.inspect, "getsource", edited)
    assert fingerprint.fingerprint(128, CONFIG) != before


def test_it_is_written_beside_what_is_there() -> None:
    """The operator's own additional configuration stays."""
    config = vllm_config(additional_config={"sidecar": {"tap": True}})
    write(config, "abc")
    assert config.additional_config == {"sidecar": {"tap": True}, KEY: "abc"}


@pytest.mark.parametrize("additional", [None, object(), "text"])
def test_an_additional_config_of_somebody_elses_is_refused(additional) -> None:
    """Where there is no dict to write to, the cache cannot be told, and the tap is refused."""
    with pytest.raises(TapRefused, match=f"a {type(additional).__name__}, not a dict"):
        write(vllm_config(additional_config=additional), "abc")


def test_it_changes_the_compile_key_of_the_installed_vllm(installed_vllm) -> None:
    """vLLM's own hash of its configuration, from which its caches are named, sees the tap."""
    from vllm.config import VllmConfig

    config = VllmConfig()
    untapped = config.compute_hash()
    write(config, fingerprint.fingerprint(128, CONFIG))
    tapped = config.compute_hash()
    write(config, fingerprint.fingerprint(192, CONFIG))
    assert len({untapped, tapped, config.compute_hash()}) == 3
