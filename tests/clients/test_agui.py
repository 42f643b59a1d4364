"""clients/agui in Node.js: its own tests, with AG-UI's verifier, and its types."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.harness.process import ROOT, TOOLS, environment, launched
from tests.harness.server import Server
from tests.harness.tools import node

HERE = Path(__file__).parent


def in_folder(folder: Path, *command: str, **variables: str) -> None:
    """Run Node.js beside copies of the client and of the programs here."""
    executable = node("@ag-ui/client", "rxjs", "centrifuge", "react", "typescript")
    # Copies: packages are looked for beside the real place of a module.
    shutil.copytree(ROOT / "clients" / "agui", folder / "agui")
    for name in ("*.mjs", "*.ts", "*.json"):
        for program in HERE.glob(name):
            shutil.copy(program, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    process = subprocess.Popen(
        launched(executable, *command),
        cwd=folder,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            output, log = process.communicate(timeout=100)
        finally:
            # `node --test` runs each file in a process of its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-8000:] + log[-2000:]


def run_in_node(folder: Path, name: str, **variables: str) -> None:
    in_folder(folder, "--test", f"{name}.test.mjs", **variables)


def example(kind: str) -> str:
    """Return the README's one block of a kind."""
    text = (ROOT / "clients" / "agui" / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    program = """
        import { spawn } from 'node:child_process'
        import { writeFileSync } from 'node:fs'
        const { pid } = spawn('sleep', ['1000'], { stdio: 'ignore' })
        writeFileSync('pid', String(pid))
        process.exit(1)
    """
    with pytest.raises(AssertionError):
        in_folder(tmp_path, "--input-type=module", "--eval", program)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "pid").read_text())).wait(30)


@pytest.mark.parametrize("name", ["threads", "agent"])
def test_against_a_server_that_is_cut_at_will(tmp_path: Path, name: str) -> None:
    run_in_node(tmp_path, name)


@pytest.mark.slow
def test_against_a_real_server(tmp_path: Path, server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"
    run_in_node(tmp_path, "live", STEADWIRE_URL=url)


@pytest.mark.slow
def test_its_types_are_those_of_an_application_in_typescript(tmp_path: Path) -> None:
    in_folder(tmp_path, "node_modules/typescript/bin/tsc", "--project", ".")


def test_what_is_typed_is_exported_and_nothing_else(tmp_path: Path) -> None:
    """Its types name the values that the modules have."""
    program = """
        import { readFileSync } from 'node:fs'
        import ts from 'typescript'
        for (const name of ['index', 'threads']) {
            const text = readFileSync(`agui/${name}.d.ts`, 'utf8')
            const source = ts.createSourceFile('x.d.ts', text, ts.ScriptTarget.Latest)
            const typed = source.statements.flatMap((each) => {
                if (ts.isExportDeclaration(each) && !each.isTypeOnly)
                    return each.exportClause.elements.map(({ name }) => name.text)
                const { ClassDeclaration, FunctionDeclaration } = ts.SyntaxKind
                const values = [ClassDeclaration, FunctionDeclaration]
                return values.includes(each.kind) ? [each.name.text] : []
            })
            const exported = Object.keys(await import(`./agui/${name}.js`))
            if (typed.sort().join() !== exported.sort().join())
                throw new Error(`${name}: ${typed} are typed, ${exported} are exported`)
        }
    """
    in_folder(tmp_path, "--input-type=module", "--eval", program)


@pytest.mark.slow
def test_its_readme_against_a_real_server(tmp_path: Path, server: Server) -> None:
    at = f"127.0.0.1:{server.port}"
    component = example("jsx").replace("https://chat.example.org", f"http://{at}")
    assert "agent: 'helper'" in component
    component = component.replace("agent: 'helper'", "agent: 'demo'")
    (tmp_path / "chat.jsx").write_text(component)
    lines = example("js").replace("127.0.0.1:8000", at)
    begin = "import { Threads } from './agui/threads.js'\n"
    (tmp_path / "socket.mjs").write_text(
        f"{begin}{lines}export {{ client, threads }}\n"
    )
    run_in_node(tmp_path, "readme", STEADWIRE_URL=f"http://{at}")
