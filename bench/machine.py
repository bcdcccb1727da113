"""What a result was measured on: the machine, and the commit of the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from minference_ext.benchmark import machine


def commit() -> str:
    """Commit of the checkout, with '+' if it has changes."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def describe() -> dict[str, object]:
    return {**machine.describe(), "commit": commit()}
