"""Runs commands one after the other, each within a time of its own and all within one budget.

A step that fails, hangs or cannot run becomes an `Outcome` and the next one begins: on a machine
that is lent for minutes a broken test must not cost the benchmarks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

Row = dict[str, object]

OK, FAILED, OUT_OF_TIME, SKIPPED = "ok", "failed", "out of time", "skipped"
LEAST_SECONDS = 2.0  # with less left, a step is not begun
_GRACE_SECONDS = 3.0  # from SIGTERM to SIGKILL
_NOTE_LENGTH = 110


@dataclass(frozen=True)
class Step:
    part: str
    name: str
    command: Sequence[str]  #: "{limit}" in it becomes the seconds it is given; empty: do not run
    limit: float = 60.0  #: seconds
    note: str = ""  #: of a step without a command: why
    environment: Mapping[str, str] = field(default_factory=dict)
    has_rows: bool = False  #: stdout is JSON, one object per line


@dataclass(frozen=True)
class Outcome:
    part: str
    name: str
    result: str
    seconds: float = 0.0
    note: str = ""
    rows: tuple[Row, ...] = ()

    @property
    def is_bad(self) -> bool:
        return self.result in (FAILED, OUT_OF_TIME)


class Budget:
    """Seconds of the parts. What a part leaves over belongs to those after it."""

    def __init__(self, seconds: float, shares: Mapping[str, float], reserve: float) -> None:
        """`shares`: of the parts, in their order; `reserve`: seconds for what follows them."""
        start = time.monotonic()
        parts = max(seconds - reserve, 0.0)
        self._end: dict[str, float] = {}
        used = 0.0
        for part, share in shares.items():
            used += share / sum(shares.values())
            self._end[part] = start + used * parts

    def left(self, part: str) -> float:
        return self._end[part] - time.monotonic()


def parse_rows(text: str) -> tuple[Row, ...]:
    """The lines that are JSON objects; a line cut off by a time limit is none."""
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if isinstance(row := json.loads(line), dict):
                rows.append(row)
    return tuple(rows)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1].strip("= ") if lines else ""
    return line if len(line) <= _NOTE_LENGTH else line[: _NOTE_LENGTH - 3] + "..."


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it has started: they are a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
            if number == signal.SIGTERM:
                continue  # the leader is gone; others of the group may hold the device
    process.wait()


def run(step: Step, budget: Budget, log: IO[str], folder: Path) -> Outcome:
    """Runs a step in `folder`; its output goes to `log`, too."""
    if not step.command:
        return Outcome(step.part, step.name, SKIPPED, note=step.note)
    limit = min(step.limit, budget.left(step.part))
    if limit < LEAST_SECONDS:
        return Outcome(step.part, step.name, SKIPPED, note="no time left")
    command = [part.replace("{limit}", f"{limit:.0f}") for part in step.command]
    log.write(f"\n==== {step.part}: {step.name}\n$ {' '.join(command)}\n")
    log.flush()
    start = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors if step.has_rows else subprocess.STDOUT,
                preexec_fn=os.setpgrp,
            )
        except OSError as error:
            return Outcome(step.part, step.name, FAILED, note=str(error))
        in_time = True
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            if process.poll() is None:
                _stop(process)
        seconds = time.monotonic() - start

        def text(file: IO[bytes]) -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        printed, complaints = text(output), text(errors)
    log.write(printed + complaints)
    log.write(f"---- exit status {process.returncode} after {seconds:.1f} s\n")
    log.flush()
    note = last_line(complaints if step.has_rows else printed)
    result = OK if process.returncode == 0 else FAILED
    if not in_time:
        result, note = OUT_OF_TIME, f"stopped after {limit:.0f} s; {note}"
    elif result == FAILED:
        note = f"exit status {process.returncode}; {note}"
    rows = parse_rows(printed) if step.has_rows else ()
    return Outcome(step.part, step.name, result, seconds, note, rows)
