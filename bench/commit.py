"""The commit a result was measured at."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Commit of the checkout, with '+' if it has changes; "unknown" outside of one."""

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
            )
        except OSError:
            return ""
        return run.stdout.strip() if run.returncode == 0 else ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed
