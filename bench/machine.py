"""What a result was measured on: the machine, and the commit of the checkout."""

from __future__ import annotations

from minference_ext.benchmark import machine

from .commit import commit


def describe() -> dict[str, object]:
    return {**machine.describe(), "commit": commit()}
