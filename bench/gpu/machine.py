"""The GPU of this machine and its clocks, as nvidia-smi tells them. Nothing is ever set."""

from __future__ import annotations

import contextlib
import datetime
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

SMI = "nvidia-smi"
_DEVICE = {  # what describe() calls them, as nvidia-smi does
    "device": "name",
    "driver": "driver_version",
    "memory MiB": "memory.total",
    "power limit W": "power.limit",
    "max SM clock MHz": "clocks.max.sm",
    "max memory clock MHz": "clocks.max.mem",
    "compute capability": "compute_cap",
}
_SAMPLED = {
    "SM clock MHz": "clocks.sm",
    "power W": "power.draw",
    "temperature C": "temperature.gpu",
}
_INTERVAL_MS = 250


def _query(fields: dict[str, str]) -> list[str]:
    options = f"--query-gpu={','.join(fields.values())}"
    return [SMI, "--id=0", options, "--format=csv,noheader,nounits"]


def find_gpu() -> tuple[dict[str, str], str]:
    """(what the first GPU is, "") or ({}, why there is none)."""
    if shutil.which(SMI) is None:
        return {}, f"{SMI} is not on PATH"
    try:
        found = subprocess.run(_query(_DEVICE), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {}, str(error)
    values = [value.strip() for value in found.stdout.strip().split("\n")[0].split(",")]
    if found.returncode != 0 or len(values) != len(_DEVICE):
        complaint = " ".join((found.stdout + found.stderr).split())
        return {}, f"{SMI} says: {complaint or 'nothing'}"
    return dict(zip(_DEVICE, values, strict=True)), ""


def slug(device: str) -> str:
    """The device's folder below bench/results."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def describe(gpu: dict[str, str], commit: str) -> dict[str, object]:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        **gpu,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


@dataclass
class Clocks:
    """Samples taken while a part ran; empty where nvidia-smi gave none."""

    samples: list[list[float]] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Least, median and greatest of each value; idle moments included."""
        result: dict[str, object] = {"samples": len(self.samples)}
        for name, values in zip(_SAMPLED, zip(*self.samples, strict=True), strict=False):
            result[name] = [min(values), statistics.median(values), max(values)]
        return result


@contextlib.contextmanager
def sampled_clocks() -> Iterator[Clocks]:
    """Reads the clocks four times a second meanwhile; complete when the block is left."""
    clocks = Clocks()
    with tempfile.TemporaryFile("w+") as output:
        try:
            process = subprocess.Popen(
                [*_query(_SAMPLED), f"--loop-ms={_INTERVAL_MS}"],
                stdout=output,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            yield clocks
            return
        try:
            yield clocks
        finally:
            process.terminate()
            process.wait()
            output.seek(0)
            for line in output:
                with contextlib.suppress(ValueError):
                    values = [float(value) for value in line.split(",")]
                    if len(values) == len(_SAMPLED):
                        clocks.samples.append(values)
