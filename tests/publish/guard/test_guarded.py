"""The real thing: a sidecar process with a token, TLS, client certificates, passwords."""

import contextlib
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest

from sidecar import cli
from sidecar.store.audit import verify
from tests.publish.guard.certificates import Authority
from tests.publish.test_server import Served, eventually

TOKEN = "a token of the operator's, 32 by"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LOCKED = re.compile("401|operator's token")
RECORD = ["baseline", "record", "recordings", "--seconds", "1"]
REQUIRED = "RequireAndVerifyClientCert"
PASSWORD = ("prometheus", "correct horse")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start sidecars; they end with the test, however it ends."""
    with contextlib.ExitStack() as running:

        def start(*options: str) -> Served:
            made = Served(tmp_path / "run" / "i.sock", *options)
            running.callback(made.close)
            return made

        yield start


@pytest.fixture
def token(tmp_path: Path) -> str:
    """A file with the token, as an operator writes it: with a newline."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


def web_config(folder: Path, text: str) -> str:
    """A web configuration beside the certificates."""
    path = folder / "web-config.yml"
    path.write_text(text)
    return str(path)


def status(url: str, trust: ssl.SSLContext, **options: object) -> int:
    """What a GET is answered with."""
    with httpx.Client(verify=trust, trust_env=False) as client:
        return client.get(url, timeout=30, **options).status_code  # type: ignore[arg-type]


def serial(url: str, trust: ssl.SSLContext) -> str:
    """Number of the certificate that is served there."""
    with (
        httpx.Client(verify=trust, trust_env=False) as client,
        client.stream("GET", url, timeout=30) as answer,
    ):
        tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
        return str(tls.getpeercert()["serialNumber"])


def test_the_api_asks_for_its_token_and_metrics_do_not(
    serve: Callable[..., Served], token: str, tmp_path: Path
) -> None:
    """Changes are in the audit log, and refusals in /metrics."""
    state = tmp_path / "state"
    served = serve("--api-token-file", token, "--state-dir", str(state))
    api = f"{served.api_url}/v1"

    assert httpx.get(f"{api}/status").status_code == 401
    assert httpx.get(f"{served.api_url}/healthz").status_code == 200
    assert httpx.get(f"{api}/status", headers=BEARER).status_code == 200
    posted = httpx.post(f"{api}/deployments", headers=BEARER, json={"note": "v2"})
    assert posted.status_code == 201
    eventually(lambda: verify(state / "audit.jsonl").number == 2, 60)  # the outcome comes after
    samples = served.samples()
    assert samples["llm_internals_http_refused_total", "token"] == 1
    assert samples["llm_internals_audit_entries_total",] == 2


def test_a_browser_is_let_in_by_an_address(serve: Callable[..., Served], token: str) -> None:
    """`POST /login` with the token gives one; it works once, and needs no token then."""
    served = serve("--api-token-file", token)
    assert httpx.post(f"{served.api_url}/login").status_code == 401
    path = httpx.post(f"{served.api_url}/login", headers=BEARER).json()["path"]

    with httpx.Client(base_url=served.api_url) as browser:
        assert browser.get(path).status_code == 303
        assert browser.get("/v1/status").status_code == 200
    assert httpx.get(served.api_url + path).status_code == 401


def test_an_api_for_others_needs_a_token(tmp_path: Path) -> None:
    """It is refused before anything starts, with the remedy."""
    with pytest.raises(AssertionError, match="SIDECAR_API_TOKEN_FILE, or serve it on loopback"):
        Served(tmp_path / "i.sock", "--api-host", "0.0.0.0")


def test_both_ports_speak_tls(serve: Callable[..., Served], tmp_path: Path) -> None:
    """And a certificate that was renewed is served without a restart; a broken one is not."""
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority.file))
    certificate, key = authority.vouch("sidecar")
    config = web_config(
        tmp_path,
        "tls_server_config: {cert_file: sidecar.crt, key_file: sidecar.key, min_version: TLS13}\n"
        "http_server_config: {headers: {Strict-Transport-Security: max-age=31536000}}\n",
    )
    served = serve("--web-config-file", config)
    url = f"{served.metrics_url}/healthz"

    assert served.metrics_url.startswith("https://")
    assert status(f"{served.api_url}/v1/status", trust) == 200
    answer = httpx.get(url, verify=trust)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    before = serial(url, trust)
    authority.vouch("sidecar")
    eventually(lambda: serial(url, trust) != before, 60)
    after = serial(url, trust)
    Path(certificate).write_text("no certificate")
    os.utime(key)
    assert serial(url, trust) == after
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, verify=ssl.create_default_context())


def test_a_client_may_have_to_show_a_certificate(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    """One of our authority is let in; none, or one of another authority, is not."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    authority.vouch("sidecar")
    config = web_config(
        tmp_path,
        "tls_server_config: {cert_file: sidecar.crt, key_file: sidecar.key, client_ca_file: "
        "authority.crt, client_auth_type: RequireAndVerifyClientCert}",
    )
    url = f"{serve('--web-config-file', config).metrics_url}/metrics"

    def trusting(shown: tuple[str, str] | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(authority.file))
        if shown:
            context.load_cert_chain(*shown)
        return context

    assert status(url, trusting(authority.vouch("prometheus"))) == 200
    for shown in (None, other.vouch("stranger")):
        with pytest.raises(httpx.TransportError):
            status(url, trusting(shown))


def test_scrapes_may_need_a_password(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Health never does. A password that was changed is in force at the next scrape."""

    def write(password: str) -> str:
        told = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        return web_config(tmp_path, f"basic_auth_users: {{{PASSWORD[0]}: '{told}'}}")

    served = serve("--web-config-file", write(PASSWORD[1]))
    url, trust = f"{served.metrics_url}/metrics", ssl.create_default_context()

    assert status(f"{served.metrics_url}/healthz", trust) == 200
    assert status(url, trust, auth=PASSWORD) == 200
    assert status(f"{served.api_url}/v1/status", trust, auth=PASSWORD) == 200
    for wrong in (None, ("prometheus", "wrong"), ("somebody", PASSWORD[1]), ("", "")):
        assert status(url, trust, auth=wrong) == 401
    write("another")
    eventually(lambda: status(url, trust, auth=PASSWORD) == 401, 60)
    assert status(url, trust, auth=(PASSWORD[0], "another")) == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_server_confg: {}", "tls_server_confg: Extra inputs are not permitted"),
        ("basic_auth_users: {a: plain}", "basic_auth_users.a"),
        ("tls_server_config: {cert_file: a, key_file: b}", "give PEM files"),
        (
            f"tls_server_config: {{cert_file: a, key_file: b, client_auth_type: {REQUIRED}}}",
            "needs client_ca_file",
        ),
        ("][", "SIDECAR_WEB_CONFIG_FILE"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told(tmp_path: Path, text: str, said: str) -> None:
    """Nothing is served in the clear because a key was misspelt."""
    with pytest.raises(AssertionError, match=said):
        Served(tmp_path / "i.sock", "--web-config-file", web_config(tmp_path, text))


def test_the_command_prints_an_address_for_a_browser(
    serve: Callable[..., Served], token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sidecar open` asks with the token; a wrong token is one line."""
    served = serve("--api-token-file", token)
    asked = ["open", "--url", served.api_url, "--api-token-file"]

    assert cli.main([*asked, token]) == 0
    with httpx.Client() as browser:
        assert browser.get(capsys.readouterr().out.strip()).status_code == 303
        assert browser.get(f"{served.api_url}/v1/status").status_code == 200
    Path(token).write_text("another token, also of 32 bytes.")
    assert cli.main([*asked, token]) == 2
    assert "401" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["top", "--once"], ["scan"], RECORD])
def test_every_command_that_asks_can_show_the_token(
    serve: Callable[..., Served],
    token: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By an option; without it each is told that a token is needed."""
    monkeypatch.chdir(tmp_path)
    served = serve("--api-token-file", token)
    asked = [*words, "--url", served.api_url]

    assert cli.main(asked) == 2
    assert LOCKED.search(capsys.readouterr().err)
    cli.main([*asked, "--api-token-file", token])
    assert not LOCKED.search(capsys.readouterr().err)
