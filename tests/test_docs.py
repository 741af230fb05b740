"""The documentation: its field tables are the code's, its commands run, its links lead somewhere."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from dataengine import sample
from pipelines.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = {page.name: re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S) for page in PAGES}


def test_the_format_page_lists_the_fields():
    text = (ROOT / "docs" / "format.md").read_text()
    for value in (sample.Sample, *sample._VALUES.values()):
        rows = [f"| `{f.name}` | `{f.metadata['arrow']}` | {f.metadata['doc']} |" for f in dataclasses.fields(value)]
        table = [f"### {value.__name__}", "| field | Arrow type | meaning |", "|---|---|---|", *rows]
        assert "\n".join(table) + "\n\n" in text, value.__name__


@pytest.fixture(scope="module")
def dataengine(tmp_path_factory):
    """What runs `dataengine` in a script."""
    place = tmp_path_factory.mktemp("commands") / "socket"
    run = [sys.executable, str(ROOT / "tests" / "forked.py")]
    server = subprocess.Popen([*run, "serve", str(place)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    for _ in range(600):
        if place.exists():
            break
        assert server.poll() is None
        time.sleep(0.1)
    yield shlex.join([*run, "call", str(place)])
    server.terminate()
    server.wait()


@pytest.mark.parametrize("page", [name for name, blocks in COMMANDS.items() if blocks])
def test_commands_run(page, tmp_path, dataengine):
    """All `sh` blocks of a page, in order, in one empty folder."""
    script = "set -euo pipefail\n" + "".join(COMMANDS[page])
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, start in (("dataengine", dataengine), ("python", shlex.quote(sys.executable))):
        (programs / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (programs / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=work,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_that_need_more_than_a_test_has_could_be_run():
    """Commands outside of `sh` blocks, which serve, or need a model: the program has them, and their options."""
    checked = 0
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines() if language != "sh" else []
            for line in lines:
                if line.startswith("dataengine "):
                    _check_command(shlex.split(line, comments=True)[1:], f"{page.name}: {line}")
                    checked += 1
    assert checked > 10


def _check_command(words, where):
    command, words = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        name = words.pop(0) if words else ""
        assert name in command.commands, where
        command = command.commands[name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options | {"--help"}, where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
