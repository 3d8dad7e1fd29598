"""What the routes of the live page serve, and what the files of the page refer to."""

import hashlib
import json
import re
from importlib.resources import files

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from sidecar.publish.api import problems
from sidecar.publish.ui import pages

VENDOR = "vendor/"
REFERENCE = re.compile(r"""(?:src|href)="([^"#]+)"|from "([^"]+)"|url\(([^)]+)\)""")


@pytest.fixture
def client() -> TestClient:
    """The page alone, without a sidecar behind it."""
    app = FastAPI()
    problems.install(app)
    app.include_router(pages.ui)
    return TestClient(app, raise_server_exceptions=False)


def own(suffix: str) -> dict[str, str]:
    """Our own files of a kind, by path."""
    return {
        path: asset.body.decode()
        for path, asset in pages.assets().items()
        if path.endswith(suffix) and not path.startswith(VENDOR)
    }


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/"])
def test_every_way_in_ends_at_the_page(client: TestClient, path: str) -> None:
    """With and without the slash, and from the root of the port."""
    reply = client.get(path)

    assert reply.url.path == "/ui/"
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "<main>" in reply.text


def test_the_policy_allows_this_origin_alone(client: TestClient) -> None:
    """On every file: no other host, no inline script or style, no frame around it."""
    for path in pages.assets():
        headers = client.get(f"/ui/{path}").headers
        policy = headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'self'"
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["nothing.js", "../pages.py", "%2e%2e/pages.py", "js/../../pages.py", "vendor"]
)
def test_only_files_of_the_page_can_be_had(client: TestClient, path: str) -> None:
    """Anything else is a problem with a remedy, whatever the path looks like."""
    reply = client.get(f"/ui/{path}")

    assert reply.status_code == 404
    assert "uPlot" not in reply.text
    assert reply.json()["remedy"]


def test_a_file_that_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    """304 for the tag of its bytes, the file for any other."""
    first = client.get("/ui/page.css")
    tag = first.headers["etag"]

    again = client.get("/ui/page.css", headers={"If-None-Match": tag})
    other = client.get("/ui/page.css", headers={"If-None-Match": '"other"'})

    assert (again.status_code, again.content) == (304, b"")
    assert (other.status_code, other.content) == (200, first.content)


def test_what_is_vendored_is_what_was_published() -> None:
    """Each vendored file has its recorded digest, none is unrecorded, and its licence is there."""
    folder = files("sidecar.publish.ui") / "static" / "vendor"
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    found = {each.name for each in folder.iterdir()} - {"MANIFEST.json"}

    assert found == set(manifest["files"])
    for name, told in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == told["sha256"], name
    assert manifest["licence"] in (folder / "LICENSE.uPlot.txt").read_text()
    assert f"v{manifest['version']}" in (folder / "uPlot.esm.js").read_text()[:400]


def test_the_page_refers_to_itself_alone() -> None:
    """Every script, style, picture and module that our files name is one of the page's files."""
    told = pages.assets()
    num_references = 0
    for path, text in {**own(".html"), **own(".js"), **own(".css")}.items():
        for found in REFERENCE.finditer(text):
            target = next(group for group in found.groups() if group)
            if target.startswith("../v1/") or target == "../openapi.json":
                continue  # the API beside it
            folder = path.rpartition("/")[0]
            parts = [*folder.split("/"), *target.split("/")] if folder else target.split("/")
            resolved: list[str] = []
            for part in parts:
                if part == "..":
                    resolved.pop()
                elif part != ".":
                    resolved.append(part)
            assert "/".join(resolved) in told, f"{path} names {target}"
            num_references += 1
    assert num_references > 20


def test_no_file_names_another_host() -> None:
    """Addresses stand in comments only, so that a page opened offline lacks nothing."""
    for path, text in {**own(".html"), **own(".js"), **own(".css"), **own(".svg")}.items():
        code = re.sub(r"^\s*(//|/\*|\*).*$", "", text, flags=re.MULTILINE)
        hosts = set(re.findall(r"https?://[^\s\"')]+", code))
        assert hosts <= {"http://www.w3.org/2000/svg"}, path


def test_no_markup_is_inline() -> None:
    """The policy would refuse inline styles and handlers; and text is never set as markup."""
    (index,) = own(".html").values()

    assert not re.search(r"\s(style|on\w+)=|<style|<script(?![^>]*\ssrc=)", index)
    for path, text in own(".js").items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|new Function", text), (
            path
        )
