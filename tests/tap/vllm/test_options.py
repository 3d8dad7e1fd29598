"""What both seats read from vLLM's configuration object."""

import pytest

from sidecar.tap.vllm.options import model_name, options_of
from tests.tap.vllm.fakes import vllm_config


@pytest.mark.parametrize(
    ("additional", "options"),
    [
        ({}, {}),
        ({"other": {"tap": True}}, {}),
        ({"sidecar": {"tap": True, "max_errors": 2}}, {"tap": True, "max_errors": 2}),
        ({"sidecar": "on"}, {}),
        (None, {}),
        (object(), {}),
    ],
)
def test_options_are_the_part_named_sidecar(additional, options) -> None:
    """Only a mapping under our own name is ours; anything else is nobody's error."""
    assert options_of(vllm_config(additional_config=additional)) == options


@pytest.mark.parametrize(
    ("served", "name"),
    [(["first", "second"], "first"), ("only", "only"), ("x" * 5000, "x" * 256)],
)
def test_the_model_is_named_as_clients_name_it(served, name) -> None:
    """The first served name, cut to the field it travels in."""
    assert model_name(vllm_config(model_config={"served_model_name": served})) == name
