"""Ceilings, index and attention through PyTorch: ours beside PyTorch's SDPA and flex_attention.

`python -m bench.gpu` runs it. A measurement is a JSON object on a line of stdout as soon as it is
known, so that a time limit costs only what comes after it. What cannot run says so in a row with a
note.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from . import patterns
from .timing import Clock, Failed

SECTIONS = ("ceilings", "index", "attention", "flex")
_OURS = "ours, torch"  # kernel_bench has "ours": the same without PyTorch
_HEADS, _HEADS_KV, _HEAD_DIM = 32, 8, 128
_INDEX_SIZES = (1000, 6096)
_LONGEST_REFERENCE = 131072  # tokens, of the estimation written with PyTorch's operations
_LONGEST_DENSE = 524288  # beyond, cuDNN alone, if it is asked for
_LONGEST_FLASH = 131072  # of SDPA's flash backend, half as fast
_LONGEST_FLEX = 131072  # its block masks take 4 bytes per head and 128 x 128 pairs, several times
_DENSE_FLOP_PER_SECOND = 5e14  # a careful guess, to tell what cannot be finished in time
_SHARES = {"clustered 90%": 0.10, "clustered 95%": 0.05, "clustered 98%": 0.02}

Row = dict[str, object]


def emit(section: str, length: int, times: object, **members: object) -> None:
    row: Row = {"section": section, "length": length, **members}
    if isinstance(times, Failed):
        row["note"] = f"failed: {times}"
    elif isinstance(times, str):
        row["note"] = times
    else:
        row.update(times.row())  # type: ignore[attr-defined]
    print(json.dumps(row), flush=True)


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal. Key heads are repeated beforehand by the caller where a backend wants that."""
    with sdpa_kernel(backend):
        is_grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)


def reference_estimation(q: Tensor, k: Tensor, vertical_size: int, slash_size: int) -> None:
    """MInference's, head by head, with PyTorch's operations."""
    length, rows = k.shape[2], 64
    group = q.shape[1] // k.shape[1]
    causal = torch.ones(rows, rows, dtype=torch.bool, device=q.device).tril()
    for head in range(q.shape[1]):
        scores = (q[0, head, -rows:] @ k[0, head // group].T).float() * q.shape[3] ** -0.5
        scores[:, -rows:].masked_fill_(~causal, float("-inf"))
        weights = scores.softmax(-1)
        columns = weights.sum(0)
        columns[:30] = float("inf")
        columns.topk(min(vertical_size, length)).indices.sort()
        # Row i shifted by i: the columns of the result are diagonals.
        skewed = torch.nn.functional.pad(weights, (rows, rows)).flatten()[:-rows]
        diagonals = skewed.view(rows, length + 2 * rows - 1)[:, rows:].sum(0)[:length].flip(0)
        diagonals[:100] = float("inf")
        diagonals.topk(min(slash_size, length)).indices.sort()


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.end = time.monotonic() + options.seconds_left
        self.ours, self.ours_lacks = _import_ours(self.device)

    def left(self) -> float:
        return float(self.end - time.monotonic())

    def clock(self, flush: bool = True) -> Clock:
        return Clock(self.device, self.options.seconds, flush)

    def random(self, heads: int, length: int) -> Tensor:
        size = (1, heads, length, _HEAD_DIM)
        return torch.randn(size, device=self.device, dtype=torch.bfloat16)

    def tensors(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(length)
        heads, heads_kv = self.options.heads, self.options.heads_kv
        return (
            self.random(heads, length),
            self.random(heads_kv, length),
            self.random(heads_kv, length),
        )

    # ---- Ceilings -------------------------------------------------------------------------------

    def ceilings(self) -> None:
        size = self.options.matmul
        a = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        b = torch.randn_like(a)
        out = torch.empty_like(a)
        source = torch.randn(self.options.copy_mib << 18, device=self.device)
        target = torch.empty_like(source)
        times = self.clock().compare(
            {
                "matmul": lambda: torch.mm(a, b, out=out),
                "copy": lambda: target.copy_(source),
            }
        )
        emit("matmul", size, times["matmul"], l2="flushed", flop=2 * size**3)
        bytes_moved = 2 * source.numel() * source.element_size()
        emit("copy", 0, times["copy"], l2="flushed", bytes=bytes_moved)

    # ---- Index ----------------------------------------------------------------------------------

    def index(self, length: int) -> None:
        q, k, _ = self.tensors(length)
        named = {"pattern": str(_INDEX_SIZES), "data": "random"}
        if self.ours:
            patterns_of_heads = [self.ours.HeadPattern.vertical_slash(*_INDEX_SIZES)] * q.shape[1]
            contenders: dict[str, Callable[[], object]] = {
                "estimate_vs_index": partial(self.ours.estimate_vs_index, q, k, *_INDEX_SIZES),
                "plan_stats, waits for its result": partial(
                    self.ours.plan_stats, q, k, patterns_of_heads, dense_fallback=False
                ),
            }
            for flush in (True, False):
                times = self.clock(flush).compare(contenders)
                l2 = "flushed" if flush else "warm"
                for name, result in times.items():
                    emit("index", length, result, contender=name, l2=l2, **named)
        else:
            emit("index", length, self.ours_lacks, contender="estimate_vs_index", **named)
        if length <= _LONGEST_REFERENCE:
            run = partial(reference_estimation, q, k, *_INDEX_SIZES)
            name = "PyTorch operations, estimation only"
            emit("index", length, self.clock().compare({name: run})[name], contender=name, **named)

    # ---- Attention ------------------------------------------------------------------------------

    def dense_seconds(self, length: int) -> float:
        """What a dense run may take."""
        pairs = self.options.heads * length**2 / 2
        return float(4 * _HEAD_DIM * pairs / _DENSE_FLOP_PER_SECOND)

    def peers(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
        backends = {"SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
        if q.shape[2] <= _LONGEST_FLASH:
            backends["SDPA flash"] = SDPBackend.FLASH_ATTENTION
        found: dict[str, Callable[[], object]] = {}
        group = q.shape[1] // k.shape[1]
        for name, backend in backends.items():
            # Which backends take grouped heads depends on the version: try on a short piece.
            short = [x[:, :, :256].contiguous() for x in (q, k, v)]
            try:
                sdpa(backend, *short)
                found[name] = partial(sdpa, backend, q, k, v)
            except RuntimeError:
                repeated = [x.repeat_interleave(group, 1) for x in (k, v)]
                found[f"{name}, key heads repeated"] = partial(sdpa, backend, q, *repeated)
        return found

    def attention(self, length: int) -> None:
        q, k, v = self.tensors(length)
        causal_flop = 4 * _HEAD_DIM * q.shape[1] * length * (length + 1) / 2
        dense: dict[str, Callable[[], object]] = {}
        once, is_long = self.dense_seconds(length), length > _LONGEST_DENSE
        # A warm-up and a timed run of each, at least.
        runs = 4 if length <= _LONGEST_FLASH else 2
        if is_long and not self.options.long:
            note = f"skipped: two runs would take {2 * once:.0f} s; --long makes them"
            emit("attention", length, note, pattern="dense", contender="SDPA")
        elif runs * once < self.left():
            dense.update(self.peers(q, k, v))
        else:
            note = f"skipped: no time left for {runs} runs, {runs * once:.0f} s"
            emit("attention", length, note, pattern="dense", contender="SDPA")
        kernel: Row = {}
        if self.ours:
            kernel = {"kernel": self.ours.attention_kernel(q, k, v).name}
            if not is_long and (runs + 2) * once < self.left():
                dense[_OURS] = partial(self.ours.dense_attention, q, k, v)
        else:
            emit("attention", length, self.ours_lacks, pattern="all", contender=_OURS)
        for flush in (True, False):
            if once > 0.02 and not flush:
                break  # what the L2 held before does not show in such a run
            for name, times in self.clock(flush).compare(dense).items():
                emit(
                    "attention",
                    length,
                    times,
                    pattern="dense",
                    contender=name,
                    l2="flushed" if flush else "warm",
                    useful_flop=causal_flop,
                    executed_flop=causal_flop,
                    **(kernel if name == _OURS else {}),
                )
        if self.ours:
            self.sparse(q, k, v, kernel)

    def given(self, length: int, heads: int) -> dict[str, tuple[Tensor, Tensor]]:
        shapes = {name: clustered(share, length) for name, share in _SHARES.items()}
        shapes["half local (100, 800)"] = patterns.HALF_LOCAL
        shapes["random (100, 800)"] = patterns.RANDOM
        found = {
            name: patterns.lists(shape, length, heads, self.device)
            for name, shape in shapes.items()
        }
        if length == max(self.options.lengths):
            heads_per_kv = heads // self.options.heads_kv
            found["isolated"] = patterns.isolated(length, heads, heads_per_kv, self.device)
        return found

    def densities(self, q: Tensor, k: Tensor, heads: list[Any], **lists: Tensor) -> Row:
        stats = self.ours.plan_stats(q, k, heads, dense_fallback=False, **lists)
        attended, computed = int(stats.attended_pairs.sum()), int(stats.computed_pairs.sum())
        causal = int(stats.causal_pairs.sum())
        return {
            "attended": attended / causal,
            "computed": computed / causal,
            "useful_flop": 4 * _HEAD_DIM * attended,
            "executed_flop": 4 * _HEAD_DIM * computed,
        }

    def sparse(self, q: Tensor, k: Tensor, v: Tensor, kernel: Row) -> None:
        length, heads = q.shape[2], q.shape[1]
        pattern = self.ours.HeadPattern
        shape = [pattern.a_shape(1024, 4096)] * heads
        runs: dict[str, Callable[[], object]] = {
            "a_shape(1024, 4096)": partial(self.ours.sparse_attention, q, k, v, shape)
        }
        density = {"a_shape(1024, 4096)": self.densities(q, k, shape)}
        for name, (vertical_idx, slash_idx) in self.given(length, heads).items():
            runs[name] = partial(
                self.ours.vs_attention_with_index, q, k, v, vertical_idx, slash_idx
            )
            density[name] = self.densities(
                q,
                k,
                [pattern.vertical_slash_index()] * heads,
                vertical_idx=vertical_idx,
                slash_idx=slash_idx,
            )
        for name, times in self.clock().compare(runs).items():
            members = {**density[name], **kernel}
            emit("attention", length, times, pattern=name, contender=_OURS, **members)

    # ---- flex_attention -------------------------------------------------------------------------

    def flex(self, length: int) -> None:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        if length > _LONGEST_FLEX:
            blocks = self.options.heads * (length // patterns.FLEX_BLOCK) ** 2
            note = f"skipped: block masks of {4 * blocks / 2**30:.0f} GiB, several times"
            emit("attention", length, note, pattern="clustered", contender="flex_attention")
            return
        q, k, v = self.tensors(length)
        attend: Any = flex_attention
        if self.device.type == "cuda":
            attend = torch.compile(flex_attention, dynamic=False)
        for name, share in _SHARES.items():
            if self.left() < 20:
                emit("attention", length, "no time left", pattern=name, contender="flex_attention")
                continue
            lists = patterns.lists(clustered(share, length), length, q.shape[1], self.device)
            cover = patterns.Cover.of(*lists, length)
            mask, num_blocks = flex_mask(BlockMask, cover)
            run = partial(attend, q, k, v, block_mask=mask, enable_gqa=True)
            times = self.clock().compare({"flex": run})["flex"]
            executed = 4 * _HEAD_DIM * num_blocks * patterns.FLEX_BLOCK**2
            emit(
                "attention",
                length,
                times,
                pattern=name,
                contender="flex_attention",
                executed_flop=executed,
            )

    def run(self) -> None:
        sections, lengths = self.options.sections, self.options.lengths
        if "ceilings" in sections:
            self.ceilings()
        for section, run in (
            ("index", self.index),
            ("attention", self.attention),
            ("flex", self.flex),
        ):
            if section not in sections:
                continue
            for length in lengths:
                try:
                    run(length)
                except Exception as error:  # the next length may fit where this one did not
                    reason = Failed(f"{type(error).__name__}: {str(error).splitlines()[:1]}")
                    emit(section, length, reason, pattern="", contender="all")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


def clustered(share: float, length: int) -> patterns.LineShape:
    """Lines in bands; drawing those of all heads would take seconds."""
    return patterns.clustered_heads(share, length, heads=8)


def flex_mask(block_mask: Any, cover: patterns.Cover) -> tuple[Any, int]:
    """(BlockMask that attends exactly the cover, blocks it computes)."""
    some, full = cover.blocks()

    def ordered(flags: Tensor) -> tuple[Tensor, Tensor]:
        """Per row of blocks: how many are set, and their numbers before all others."""
        flags = flags[None].int()
        numbers = flags.sort(dim=-1, descending=True, stable=True).indices
        return flags.sum(-1, dtype=torch.int32), numbers.int()

    columns, covered = cover.columns, cover.cover

    def mask_mod(_batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        before_end = ((row // patterns.ROW_BLOCK + 1) * patterns.ROW_BLOCK - key).clamp(min=0)
        return (row >= key) & (columns[head, key] | covered[head, before_end])

    partial_count, partial_idx = ordered(some & ~full)
    full_count, full_idx = ordered(full)
    mask = block_mask.from_kv_blocks(
        partial_count, partial_idx, full_count, full_idx, patterns.FLEX_BLOCK, mask_mod
    )
    return mask, int(some.sum())


def _import_ours(device: torch.device) -> tuple[Any, str]:
    try:
        import minference_ext
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"minference_ext cannot be imported: {error}"
    if device.type == "cuda" and not minference_ext.has_cuda():
        return None, "this build of minference_ext has no CUDA kernels"
    return minference_ext, ""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.attention", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu: to try this file without a GPU")
    parser.add_argument(
        "--lengths", default="131072,16384,524288,1048576", help="most wanted first"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--seconds", type=float, default=0.4, help="per contender (default: 0.4)")
    parser.add_argument("--seconds-left", type=float, default=200, help="until nothing new begins")
    parser.add_argument(
        "--long", action="store_true", help=f"cuDNN's SDPA beyond {_LONGEST_DENSE} tokens, too"
    )
    parser.add_argument("--heads", type=int, default=_HEADS)
    parser.add_argument("--heads-kv", type=int, default=_HEADS_KV)
    parser.add_argument("--matmul", type=int, default=8192, help="rows of a square matrix")
    parser.add_argument("--copy-mib", type=int, default=1024)
    options = parser.parse_args(arguments)
    options.lengths = [int(length) for length in options.lengths.split(",")]
    options.sections = options.sections.split(",")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU", file=sys.stderr)
        return 1
    with torch.inference_mode():
        Bench(options).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
