"""Tests of the demo corpus: three domains, split by file, the same on every call.

Purpose: keep prompts and validation text trustworthy. Guarantee: held-out files share no source
with training files in any domain, and a text's domain shows in 3 plain measurements.
"""

import ast
import math
import re
import subprocess
import sys
import zlib
from collections import Counter

import pytest

from sidecar.demo import corpus

ASKED = ("code", 3, 80, 7)
_SHOWN = f"""
import zlib
from sidecar.demo import corpus
parts = [corpus.split(domain) for domain in corpus.DOMAINS]
print((zlib.crc32(repr(parts).encode()), corpus.excerpts(*{ASKED})))
"""


def _capital_share(text: str) -> float:
    """Return the share of letters that are capitals."""
    letters = [character for character in text if character.isalpha()]
    return sum(character.isupper() for character in letters) / max(1, len(letters))


def _code_share(text: str) -> float:
    """Return the share of characters that Python code uses more than prose does."""
    return sum(character in "()[]{}=_:." for character in text) / len(text)


def _joined(domain: str) -> str:
    """Return the held-out text of a domain."""
    return "\n".join(item.text for item in corpus.split(domain).validation)


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_every_domain_has_enough_text_in_both_parts(domain: str) -> None:
    """Each domain gives over 500 kB to train on and over 50 kB held out."""
    parts = corpus.split(domain)
    assert sum(len(item.text) for item in parts.train) > 500_000
    assert sum(len(item.text) for item in parts.validation) > 50_000
    assert {item.domain for item in (*parts.train, *parts.validation)} == {domain}


def test_domains_are_told_apart_by_plain_counts() -> None:
    """Capitals set characters apart from the rest, and punctuation sets code apart from prose."""
    prose, code, characters = (_joined(domain) for domain in corpus.DOMAINS)
    assert _capital_share(characters) > 0.8
    assert max(_capital_share(prose), _capital_share(code)) < 0.4
    assert _code_share(code) > 1.5 * _code_share(prose)


def test_single_excerpts_show_their_domain() -> None:
    """A guess from character frequencies alone names the domain of at least 9 in 10 excerpts."""
    known = {domain: Counter(_joined(domain)) for domain in corpus.DOMAINS}
    right = sum(
        domain == max(corpus.DOMAINS, key=lambda name: _likelihood(text, known[name]))
        for domain in corpus.DOMAINS
        for text in corpus.excerpts(domain, count=30, length=300, seed=1, part="train")
    )
    assert right >= 0.9 * 30 * len(corpus.DOMAINS)


def _likelihood(text: str, counts: Counter[str]) -> float:
    """Return the log-probability of a text's characters under the given counts (add-one)."""
    total = math.log(counts.total() + 256)
    return sum(math.log(counts[character] + 1) - total for character in text)


def test_no_file_is_in_both_parts_of_any_domain() -> None:
    """A source that is held out in one domain is trained on in none."""
    trained = {item.source for domain in corpus.DOMAINS for item in corpus.split(domain).train}
    held = {item.source for domain in corpus.DOMAINS for item in corpus.split(domain).validation}
    assert held
    assert not trained & held


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_split_keeps_every_document_once(domain: str) -> None:
    """The two parts together are the documents, each source once."""
    parts = corpus.split(domain)
    assert sorted(parts.train + parts.validation) == sorted(corpus.documents(domain))
    sources = [item.source for item in corpus.documents(domain)]
    assert len(sources) == len(set(sources))


def test_long_prose_passages_occur_once() -> None:
    """No passage of 40 characters or more is kept twice, so none is both trained and held out."""
    passages = [
        passage.strip()
        for item in corpus.documents("prose")
        for passage in item.text.split("\n\n")
        if len(passage.strip()) >= corpus.SMALLEST_DUPLICATE
    ]
    assert len(passages) == len(set(passages))


def test_code_is_valid_python_without_docstrings_or_comments() -> None:
    """Held-out code parses and holds no docstring and no line that is only a comment."""
    for item in corpus.split("code").validation:
        nodes = list(ast.walk(ast.parse(item.text)))
        assert not any(
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node)
            for node in nodes
        ), item.source


def test_character_lines_name_their_code_point() -> None:
    """Every line of the characters domain is a code point, a category and a name."""
    assert "U+00E9 Ll LATIN SMALL LETTER E WITH ACUTE" in corpus.documents("characters")[0].text
    for item in corpus.documents("characters"):
        for line in item.text.splitlines():
            assert re.fullmatch(r"U\+[0-9A-F]{4,6} [A-Z][a-z] [A-Z0-9 ()-]+", line), line


def test_another_process_builds_the_same_corpus() -> None:
    """A process with another hash seed gives the same documents, split and excerpts."""
    found = subprocess.run(
        [sys.executable, "-c", _SHOWN],
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    parts = [corpus.split(domain) for domain in corpus.DOMAINS]
    assert found.stdout.strip() == repr((zlib.crc32(repr(parts).encode()), corpus.excerpts(*ASKED)))


@pytest.mark.parametrize("part", corpus.PARTS)
def test_excerpts_come_from_the_asked_part(part: str) -> None:
    """Excerpts have the asked number and length, repeat for a seed, and occur in their part."""
    texts = corpus.excerpts("prose", count=5, length=120, seed=3, part=part)
    parts = corpus.split("prose")
    known = parts.train if part == "train" else parts.validation
    assert texts == corpus.excerpts("prose", count=5, length=120, seed=3, part=part)
    assert texts != corpus.excerpts("prose", count=5, length=120, seed=4, part=part)
    assert len(texts) == 5
    assert all(len(text) <= 120 for text in texts)
    assert all(any(text in item.text for item in known) for text in texts)


def test_wrong_arguments_are_refused_with_a_remedy() -> None:
    """An unknown domain or part, or an empty request, raises and names what is allowed."""
    with pytest.raises(ValueError, match="use one of prose, code, characters"):
        corpus.documents("poetry")
    with pytest.raises(ValueError, match="use one of train, validation"):
        corpus.excerpts("prose", 1, 10, 0, part="test")
    with pytest.raises(ValueError, match="at least 1"):
        corpus.excerpts("prose", 0, 10, 0)


def test_corpus_needs_the_standard_library_only() -> None:
    """Importing the corpus and reading it loads neither torch nor transformers."""
    code = (
        "import sys; from sidecar.demo import corpus; corpus.documents('characters'); "
        "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=path, timeout=60, check=False).returncode == 0
