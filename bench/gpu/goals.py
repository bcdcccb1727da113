"""What the project wants of attention, and whether it is so: sentences for the table's notes.

Rates and times are wanted of an H200: elsewhere they are printed and not judged. Ratios are judged
on every device that runs the kernel they are wanted of. All are for 32 query and 8 kv heads of 128
dimensions in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .rows import is_prompt, is_shown, length_text, number, queries, rate, tokens
from .steps import Row

H200 = "H200"  # in the name of a device that rates and times are wanted of
ALONE = "ours, attention alone"
MMA_SYNC_ALONE = "mma.sync, attention alone"
RESERVED = "ours, 16 multiprocessors reserved"
FLOAT8 = "float8, attention alone"
WHOLE, TORCH = "ours", "ours, torch"  # with index and plan; the same through PyTorch
CUDNN, FLASH = "SDPA cuDNN", "SDPA flash"  # how their contenders' names begin

_16K, _128K, _1M = 1 << 14, 1 << 17, 1 << 20
# TFLOP/s, by pattern and length: of whole prompts, and of the last 512 queries of one.
RATES_WANTED = {
    ("dense", _16K): 640,
    ("dense", _128K): 640,
    ("a_shape(1024, 4096)", _128K): 600,
    ("clustered 90%", _128K): 600,
    ("clustered 95%", _128K): 590,
    ("clustered 98%", _128K): 550,
}
CHUNK_RATES_WANTED = {("dense", _128K): 560, ("clustered 90%", _128K): 560}
_CHUNK = 512  # queries
LAYER_WANTED_MS = 800  # estimation, plan and attention of LAYER
LAYER_WANTED = 17  # times as fast as cuDNN's dense attention
LAYER = ("clustered 95%", _1M)
DENSE_WANTED, DENSE_AT = 1.0, (_16K, _128K)  # times as fast as cuDNN
ISOLATED_WANTED, ISOLATED_AT = 0.85, _1M  # of the bandwidth of a copy
# Of the mma.sync kernel: as fast as SDPA's flash backend, and its rate over that of itself, dense.
FLASH_WANTED = 1.0
CLUSTERED_WANTED = {"clustered 90%": 0.94, "clustered 95%": 0.92, "clustered 98%": 0.85}


def verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def _at_least(ratio: float, of: str, wanted: float) -> str:
    return f"{ratio:.3f}x of {of}, wants >= {wanted}: {verdict(ratio >= wanted)}"


def _is_sm90(row: Row) -> bool:
    return row.get("kernel") == "sm90"


class Goals:
    def __init__(self, rows: Sequence[Row], device: str, copy: float) -> None:
        """`rows`: of all benchmarks; `copy`: bytes per ms of a copy, 0: not measured."""
        timed = [row for row in rows if is_shown(row) and "ms" in row]
        self._attention = [row for row in timed if row.get("section") == "attention"]
        self._index = [row for row in timed if row.get("section") == "index"]
        self._is_h200 = H200 in device
        self._copy = copy

    def notes(self, row: Row) -> Iterator[str]:
        """What is wanted of a timed row of attention, if anything, and what it is compared with."""
        contender = row.get("contender")
        if contender == ALONE:
            yield from self._rate(row)
            yield from self._share_of_dense(row)
            yield from self._bandwidth(row)
            yield from self._beside_mma_sync(row)
        elif contender == RESERVED:
            yield from self._reserved(row)
        elif contender == FLOAT8:
            yield from self._beside_bfloat16(row)
        elif contender == TORCH and row.get("pattern") == "dense":
            yield from self._dense(row)
        elif contender == WHOLE and (row.get("pattern"), tokens(row)) == LAYER and is_prompt(row):
            yield from self._layer(row)

    def _absolute(self, row: Row, figure: str, wanted: str, is_met: bool) -> Iterator[str]:
        if self._is_h200:
            yield f"{figure}, wants {wanted}: {verdict(is_met)}"
        elif _is_sm90(row):
            yield f"{figure}, {H200} wants {wanted}"

    def _peer(self, row: Row, contender: str, pattern: object = None) -> Row | None:
        """Attention of the same length and queries, by whose name begins so."""
        for peer in self._attention:
            if (
                str(peer.get("contender")).startswith(contender)
                and peer.get("pattern") == (pattern or row.get("pattern"))
                and (tokens(peer), queries(peer)) == (tokens(row), queries(row))
            ):
                return peer
        return None

    def _rate(self, row: Row) -> Iterator[str]:
        case = str(row.get("pattern")), tokens(row)
        wanted = None
        if is_prompt(row):
            wanted = RATES_WANTED.get(case)
        elif queries(row) == _CHUNK:
            wanted = CHUNK_RATES_WANTED.get(case)
        if wanted:
            found = rate(row)
            yield from self._absolute(row, f"{found:.0f} TFLOP/s", f">= {wanted}", found >= wanted)

    def _share_of_dense(self, row: Row) -> Iterator[str]:
        wanted = CLUSTERED_WANTED.get(str(row.get("pattern")))
        dense = self._peer(row, ALONE, "dense")
        if wanted and dense and is_prompt(row) and not _is_sm90(row):
            yield _at_least(rate(row) / rate(dense), "dense's rate", wanted)

    def _bandwidth(self, row: Row) -> Iterator[str]:
        """Of lines with nothing to share: the time that reading them takes, over the row's."""
        if not number(row, "line_bytes"):
            return
        if not self._copy:
            yield "not judged: the bandwidth of a copy was not measured"
            return
        floor = number(row, "line_bytes") / self._copy
        share = floor / number(row, "ms")
        found = f"lines take {floor:.4g} ms at the bandwidth of a copy, {share:.1%} of the time"
        if tokens(row) == ISOLATED_AT and _is_sm90(row):
            found += f", wants >= {ISOLATED_WANTED:.0%}: {verdict(share >= ISOLATED_WANTED)}"
        yield found

    def _beside_mma_sync(self, row: Row) -> Iterator[str]:
        if other := self._peer(row, MMA_SYNC_ALONE):
            yield f"{number(other, 'ms') / number(row, 'ms'):.2f}x of mma.sync"

    def _beside_bfloat16(self, row: Row) -> Iterator[str]:
        if other := self._peer(row, ALONE):
            yield f"{number(other, 'ms') / number(row, 'ms'):.2f}x of bfloat16"

    def _reserved(self, row: Row) -> Iterator[str]:
        if every := self._peer(row, ALONE):
            slower = number(row, "ms") / number(every, "ms")
            fewer = number(every, "slots") / number(row, "slots")
            yield f"takes {slower:.3f} times as long as on all, {fewer:.3f} by their number"

    def _dense(self, row: Row) -> Iterator[str]:
        of, wanted = (CUDNN, DENSE_WANTED) if _is_sm90(row) else (FLASH, FLASH_WANTED)
        if peer := self._peer(row, of):
            ratio = number(peer, "ms") / number(row, "ms")
            if _is_sm90(row) and tokens(row) not in DENSE_AT:
                yield f"{ratio:.3f}x of {of}"
            else:
                yield _at_least(ratio, of, wanted)

    def _layer(self, row: Row) -> Iterator[str]:
        """With given lines a layer does not estimate: that is added, its plan once more."""
        if not (_is_sm90(row) or self._is_h200):
            return
        at = length_text(tokens(row))
        index = [
            number(other, "ms")
            for other in self._index
            if (other.get("stage"), other.get("pattern"), other.get("data"), tokens(other))
            == ("index + plan", "(1000, 6096)", "prompt", tokens(row))
        ]
        if not index:
            yield f"not judged: the index at {at} was not timed"
            return
        found = number(row, "ms") + index[0]
        wanted = LAYER_WANTED_MS
        yield from self._absolute(
            row, f"with index {found:.4g} ms", f"<= {wanted}", found <= wanted
        )
        if not _is_sm90(row):
            return
        if peer := self._peer(row, CUDNN, "dense"):
            yield _at_least(number(peer, "ms") / found, CUDNN, LAYER_WANTED)
        else:
            yield f"not judged: cuDNN at {at} was not timed"
