"""``steadwire tables``, and what the other commands say of a DynamoDB store."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness.process import environment, launched


@pytest.fixture
def steadwire(ministack, tmp_path):
    """Run a command with settings for the emulator; return status and output."""
    settings = ministack.settings()

    def run(*arguments, **more):
        done = subprocess.run(
            launched(sys.executable, "-m", "service", *arguments),
            cwd=tmp_path,
            env=environment(
                {
                    **ministack.credentials,
                    "STEADWIRE_STORE_BACKEND": "dynamodb",
                    "STEADWIRE_DYNAMODB_TABLE": settings.table,
                    "STEADWIRE_DYNAMODB_ENDPOINT": settings.endpoint,
                    **more,
                }
            ),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    run.table = settings.table
    return run


def test_a_table_from_its_making_to_its_end(steadwire):
    name = steadwire.table
    assert steadwire("tables", "check") == (1, f"{name}: it does not exist\n")
    assert steadwire("tables", "create") == (0, f"{name}: made\n")
    assert steadwire("tables", "create") == (
        0,
        f"{name}: there already, and as it should be\n",
    )
    assert steadwire("tables", "check") == (0, f"{name}: as it should be\n")
    _, output = steadwire("doctor")
    assert f"ok       store      table {name}\n" in output
    assert steadwire("tables", "delete", "--yes") == (0, f"{name}: deleted\n")
    assert steadwire("tables", "delete", "--yes") == (0, f"{name}: it did not exist\n")


def test_a_table_is_not_deleted_without_a_word(steadwire):
    steadwire("tables", "create")
    status, _ = steadwire("tables", "delete")  # nobody is there to answer
    assert status == 1
    assert steadwire("tables", "check")[0] == 0


def test_a_table_with_other_settings_is_said_to_be_so(steadwire):
    steadwire("tables", "create")
    status, output = steadwire(
        "tables", "check", STEADWIRE_DYNAMODB_CAPACITY="provisioned"
    )
    assert status == 1
    assert "its billing mode is PAY_PER_REQUEST, not PROVISIONED" in output


def test_a_server_does_not_start_without_its_table(steadwire):
    status, output = steadwire("serve", "--port", "0")
    assert status == 2
    assert "does not exist; `steadwire tables create` makes it" in output
    status, output = steadwire("doctor")
    assert status == 1
    assert f"table {steadwire.table}: it does not exist" in output


def test_nobody_is_there(steadwire):
    status, output = steadwire(
        "tables",
        "check",
        STEADWIRE_DYNAMODB_ENDPOINT="http://127.0.0.1:9",
        STEADWIRE_DYNAMODB_TIMEOUT="0.1",
    )
    assert status == 2
    warning, error = output.splitlines()  # the log's, and the command's own
    assert "DynamoDB has failed a call" in warning
    assert error.startswith("steadwire: DynamoDB: EndpointConnectionError")
    assert "dynamodb.endpoint" in error


def test_the_commands_of_sqlite_refuse(steadwire, tmp_path):
    for command in ("backup", "restore"):
        status, output = steadwire(command, str(tmp_path / "file"))
        assert status == 2
        assert "store.backend is dynamodb, and this is for SQLite" in output
