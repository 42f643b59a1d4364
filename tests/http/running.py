"""A server that runs an application of the tests under Hypercorn's own command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness.process import environment, launched
from tests.harness.server import Server

__all__ = ["AppServer"]


class AppServer(Server):
    """As `Server`, with *app* as Hypercorn's command takes it."""

    def __init__(
        self, directory: Path, app: str, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory, settings, command="hypercorn")
        self._app = app

    def spawn(self) -> None:
        """Start the process and return at once."""
        assert self._process is None, "it is running"
        bind = f"127.0.0.1:{self.port}"
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._process = subprocess.Popen(
            launched(sys.executable, "-m", "hypercorn", self._app, "--bind", bind),
            cwd=self._directory,
            env=environment(self.settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._pumps = [
            self._pump("stdout", self._process.stdout),
            self._pump("stderr", self._process.stderr),
        ]
