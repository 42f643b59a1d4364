"""`steadwire import`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tests.cli.running import printed, run
from tests.settings.test_importing import SECRET, V5, V6


def test_a_file_is_written_for_this_user_alone(tmp_path: Path) -> None:
    Path("config.json").write_text("\ufeff" + json.dumps(V6), encoding="utf-8")
    stdout = printed("import", "config.json")
    assert stdout.startswith("steadwire.toml: 3")
    assert "No equal here:" in stdout and "Different here:" in stdout
    assert SECRET not in stdout
    assert stat.S_IMODE(Path("steadwire.toml").stat().st_mode) == 0o600
    # The server's commands take it as it is.
    assert printed("token", "--user", "ann")


def test_what_must_be_corrected_is_listed_at_once(tmp_path: Path) -> None:
    wrong = {**V5, "ping_interval": "80s", "api_key": "short"}
    Path("config.json").write_text(json.dumps(wrong))
    result = run("import", "config.json", "--to", "other.toml")
    assert result.exit_code == 1
    _, _, rest = result.stdout.partition("To be corrected before a start:\n")
    assert "client.ping_interval" in rest and "api.key" in rest
    assert "other.toml" in rest
    assert SECRET not in result.output


def test_a_file_that_is_there_stays() -> None:
    Path("config.json").write_text("{}")
    Path("steadwire.toml").write_text("# mine\n")
    result = run("import", "config.json")
    assert result.exit_code == 2 and "File exists" in result.output
    assert Path("steadwire.toml").read_text() == "# mine\n"


def test_a_file_that_cannot_be_read() -> None:
    Path("config.yaml").write_text(f"token: {SECRET}\n")
    Path("list.json").write_text("[]")
    for name in ("config.yaml", "list.json", "nowhere.json"):
        result = run("import", name)
        assert result.exit_code == 2 and name in result.output
        assert SECRET not in result.output
    assert not Path("steadwire.toml").exists()
