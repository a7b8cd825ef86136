"""A side of a comparison in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from kvcompress.bench.peers.answering import Answer, Request
from kvcompress.bench.peers.peer_environment import FOLDER, PACKAGE, peer_python, peer_variables


class SideError(RuntimeError):
    """A side could not answer."""


class SideProcess:
    """Starts a side, and asks it.

    Args:
        name: of the library.
        command: what starts it.
        variables: its environment variables.
    """

    def __init__(self, name: str, command: list[str], variables: Mapping[str, str]) -> None:
        self.name = name
        self.complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            env={**variables, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            cwd=Path(command[0]).parent,  # `-m` puts the folder first on the path: one without modules
        )
        try:
            self.versions = self._read()
        except BaseException:
            self.close()
            raise

    def send(self, request: Request) -> None:
        """Hands a request over, without waiting."""
        stream = self.process.stdin
        if stream is None or self.process.poll() is not None:
            raise SideError(
                f"{self.name} has ended with exit code {self.process.returncode}; run it by hand to see why"
            )
        stream.write(json.dumps(asdict(request)) + "\n")
        stream.flush()

    def receive(self) -> Answer:
        """Waits for the answer to the oldest request.

        Raises:
            SideError: the side could not answer, or has ended.
        """
        return Answer(**self._read())

    def ask(self, request: Request) -> Answer:
        """Hands a request over and waits for its answer."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        """Lets the process end."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.complaints.close()

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ended(self) -> SideError:
        """What can be said of a process that is gone: its exit code, and the last line that it wrote to stderr."""
        code = self.process.wait()
        self.complaints.seek(0)
        lines = [line.strip() for line in self.complaints if line.strip()]
        return SideError(f"{self.name} has ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}")

    def _read(self) -> dict[str, Any]:
        stream = self.process.stdout
        line = "" if stream is None else stream.readline()
        if not line:
            raise self._ended()
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            raise SideError(f"{self.name}: {content['error']}")
        return content


def start_ours(model: Path) -> SideProcess:
    """Starts our side with the embedded model of a folder, in this interpreter."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path[1:]])}
    return SideProcess(
        "kvcompress", [sys.executable, "-m", "kvcompress.bench.peers.our_side", str(model.resolve())], variables
    )


def start_kvpress(model: Path, folder: Path = FOLDER) -> SideProcess:
    """Starts kvpress with the same model, in its own environment, which is made where it is missing."""
    python = peer_python(folder)
    command = [str(python), "-m", "kvcompress.bench.peers.kvpress_side", str(model.resolve())]
    return SideProcess("kvpress", command, peer_variables(folder))
