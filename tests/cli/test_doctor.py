"""`steadwire doctor`: it finds each fault, and changes nothing."""

from __future__ import annotations

import fcntl
import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from service.cli.doctor import examination
from service.cli.doctor.finding import Finding
from service.cli.doctor.keys import examine_keys
from service.settings import Settings, StoreSettings, TokenSettings, load
from service.stores.sqlite.schema import open_files
from tests.auth.keyring import OTHER_SECRET, SECRET, odd_curve_pem
from tests.cli.running import KEYS, printed, run
from tests.harness.ports import free_port
from tests.harness.process import environment, launched
from tests.harness.server import Server


def examined(**env: str) -> dict[str, Finding]:
    found = {each.subject: each for each in _examine(env)}
    for each in found.values():
        assert bool(each.remedy) == (each.level != "ok"), (
            "a fault comes with its remedy"
        )
    return found


def _examine(env: dict[str, str]) -> list[Finding]:
    return list(examination.examine({"STEADWIRE_SERVER_PORT": "0", **KEYS, **env}))


def test_the_doctor_finds_nothing(tmp_path: Path) -> None:
    stdout = printed("doctor", STEADWIRE_SERVER_PORT="0", **KEYS)
    assert "problem" not in stdout
    for subject in ("settings", "keys", "api key", "store", "port", "hypercorn"):
        assert subject in stdout
    assert SECRET not in stdout
    assert list(tmp_path.iterdir()) == [], "it changes nothing"


def test_the_doctor_without_keys() -> None:
    stdout = printed("doctor", STEADWIRE_SERVER_PORT="0")
    assert "no key is set" in stdout
    assert "mend it: set token.hmac_secret_key" in stdout


def test_a_problem_is_the_exit_status() -> None:
    result = run("doctor", STEADWIRE_SERVER_PROT="0")
    assert result.exit_code == 1
    assert (
        "problem  settings   STEADWIRE_SERVER_PROT: there is no such" in result.stdout
    )
    assert "hypercorn" in result.stdout, "what needs no settings is looked at"


def test_the_doctor_as_a_process(tmp_path: Path) -> None:
    done = subprocess.run(
        launched(sys.executable, "-m", "service", "doctor"),
        cwd=tmp_path,
        env=environment({"STEADWIRE_SERVER_PORT": "0", **KEYS}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("env", "level", "text"),
    [
        ({}, "ok", "can be used"),
        ({"STEADWIRE_TOKEN_RSA_PUBLIC_KEY": "x"}, "problem", "token.rsa_public_key"),
        (
            {"STEADWIRE_TOKEN_ECDSA_PUBLIC_KEY": odd_curve_pem()},
            "problem",
            "token.ecdsa_public_key",
        ),
        (
            {"STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT": "http:///x"},
            "problem",
            "has no host",
        ),
        (
            {
                "STEADWIRE_TOKEN_HMAC_PREVIOUS_SECRET_KEY": OTHER_SECRET,
                "STEADWIRE_TOKEN_HMAC_PREVIOUS_SECRET_KEY_VALID_UNTIL": "1",
            },
            "note",
            "no longer valid",
        ),
    ],
)
def test_keys(env: dict[str, str], level: str, text: str) -> None:
    found = examined(**env)["keys"]
    assert found.level == level
    assert text in found.text


def test_a_key_set_that_cannot_be_fetched() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/jwks"
        found = examined(STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=url)["keys"]
    assert found.level == "problem"
    assert url in found.text


class Published(http.server.BaseHTTPRequestHandler):
    """An issuer without keys, which is an answer."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"keys":[]}')

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_key_set_that_is_fetched() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Published) as issuer:
        thread = threading.Thread(target=issuer.serve_forever, args=[0.01])
        thread.start()
        url = f"http://127.0.0.1:{issuer.server_port}/jwks"
        found = examined(STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=url)["keys"]
        assert found.level == "ok"
        token = TokenSettings(jwks_public_endpoint=url)
        settings = Settings(environment="production", token=token)
        found = {each.subject: each for each in examine_keys(settings)}["keys"]
        assert found.level == "note"
        assert "not encrypted" in found.text
        issuer.shutdown()
        thread.join()


def test_what_production_lacks() -> None:
    settings = Settings(environment="production")
    found = {each.subject: each for each in examine_keys(settings)}
    assert found["keys"].level == "problem"
    assert found["api key"].level == "problem"


def made(path: Path, *statements: str) -> Path:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def store(path: object) -> tuple[str, str]:
    found = examined(STEADWIRE_STORE_PATH=str(path))["store"]
    return found.level, found.text


def test_a_store_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "own.db"
    files = open_files(StoreSettings(path=str(path)), Random(1))
    level, text = store(path)
    assert level == "problem"
    assert "in use by another process" in text
    files.close()
    before = contents(tmp_path)
    assert store(path) == ("ok", f"{path} can be opened")
    assert contents(tmp_path) == before


def test_a_store_in_memory() -> None:
    assert store(":memory:")[0] == "note"


def test_stores_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database\n" * 100)
    (tmp_path / "short").write_bytes(b"SQLite format 3\x00")
    (tmp_path / "folder").mkdir()
    made(tmp_path / "plain", "CREATE TABLE t (a)")
    made(tmp_path / "other", "PRAGMA application_id = 7", "CREATE TABLE t (a)")
    made(
        tmp_path / "newer",
        f"PRAGMA application_id = {0x53544457}",
        "PRAGMA user_version = 99",
    )
    before = {name: data for name, data in _files(tmp_path)}
    for name, text in {
        "notes": "not a SQLite database",
        "short": "not a SQLite database",
        "folder": "cannot be read",
        "plain": "another program's",
        "other": "another program's",
        "newer": "schema 99",
        "nowhere/a.db": "is not a directory",
        "notes/a.db": "is not a directory",
    }.items():
        level, found = store(tmp_path / name)
        assert level == "problem", name
        assert text in found, name
    assert dict(_files(tmp_path)) == before


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.name, path.read_bytes()


def test_stores_that_are_new(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    made(tmp_path / "bare", "PRAGMA journal_mode = WAL")
    assert store(tmp_path / "none") == ("ok", f"{tmp_path}/none will be created")
    assert store(tmp_path / "empty") == ("ok", f"{tmp_path}/empty is empty")
    assert store(tmp_path / "bare")[0] == "ok"


@pytest.mark.parametrize("refused", [".", "own.db", "own.db.lock"])
def test_rights_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    path = tmp_path / "own.db"
    open_files(StoreSettings(path=str(path)), Random(1)).close()
    real_access, real_open = os.access, os.open
    at = str(tmp_path / refused).removesuffix("/.")

    def access(name: Any, mode: int) -> bool:
        return str(name) != at and real_access(name, mode)

    def opened(name: Any, *arguments: Any) -> int:
        if str(name) == at:
            raise PermissionError(13, "Permission denied")
        return real_open(name, *arguments)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(os, "open", opened)
    level, text = store(path)
    assert level == "problem"
    assert at in text


def test_a_lock_that_another_process_holds(tmp_path: Path) -> None:
    with open(tmp_path / "a.db.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert store(tmp_path / "a.db")[0] == "problem"
    assert store(tmp_path / "a.db")[0] == "ok"


def test_the_port() -> None:
    port = str(free_port())
    with socket.create_server(("127.0.0.1", int(port))):
        found = examined(STEADWIRE_SERVER_PORT=port)["port"]
        assert found.level == "problem"
        assert found.text == f"{port} on 127.0.0.1 is in use"
    assert examined(STEADWIRE_SERVER_PORT=port)["port"].level == "ok"


def test_a_server_that_is_running(own_server: Server) -> None:
    """Its port and its store are taken by itself, which is as it should be."""
    stdout = printed("doctor", "--port", str(own_server.port), **own_server.settings)
    (port,) = (line for line in stdout.splitlines() if " port " in line)
    assert port.startswith("ok")
    assert "a Steadwire server is running there" in port
    (store,) = (line for line in stdout.splitlines() if " store " in line)
    assert store.startswith("ok")
    assert "in use by the running server" in store


def test_an_address_of_another_machine() -> None:
    found = examined(STEADWIRE_SERVER_HOST="192.0.2.1")["port"]
    assert found.level == "problem"
    assert "cannot be bound" in found.text


def test_another_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "version", lambda name: "0.99.0")
    found = examined()["hypercorn"]
    assert found.level == "problem"
    assert "0.99.0 is not supported" in found.text
    assert found.remedy.startswith("pip install hypercorn==")


def test_no_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.server", None)
    assert examined()["hypercorn"].level == "problem"


@pytest.mark.parametrize(
    ("compiled", "switched_off", "level", "text"),
    [
        (True, False, "ok", ""),
        (False, True, "note", "SERVICE_NO_SPEEDUPS"),
        (False, False, "note", "SERVICE_BUILD_SPEEDUPS=yes"),
    ],
)
def test_speedups(
    monkeypatch: pytest.MonkeyPatch,
    compiled: bool,
    switched_off: bool,
    level: str,
    text: str,
) -> None:
    monkeypatch.setattr("_speedups.COMPILED", compiled)
    monkeypatch.setattr("_speedups.NO_SPEEDUPS", switched_off)
    found = examined()["speedups"]
    assert found.level == level
    assert text in found.remedy


def test_findings_can_be_printed_everywhere() -> None:
    assert printed("doctor", STEADWIRE_SERVER_PORT="0").isascii()


def test_files_that_other_users_can_read(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    files = open_files(StoreSettings(path=str(store)), Random(1))
    wide = [store, tmp_path / "store.db-wal", tmp_path / "store.db.lock"]
    for path in wide[:2]:
        path.chmod(0o640)
    wide[2].chmod(0o604)
    path = Path("steadwire.toml")
    path.write_text(f'[api]\nkey = "{"k" * 40}"\n[store]\npath = "{store}"\n')
    path.chmod(0o644)
    lines = [f for f in _examine({"STEADWIRE_API_KEY": "k" * 40}) if f.level == "note"]
    files.close()
    names = " ".join(str(path) for path in wide)
    assert [line.remedy for line in lines] == [
        f"chmod 600 {names}",
        "chmod 600 steadwire.toml",
    ]
    for file in (store, wide[2], path):
        file.chmod(0o600)
    assert not [f for f in _examine({}) if f.remedy.startswith("chmod")]


def test_a_settings_file_without_secrets_may_be_read() -> None:
    path = Path("steadwire.toml")
    path.write_text("[server]\nport = 0\n")
    path.chmod(0o644)
    assert not [f for f in _examine({}) if f.remedy.startswith("chmod")]


def api_keys(text: str, mode: int = 0o600) -> list[str]:
    path = Path("keys.toml")
    path.write_text(text)
    path.chmod(mode)
    env = {"STEADWIRE_API_KEYS_FILE": "keys.toml", "STEADWIRE_SERVER_PORT": "0"}
    result = run("doctor", **env)
    lines = result.stdout.splitlines()
    assert result.exit_code == int(any(line.startswith("problem") for line in lines))
    return [line for line in lines if "api key" in line]


def test_the_doctor_looks_at_the_file() -> None:
    text = printed("keys", "--name", "a", "--read")
    assert api_keys(text, 0o644) == ["ok       api key    keys.toml has 1"]


def test_the_doctor_says_what_is_wrong_with_the_file() -> None:
    (line,) = api_keys('[a]\nkey = "kkkkkkkkkkkkkkkkkkkk"\nraed = true')
    assert line.startswith("problem  api key    api.keys_file: keys.toml: a: ")
    assert "raed" in line and "kkk" not in line
    _, ended, exposed = api_keys(
        '[a]\nkey = "kkkkkkkkkkkkkkkkkkkk"\nread = true\nnot_after = 1', 0o644
    )
    assert ended.startswith("note     api key    a in keys.toml is no longer valid")
    assert exposed.startswith("note     api key    keys.toml holds keys in the open")
    assert len(api_keys('[a]\nkey = "kkkkkkkkkkkkkkkkkkkk"\nread = true', 0o600)) == 1


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "no token is valid, and everybody is let in without"),
        (
            {"STEADWIRE_PROXY_CONNECT": "http://127.0.0.1/c"},
            "no token is valid, and the connect hook decides about everybody",
        ),
        ({"STEADWIRE_CLIENT_INSECURE": "false"}, "no token is valid"),
    ],
)
def test_without_keys_it_says_who_is_let_in(env: dict[str, str], words: str) -> None:
    found = {each.subject: each for each in examine_keys(load(env, {}))}["keys"]
    assert found.text == f"no key is set: {words}"


def test_it_tells_of_service_links_and_of_development_within_reach() -> None:
    env = {
        **KEYS,
        "STEADWIRE_SERVER_HOST": "0.0.0.0",
        "STEADWIRE_SERVER_PORT": "tcp://10.96.0.7:8000",
    }
    link, reach = [
        each
        for each in examination.examine(env)
        if (each.subject, each.level) == ("settings", "note")
    ]
    assert link.text.startswith("STEADWIRE_SERVER_PORT was written by Kubernetes")
    assert "enableServiceLinks: false" in link.remedy
    assert "0.0.0.0" in reach.text


def test_every_mistake_is_a_finding() -> None:
    env = {"STEADWIRE_SERVER_PROT": "1", "STEADWIRE_DYNAMODB_TABLE": "my table"}
    found = [each for each in examination.examine(env) if each.subject == "settings"]
    assert [each.level for each in found] == ["problem", "problem"]
    assert "'my table'" in found[1].text
