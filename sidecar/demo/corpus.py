"""Three-domain text corpus that every Python installation already carries.

Purpose: give the demo model something to learn and the traffic generator prompts whose domain
is known, without a download. Guarantee: 3 domains, each text at least 80 characters long, no
passage of 40 characters or more kept twice within a domain, every file wholly in training or
wholly in validation (about 1 file in 10), and the same result on every call for one Python
version. Uses the standard library only; the first call for prose or code takes about 3 seconds.
"""

import functools
import hashlib
import importlib
import inspect
import io
import itertools
import random
import re
import sysconfig
import tokenize
import unicodedata
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

DOMAINS: Final[tuple[str, ...]] = ("prose", "code", "characters")
PARTS: Final[tuple[str, ...]] = ("train", "validation")
SMALLEST_TEXT: Final = 80
SMALLEST_DUPLICATE: Final = 40
FILES_PER_HELD_OUT: Final = 10
CODE_POINTS_PER_PAGE: Final = 256

# Left out: folders that some distributions do not ship, machine-generated tables, and tests.
_SKIPPED_FOLDERS: Final = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "ensurepip",
        "distutils",
        "encodings",
        "pydoc_data",
        "lib-dynload",
    }
)
_DEFINITION: Final = re.compile(r"^(?:@.*\n)*(?:async def|def|class) ", re.MULTILINE)


class Document(NamedTuple):
    """One text of one domain.

    domain: one of DOMAINS. source: the file it comes from, relative to the standard library
    (for characters: a page of 256 code points, treated as one file). text: the text itself.
    """

    domain: str
    source: str
    text: str


class Split(NamedTuple):
    """Documents kept for training and documents held out, disjoint by source."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


class Module(NamedTuple):
    """One source file taken apart: its prose (docstrings, comments) and its bare code."""

    source: str
    prose: str
    code: str


@functools.cache
def documents(domain: str) -> tuple[Document, ...]:
    """Return every document of a domain, ordered by source.

    domain: "prose" (reference pages, docstrings, comments), "code" (Python source without
    docstrings and comments) or "characters" (lines such as "U+00E9 Ll LATIN SMALL LETTER E WITH
    ACUTE"). Raises ValueError for another name.
    """
    if domain == "prose":
        found = _prose_texts()
    elif domain == "code":
        found = {module.source: module.code for module in _modules()}
    elif domain == "characters":
        found = _character_pages()
    else:
        raise ValueError(f"unknown domain {domain!r}: use one of {', '.join(DOMAINS)}")
    return tuple(
        Document(domain, source, text)
        for source, text in _without_repeats(found, domain)
        if len(text) >= SMALLEST_TEXT
    )


def split(domain: str) -> Split:
    """Return the documents of a domain as a training part and a held-out part.

    A source goes to the same part in every domain, so the code of a file whose docstrings were
    trained on is never held out. Raises ValueError for an unknown domain.
    """
    train = tuple(item for item in documents(domain) if not is_held_out(item.source))
    held_out = tuple(item for item in documents(domain) if is_held_out(item.source))
    return Split(train, held_out)


def is_held_out(source: str) -> bool:
    """Say whether a source belongs to validation; depends on its name alone (1 in 10)."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % FILES_PER_HELD_OUT == 0


def excerpts(
    domain: str, count: int, length: int, seed: int, part: str = "validation"
) -> list[str]:
    """Return count excerpts of a domain, each starting at a line and at most length characters.

    Meant for prompts. part: "train" or "validation". The same arguments give the same excerpts.
    Raises ValueError for an unknown domain or part, or a count or length below 1.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: use one of {', '.join(PARTS)}")
    if count < 1 or length < 1:
        raise ValueError(f"count {count} and length {length} must both be at least 1")
    chosen = split(domain).train if part == "train" else split(domain).validation
    weights = [len(item.text) for item in chosen]
    draw = random.Random(f"{domain}/{part}/{seed}")
    return [_excerpt(item.text, length, draw) for item in draw.choices(chosen, weights, k=count)]


def _excerpt(text: str, length: int, draw: random.Random) -> str:
    """Cut one excerpt that starts at a line and, where the text allows it, has full length."""
    starts = [0] + [match.end() for match in re.finditer(r"\n(?=\S)", text)]
    fitting = [start for start in starts if start + length <= len(text)] or [0]
    start = draw.choice(fitting)
    return text[start : start + length]


def _prose_texts() -> Mapping[str, str]:
    """Map a source to its prose: the language reference first, then every module."""
    topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    reference = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return {"pydoc_data/topics.py": reference} | {item.source: item.prose for item in _modules()}


def _character_pages() -> Mapping[str, str]:
    """Map each page of 256 code points to one line per named character."""
    pages: dict[str, list[str]] = {}
    for code_point in range(0x110000):
        character = chr(code_point)
        name = unicodedata.name(character, "")
        # Names that only repeat the code point, and composed syllables, are no text to learn.
        if not name or name.endswith(f"{code_point:X}") or name.startswith("HANGUL SYLLABLE"):
            continue
        page = code_point - code_point % CODE_POINTS_PER_PAGE
        line = f"U+{code_point:04X} {unicodedata.category(character)} {name}"
        pages.setdefault(f"unicodedata/U+{page:04X}", []).append(line)
    return {source: "\n".join(lines) for source, lines in pages.items()}


@functools.cache
def _modules() -> tuple[Module, ...]:
    """Take every standard library source file apart, ordered by path."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return tuple(
        _taken_apart(path.relative_to(library).as_posix(), _source_text(path))
        for path in sorted(library.rglob("*.py"))
        if _is_wanted(path.relative_to(library))
    )


def _is_wanted(path: Path) -> bool:
    """Leave out skipped folders, this build's settings and start-up hooks of one machine."""
    machine_made = path.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
    return not machine_made and not any(
        folder in _SKIPPED_FOLDERS or folder.startswith("config-") for folder in path.parts
    )


def _source_text(path: Path) -> str:
    """Read a source file in the encoding that it declares."""
    with tokenize.open(path) as stream:
        return stream.read()


def _taken_apart(source: str, text: str) -> Module:
    """Separate a source file into prose and code."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    lines = list(io.StringIO(text))
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    remarks = list(_docstrings(tokens))
    found = [(token.start[0], _docstring_text(token.string)) for token, _ in remarks]
    found += _comment_blocks(comments, lines)
    prose = "\n\n".join(words for _, words in sorted(found) if len(words) >= SMALLEST_TEXT)
    cuts = remarks + [(token, "") for token in comments]
    return Module(source, prose, _without(lines, cuts))


def _docstrings(
    tokens: Iterable[tokenize.TokenInfo],
) -> Iterator[tuple[tokenize.TokenInfo, str]]:
    """Yield each statement that is only a string, with what must stand in its place."""
    kinds = [item for item in tokens if item.type not in (tokenize.NL, tokenize.COMMENT)]
    openers = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for place, token in enumerate(kinds[:-1]):
        starts = place == 0 or kinds[place - 1].type in openers
        if token.type != tokenize.STRING or not starts:
            continue
        if kinds[place + 1].type != tokenize.NEWLINE:
            continue
        # A body that held nothing but its docstring needs another statement to stay valid.
        opens = place > 0 and kinds[place - 1].type == tokenize.INDENT
        alone = opens and kinds[place + 2].type == tokenize.DEDENT
        yield token, "pass" if alone else ""


def _docstring_text(literal: str) -> str:
    """Return a docstring without its quotes, indentation and interactive examples."""
    value = literal_eval(literal)
    text = inspect.cleandoc(value) if isinstance(value, str) else ""
    passages = re.split(r"\n\s*\n", text)
    return "\n\n".join(item for item in passages if ">>>" not in item).strip()


def _comment_blocks(
    comments: Iterable[tokenize.TokenInfo], lines: list[str]
) -> list[tuple[int, str]]:
    """Join whole-line comments on consecutive lines; each block comes with its first line."""
    blocks: list[tuple[int, list[str]]] = []
    previous = -1
    for token in comments:
        row, column = token.start
        words = token.string.lstrip("#!:").strip()
        if lines[row - 1][:column].strip() or not re.search(r"[a-z]{3}", words):
            continue
        if row == previous + 1:
            blocks[-1][1].append(words)
        else:
            blocks.append((row, [words]))
        previous = row
    return [(row, "\n".join(block)) for row, block in blocks]


def _without(lines: list[str], cuts: Iterable[tuple[tokenize.TokenInfo, str]]) -> str:
    """Replace the cut tokens in a file's lines and drop the lines left empty by that."""
    kept = list(lines)
    # From the end backwards, so that a comment after a docstring is gone before the docstring.
    for token, stand_in in sorted(cuts, key=lambda cut: cut[0].start, reverse=True):
        (first, left), (last, right) = token.start, token.end
        rest = (kept[first - 1][:left] + stand_in + kept[last - 1][right:]).rstrip()
        kept[first - 1 : last] = [rest + "\n" if rest else ""] + [""] * (last - first)
    code = "".join(line.rstrip() + "\n" for line in kept if line)
    return re.sub(r"\n{4,}", "\n\n\n", code).strip()


def _without_repeats(texts: Mapping[str, str], domain: str) -> Iterator[tuple[str, str]]:
    """Yield each source and its text less the passages that an earlier source already had."""
    seen: set[str] = set()
    for source in sorted(texts):
        fresh: list[str] = []
        for passage in _passages(texts[source], domain):
            key = passage.strip()
            if key not in seen or len(key) < SMALLEST_DUPLICATE:
                fresh.append(passage)
            seen.add(key)
        yield source, "".join(fresh).strip()


def _passages(text: str, domain: str) -> list[str]:
    """Cut a text where it can be cut whole: at definitions, blank lines or line ends."""
    if domain == "code":
        starts = [match.start() for match in _DEFINITION.finditer(text)]
        bounds = [0, *starts, len(text)]
        return [text[left:right] for left, right in itertools.pairwise(bounds)]
    return re.split(r"(?<=\n\n)" if domain == "prose" else r"(?<=\n)", text)
