"""The examples in the docstrings of this room run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import sidecar.fold

MODULES = [each.name for each in pkgutil.iter_modules(sidecar.fold.__path__, "sidecar.fold.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    """A reader can paste them."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    """The test above has something to run."""
    found = [doctest.testmod(importlib.import_module(name)).attempted for name in MODULES]

    assert sum(found) >= 3
