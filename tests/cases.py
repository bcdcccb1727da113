"""Cases of the numeric tests, as data: shapes, layouts and patterns, each with its reason.

`regular` cases are what models send, `awkward` ones are legal but easy to get wrong, `corner` ones
sit at the edge of the contract. A case computes less than dense attention unless it says
`covers_all`; check.py asserts both. Adding a case is adding an entry to a list below.

Over 600 lines: because it is one table; an entry is read without its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tests.reference import (
    AShape,
    Blocks,
    BlockSparse,
    Dense,
    Lines,
    Mode,
    Pattern,
    TriShape,
    VerticalSlash,
)

Layout = Literal["contiguous", "heads_last", "fused", "every_second", "unaligned", "shared_batch"]
Group = Literal["regular", "awkward", "corner"]


@dataclass(frozen=True)
class Case:
    """One attention call. Query head h has pattern `heads[h % len(heads)]`."""

    group: Group
    name: str
    reason: str
    heads: tuple[Pattern, ...]
    q_len: int = 0
    kv_len: int | None = None  # None: q_len
    batch: int = 1
    num_heads_q: int = 2
    num_heads_kv: int = 2
    head_dim: int = 64
    dtype: torch.dtype | None = None  # None: the widest that the device has, see on()
    layout: Layout = "contiguous"
    softmax_scale: float | None = None
    mode: Mode = "cover"
    estimate_every: int = 0
    first_valid_key: tuple[int, ...] | None = None
    lengths: tuple[tuple[int, int], ...] | None = None  # varlen: (q_len, kv_len) of each sequence
    spread: float = 1.0  # factor on q: how far apart logits lie
    covers_all: bool | None = False  # every causal pair is attended; None: differs by shape
    seed: int = 0

    def __str__(self) -> str:
        return self.name

    def regular(self, name: str, **changes: Any) -> Case:
        return replace(self, group="regular", name=name, **changes)

    def awkward(self, name: str, **changes: Any) -> Case:
        return replace(self, group="awkward", name=name, **changes)

    def corner(self, name: str, **changes: Any) -> Case:
        return replace(self, group="corner", name=name, **changes)

    def on(self, device: str) -> Case:
        """The case with a dtype that the device has: a GPU has no float32."""
        widest = torch.float32 if device == "cpu" else torch.float16
        return replace(self, dtype=self.dtype or widest)

    @property
    def seq_q(self) -> int:
        """Query rows of the tensors."""
        return sum(q for q, _ in self.lengths) if self.lengths else self.q_len

    @property
    def seq_kv(self) -> int:
        """Key rows of the tensors."""
        if self.lengths:
            return sum(kv for _, kv in self.lengths)
        return self.q_len if self.kv_len is None else self.kv_len

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(self.heads[h % len(self.heads)] for h in range(self.num_heads_q))

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale

    @property
    def out_dtype(self) -> torch.dtype:
        return BF16 if self.dtype == F8 else self.dtype or F32

    @property
    def is_estimated(self) -> bool:
        return any(isinstance(p, VerticalSlash | BlockSparse) for p in self.heads)


F32, BF16, F16, F8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn
DTYPES = (F32, BF16, F16)  # those of a CPU; F8 is for GPUs of compute capability 9.0
MODES: tuple[Mode, ...] = ("cover", "exact", "reference")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


HEAD_DIMS = (8, 16, 24, 40, 72, 80, 96, 128, 136, 256)
LENGTHS = (1, 63, 64, 65, 127)
# (q_len, kv_len): a chunk of a longer prompt, at many alignments of its first query
CHUNKS = (
    (1, 2),
    (1, 64),
    (1, 300),
    (2, 65),
    (2, 321),
    (63, 64),
    (63, 126),
    (64, 96),
    (64, 200),
    (65, 97),
    (65, 128),
    (100, 133),
    (100, 228),
    (127, 190),
    (128, 320),
    (130, 257),
    (200, 201),
)
VARLEN = ((0, 0), (1, 1), (64, 64), (65, 65), (300, 300), (130, 130), (0, 0))
VARLEN_CHUNKS = ((1, 300), (0, 40), (63, 64), (65, 229), (2, 70), (200, 200))


def _on_every_layout(case: Case) -> list[Case]:
    """The case over all memory layouts with two batch rows."""
    reasons: dict[Layout, str] = {
        "heads_last": "[B, S, H, D] transposed: what a projection gives before any copy",
        "fused": "q, k and v are slices of one projection",
        "every_second": "a view that steps over tokens",
        "unaligned": "no row starts on a multiple of a vector",
        "shared_batch": "k and v expanded over the batch: stride 0",
    }
    return [
        case.awkward(f"{case.name}-{layout}", reason=reason, batch=2, layout=layout)
        for layout, reason in reasons.items()
    ]


def _on_every_chunk(case: Case) -> list[Case]:
    """The case with every pair of CHUNKS, dense or not."""
    reason = "queries that start inside a prompt, at every alignment of position and row block"
    return [
        case.awkward(
            f"{case.name}-{q_len}-of-{kv_len}",
            reason=reason,
            q_len=q_len,
            kv_len=kv_len,
            covers_all=case.covers_all or None,
        )
        for q_len, kv_len in CHUNKS
    ]


def _padded_and_packed(case: Case) -> list[Case]:
    """The case left-padded and packed, with equal and with fewer queries than keys."""
    return [
        case.awkward(
            f"{case.name}-left-padded",
            q_len=200,
            kv_len=200,
            batch=4,
            first_valid_key=(0, 37, 64, 199),
            reason="padding inside a row block, a whole one, all but one key",
        ),
        case.corner(
            f"{case.name}-all-padding",
            q_len=130,
            kv_len=130,
            batch=3,
            first_valid_key=(130, 0, 129),
            reason="a batch row without a single valid key gives empty rows",
        ),
        case.awkward(
            f"{case.name}-left-padded-chunk",
            q_len=70,
            kv_len=300,
            batch=5,
            first_valid_key=(0, 101, 230, 231, 300),
            reason="padding ends before, at and after the first query; row blocks move with it",
        ),
        case.awkward(
            f"{case.name}-packed",
            lengths=VARLEN,
            layout="heads_last",
            reason="sequences of length 0, 1, 64, 65 and 300 in one call",
        ),
        case.awkward(
            f"{case.name}-packed-chunks",
            lengths=VARLEN_CHUNKS,
            reason="packed sequences with fewer queries than keys, one without queries",
        ),
    ]


_dense = Case("regular", "dense", "the plain case", (Dense(),), q_len=200, covers_all=True)
DENSE = [
    _dense.regular("dense-long", q_len=1023, num_heads_q=2, reason="many tiles, ragged end"),
    _dense.regular(
        "dense-4097",
        q_len=4097,
        num_heads_q=1,
        num_heads_kv=1,
        dtype=BF16,
        reason="one row past many row blocks; bf16 sums over thousands of keys",
    ),
    *[
        _dense.regular(
            f"dense-{dtype_name(dtype)}",
            dtype=dtype,
            q_len=400,
            head_dim=128,
            num_heads_q=4,
            reason="every type",
        )
        for dtype in DTYPES
    ],
    *[_dense.awkward(f"dense-n{n}", q_len=n, reason="edges of a row block") for n in LENGTHS],
    *[
        _dense.awkward(
            f"dense-d{d}-{dtype_name(dtype)}",
            head_dim=d,
            q_len=130,
            dtype=dtype,
            reason="head_dim that is no power of two or fills no vector",
        )
        for d in HEAD_DIMS
        for dtype in (F32, BF16)
    ],
    *[
        _dense.regular(f"dense-gqa{group}", num_heads_q=2 * group, reason="query heads share k, v")
        for group in (1, 4, 7, 8)
    ],
    *_on_every_layout(_dense),
    *_on_every_chunk(_dense),
    *_padded_and_packed(_dense),
    _dense.corner("dense-no-queries", q_len=0, kv_len=70, reason="no work"),
    _dense.awkward("dense-scale", softmax_scale=0.7, reason="scale of the caller"),
    _dense.corner(
        "dense-tiny-scale",
        softmax_scale=1e-6,
        dtype=BF16,
        reason="all weights equal: a scale folded into q in bf16 must not flush to zero",
    ),
    _dense.corner(
        "dense-steep",
        spread=60.0,
        reason="logits hundreds apart: a softmax without a running maximum overflows",
    ),
    _dense.corner(
        "dense-steep-fp16", spread=60.0, dtype=F16, reason="logits near the range of fp16"
    ),
]


_a = Case("regular", "a-shape", "sinks and a window", (AShape(4, 100),), q_len=300)
_tri = _a.regular("tri-shape", heads=(TriShape(4, 100, 40),))
STREAMING = [
    _a.regular(
        "a-shape-long",
        q_len=1023,
        num_heads_q=2,
        heads=(AShape(128, 200),),
        reason="window over several tiles",
    ),
    _tri.regular(
        "tri-shape-long",
        q_len=1023,
        num_heads_q=2,
        heads=(TriShape(8, 200, 128),),
        reason="last rows over several row blocks",
    ),
    _a.regular(
        "a-shape-4097",
        q_len=4097,
        num_heads_q=1,
        num_heads_kv=1,
        dtype=BF16,
        heads=(AShape(64, 512),),
        reason="many row blocks whose window left the sinks behind",
    ),
    *[
        _a.awkward(
            f"a-shape-{sink}-{window}",
            heads=(AShape(sink, window),),
            reason="sizes around a tile, none, and beyond the prompt",
            covers_all=max(sink, window) >= 300,
        )
        for sink in (0, 1, 63, 64, 65, 400)
        for window in (0, 1, 63, 64, 65, 400)
    ],
    *[
        _tri.awkward(
            f"tri-shape-{last}",
            heads=(TriShape(3, 65, last),),
            reason="last rows around a row block, none, and beyond the prompt",
            covers_all=last >= 300 - 68,
        )
        for last in (0, 1, 63, 64, 65, 100, 400)
    ],
    _tri.corner(
        "tri-shape-only-last",
        heads=(TriShape(0, 0, 70),),
        reason="rows before the last ones have no key",
    ),
    *[
        case.awkward(
            f"{case.name}-n{n}",
            q_len=n,
            covers_all=True,
            reason="window and sinks reach past a short prompt",
        )
        for case in (_a, _tri)
        for n in (1, 63, 64, 65)
    ],
    _a.awkward("a-shape-n127", q_len=127, reason="a few pairs are left out"),
    *[
        case.regular(
            f"{case.name}-{dtype_name(dtype)}",
            dtype=dtype,
            q_len=400,
            head_dim=128,
            num_heads_q=4,
            reason="every type, grouped heads",
        )
        for case in (_a, _tri)
        for dtype in DTYPES
    ],
    *[_a.awkward(f"a-shape-d{d}", head_dim=d, reason="every head_dim") for d in HEAD_DIMS],
    *_on_every_layout(_tri),
    *_on_every_chunk(replace(_a, heads=(AShape(1, 20),), num_heads_q=1, num_heads_kv=1)),
    *_on_every_chunk(replace(_tri, heads=(TriShape(2, 33, 1),), num_heads_q=1, num_heads_kv=1)),
    *_padded_and_packed(replace(_a, heads=(AShape(3, 50),))),
    *_padded_and_packed(replace(_tri, heads=(TriShape(3, 20, 30),))),
]


_FAR = (0, 1, 2, 64, 130, 500, 777)
_COLUMNS = (0, 1, 5, 31, 32, 33, 64, 100, 191, 192, 300, 511, 700)
_lines = Case("regular", "lines", "lines over the prompt", (Lines(_COLUMNS, _FAR),), q_len=400)
LINES = [
    _lines.regular("lines-long", q_len=1023, num_heads_q=2, reason="many row blocks"),
    _lines.regular(
        "lines-4097",
        q_len=4097,
        num_heads_q=1,
        num_heads_kv=1,
        dtype=BF16,
        heads=(Lines(tuple(range(0, 4000, 61)), (*range(70), *range(300, 3900, 450))),),
        reason="long lists over many row blocks",
    ),
    _lines.regular(
        "lines-per-head",
        q_len=500,
        num_heads_q=6,
        heads=(
            Lines(_COLUMNS, (0, 1)),
            Lines((), (0, 63, 64, 65)),
            Lines((7,), (0,)),
            Lines(tuple(range(0, 500, 7)), ()),
            Lines((), ()),
            Lines((499,), (499, 0)),
        ),
        reason="each head with lists of its own length, padded with -1",
    ),
    *[
        _lines.awkward(
            f"lines-n{n}",
            q_len=n,
            covers_all=True,
            reason="the cover of offset 0 and a few columns is everything in one row block",
        )
        for n in (1, 63, 64)
    ],
    *[
        _lines.awkward(
            f"lines-n{n}",
            q_len=n,
            heads=(Lines((0, 40), (0,)),),
            reason="second row block of one row, of 63 rows",
        )
        for n in (65, 127)
    ],
    _lines.awkward(
        "lines-repeated-unsorted",
        heads=(
            Lines((64, 3, 3, 200, 64, 0, 3), (130, 0, 0, 64, 130, 7)),
            Lines((-1, 5, -1, 5, 399), (-1, 0, -1, 350, 0)),
        ),
        reason="lists are sets: nothing is counted twice, -1 may stand anywhere",
    ),
    _lines.corner(
        "lines-none", heads=(Lines((), ()),), reason="no key for any row: zeros and -inf"
    ),
    _lines.corner(
        "lines-one-column",
        heads=(Lines((70,), ()),),
        reason="rows before the only column are empty, later ones copy one value",
    ),
    _lines.corner(
        "lines-last-column", heads=(Lines((399,), ()),), reason="a single pair in the whole prompt"
    ),
    _lines.corner(
        "lines-only-diagonal",
        heads=(Lines((), (0,)),),
        reason="one slash: keys of the own row block",
    ),
    _lines.corner(
        "lines-one-far-slash",
        heads=(Lines((), (399,)),),
        reason="the farthest offset: pieces cut at key 0, early row blocks empty",
    ),
    _lines.awkward(
        "lines-all",
        heads=(Lines(tuple(range(400)), tuple(range(400))),),
        covers_all=True,
        reason="all lines are dense attention",
    ),
    _lines.awkward(
        "lines-all-columns",
        heads=(Lines(tuple(range(400)), ()),),
        covers_all=True,
        reason="columns alone are dense attention and need causality inside the row block",
    ),
    _lines.awkward(
        "lines-all-slashes",
        heads=(Lines((), tuple(range(0, 400, 64))),),
        covers_all=True,
        reason="pieces that touch without overlap",
    ),
    _lines.corner(
        "lines-no-diagonal",
        heads=(Lines((9,), (70, 150)),),
        reason="offset 0 missing: rows miss their own block, early rows are empty",
    ),
    _lines.corner(
        "lines-column-in-diagonal-block",
        heads=(Lines((100, 127, 128), (200,)),),
        reason="columns right of every piece, causal only for part of a row block",
    ),
    _lines.awkward(
        "lines-columns-in-cover",
        heads=(Lines(tuple(range(100, 180)), (0, 30, 64, 90)),),
        reason="columns that pieces hold for some row blocks and not for others",
    ),
    _lines.awkward(
        "lines-overlapping-pieces",
        heads=(Lines((), (0, 1, 3, 62, 63, 65, 129, 131, 257)),),
        reason="pieces that overlap by 1, 2, 61, 62 and 63 keys and that leave gaps of 1",
    ),
    _lines.awkward(
        "lines-single-key-gaps",
        heads=(Lines(tuple(range(0, 400, 2)), (0,)),),
        reason="every other column: no two neighbours",
    ),
    *[
        _lines.regular(
            f"lines-{mode}-{dtype_name(dtype)}",
            mode=mode,
            dtype=dtype,
            q_len=400,
            head_dim=128,
            num_heads_q=4,
            reason="every mode and type, grouped heads",
        )
        for mode in MODES
        for dtype in DTYPES
    ],
    *[
        _lines.awkward(
            f"lines-{mode}-no-diagonal",
            mode=mode,
            heads=(Lines((100, 127, 128, 390), (65, 70, 200)), Lines((3,), (0, 127, 191))),
            reason="columns right of the last piece stay; merged tiles overshoot",
        )
        for mode in MODES[1:]
    ],
    *[
        _lines.regular(f"lines-gqa{g}", num_heads_q=2 * g, reason="query heads share k, v")
        for g in (1, 4, 7, 8)
    ],
    *[_lines.awkward(f"lines-d{d}", head_dim=d, reason="every head_dim") for d in HEAD_DIMS],
    *_on_every_layout(_lines),
    *_on_every_chunk(
        replace(
            _lines,
            heads=(Lines((0, 3, 40, 90, 150, 256), (40, 100, 137)),),
            num_heads_q=1,
            num_heads_kv=1,
        )
    ),
    *[
        replace(case, name=case.name.replace("lines", f"lines-{mode}"), mode=mode)
        for mode in MODES[1:]
        for case in _on_every_chunk(
            replace(_lines, heads=(Lines((2, 77), (0, 90, 100)),), num_heads_q=1, num_heads_kv=1)
        )[::3]
    ],
    *_padded_and_packed(replace(_lines, heads=(Lines((0, 70), (40, 90)), Lines((2, 3), (65,))))),
    _lines.awkward("lines-scale", softmax_scale=0.7, reason="scale of the caller"),
    _lines.corner(
        "lines-steep",
        spread=60.0,
        dtype=BF16,
        reason="the largest logit often lies in a late tile: sums so far are scaled away",
    ),
]


_vs = Case("regular", "vs", "lines from the prompt", (VerticalSlash(60, 120),), q_len=600)
VERTICAL_SLASH = [
    _vs.regular(
        "vs-sizes-per-head",
        q_len=900,
        num_heads_q=4,
        heads=(VerticalSlash(30, 100), VerticalSlash(200, 110), VerticalSlash(100, 103)),
        reason="sizes of each head's own",
    ),
    _vs.regular(
        "vs-4097",
        q_len=4097,
        num_heads_q=1,
        num_heads_kv=1,
        dtype=BF16,
        heads=(VerticalSlash(300, 110),),
        reason="a long prompt",
    ),
    *[
        _vs.regular(
            f"vs-{mode}-{dtype_name(dtype)}",
            mode=mode,
            dtype=dtype,
            head_dim=128,
            num_heads_q=4,
            reason="every mode and type, grouped heads",
        )
        for mode in MODES
        for dtype in DTYPES
    ],
    *[
        _vs.awkward(
            f"vs-small-slash-{size}",
            heads=(VerticalSlash(40, size),),
            reason="fewer offsets than are forced: 0..max(size, 50)-1 stay, offset 0 among them",
        )
        for size in (0, 50, 99)
    ],
    _vs.corner(
        "vs-zero-sizes",
        heads=(VerticalSlash(0, 0),),
        reason="sizes are raised to 30 columns and 50 offsets",
    ),
    _vs.corner(
        "vs-all-lines",
        q_len=300,
        heads=(VerticalSlash(999, 999),),
        covers_all=True,
        reason="more lines than keys",
    ),
    *[
        _vs.awkward(f"vs-n{n}", q_len=n, covers_all=True, reason="fewer keys than forced lines")
        for n in (1, 29, 63, 64, 65, 99, 127)
    ],
    *[
        _vs.awkward(
            f"vs-exact-n{n}",
            q_len=n,
            mode="exact",
            heads=(VerticalSlash(10, 50),),
            reason="fewer keys than forced lines, element by element",
        )
        for n in (99, 127)
    ],
    *[
        _vs.awkward(
            f"vs-{q_len}-of-{kv_len}",
            q_len=q_len,
            kv_len=kv_len,
            covers_all=None if q_len < 3 else False,
            reason="a chunk estimates from its own last queries; fewer than 64 of them",
        )
        for q_len, kv_len in ((1, 500), (2, 500), (63, 601), (64, 577), (65, 532), (200, 517))
    ],
    *[
        _vs.awkward(
            f"vs-every-{every}-n{n}",
            q_len=n,
            estimate_every=every,
            num_heads_q=2,
            num_heads_kv=1,
            heads=(VerticalSlash(45, 110),),
            reason="chunks with lines of their own, the last one short",
        )
        for every, n in ((64, 450), (128, 500), (1024, 1500), (1024, 700))
    ],
    _vs.awkward(
        "vs-every-128-of-longer",
        q_len=300,
        kv_len=733,
        estimate_every=128,
        num_heads_q=1,
        num_heads_kv=1,
        reason="chunks of queries that start inside the prompt",
    ),
    _vs.awkward(
        "vs-left-padded",
        q_len=500,
        batch=3,
        first_valid_key=(0, 101, 128),
        num_heads_q=1,
        num_heads_kv=1,
        reason="forced columns and positions count from the first valid key",
    ),
    _vs.awkward(
        "vs-left-padded-every-128",
        q_len=500,
        batch=2,
        first_valid_key=(0, 77),
        num_heads_q=1,
        num_heads_kv=1,
        estimate_every=128,
        reason="chunks count from the first valid query",
    ),
    _vs.corner(
        "vs-all-padding",
        q_len=400,
        batch=2,
        first_valid_key=(400, 0),
        reason="nothing to estimate from",
    ),
    _vs.awkward(
        "vs-packed",
        lengths=((0, 0), (1, 1), (64, 64), (450, 450)),
        num_heads_q=1,
        num_heads_kv=1,
        reason="each sequence has lines and sizes of its own",
    ),
    _vs.awkward(
        "vs-packed-chunks",
        lengths=((1, 400), (65, 480), (0, 40)),
        num_heads_q=1,
        num_heads_kv=1,
        reason="packed chunks of longer prompts",
    ),
    *_on_every_layout(replace(_vs, q_len=400, num_heads_q=1, num_heads_kv=1)),
]


_top = Case("regular", "top-k", "blocks from the prompt", (BlockSparse(3),), q_len=500)
_blocks = _top.regular(
    "blocks", heads=(Blocks(((0,), (0, 1), (2, 0), (1, 3), (4, 1, 2), (5,))),), q_len=400
)
BLOCK_SPARSE = [
    _top.regular("top-k-long", q_len=1023, num_heads_q=2, reason="many row blocks"),
    *[
        _top.regular(
            f"top-k-{dtype_name(dtype)}",
            dtype=dtype,
            head_dim=128,
            num_heads_q=4,
            reason="every type, grouped heads",
        )
        for dtype in DTYPES
    ],
    _top.corner(
        "top-k-one", heads=(BlockSparse(1),), reason="a row block may miss its own diagonal block"
    ),
    _top.corner(
        "top-k-all", heads=(BlockSparse(100),), covers_all=True, reason="more blocks than there are"
    ),
    *[
        _top.awkward(
            f"top-k-n{n}",
            q_len=n,
            covers_all=n <= 192,
            heads=(BlockSparse(3),),
            reason="partial last block: means divide by the true count",
        )
        for n in (1, 63, 64, 65, 127, 193, 257)
    ],
    *_on_every_chunk(replace(_top, heads=(BlockSparse(1),), num_heads_q=1, num_heads_kv=1)),
    *_padded_and_packed(replace(_top, heads=(BlockSparse(1),))),
    replace(_blocks, reason="a list for each row block"),
    _blocks.regular(
        "blocks-long",
        q_len=1023,
        num_heads_q=2,
        heads=(Blocks(((0,), (0, 1), (0, 2), (1, 3), (2, 4, 0), (5, 3, 1))),),
        reason="many tiles",
    ),
    *[
        _blocks.regular(
            f"blocks-{dtype_name(dtype)}",
            dtype=dtype,
            head_dim=128,
            num_heads_q=8,
            reason="every type, grouped heads",
        )
        for dtype in DTYPES
    ],
    _blocks.awkward(
        "blocks-repeated",
        heads=(Blocks(((0, 0), (1, 0, 1, 1), (-1, 2, -1, 2))),),
        reason="a block listed twice is attended once",
    ),
    _blocks.awkward(
        "blocks-not-causal",
        heads=(Blocks(((5, 0), (6, 1), (3, 4, 5, 6), (0, 6))),),
        reason="blocks right of the diagonal contribute nothing",
    ),
    _blocks.corner(
        "blocks-none", heads=(Blocks(((),)), Blocks(((), (0,)))), reason="row blocks without keys"
    ),
    _blocks.awkward(
        "blocks-all",
        heads=(Blocks((tuple(range(7)),)),),
        covers_all=True,
        reason="all blocks are dense attention",
    ),
    *[
        _blocks.awkward(
            f"blocks-n{n}",
            q_len=n,
            covers_all=True,
            heads=(Blocks(((0, 1),)),),
            reason="edges of a row block",
        )
        for n in LENGTHS
    ],
    *_on_every_layout(_blocks),
    *_on_every_chunk(
        replace(_blocks, heads=(Blocks(((0, 4), (1, 2), (3,))),), num_heads_q=1, num_heads_kv=1)
    ),
    *_padded_and_packed(replace(_blocks, heads=(Blocks(((0,), (1,), (0, 2), (4,))),))),
]


_EVERY_PATTERN: tuple[Pattern, ...] = (
    Dense(),
    AShape(3, 70),
    TriShape(2, 65, 30),
    VerticalSlash(40, 105),
    Lines((0, 9, 100, 222), (0, 64, 150)),
    BlockSparse(2),
    Blocks(((0,), (1, 0), (2, 1))),
    Lines((5,), ()),
)
_mixed = Case(
    "regular",
    "mixed",
    "heads of one layer with different patterns",
    _EVERY_PATTERN,
    q_len=400,
    num_heads_q=8,
    num_heads_kv=2,
)
MIXED = [
    *[_mixed.regular(f"mixed-{dtype_name(dtype)}", dtype=dtype) for dtype in DTYPES],
    *[
        _mixed.regular(f"mixed-{mode}", mode=mode, reason="one mode for all lines")
        for mode in MODES[1:]
    ],
    _mixed.awkward(
        "mixed-every-128",
        estimate_every=128,
        reason="only heads with estimated lines work in chunks",
    ),
    _mixed.awkward(
        "mixed-chunk", q_len=150, kv_len=433, reason="every pattern inside a longer prompt"
    ),
    _mixed.awkward(
        "mixed-left-padded",
        q_len=300,
        batch=3,
        first_valid_key=(0, 50, 300),
        reason="every pattern counts from the first valid key",
    ),
    _mixed.awkward(
        "mixed-packed",
        lengths=((65, 65), (1, 1), (0, 0), (70, 300)),
        reason="every pattern in packed sequences",
    ),
    _mixed.awkward(
        "mixed-heads-last",
        layout="heads_last",
        batch=2,
        reason="every pattern on a transposed view",
    ),
]

ALL = [*DENSE, *STREAMING, *LINES, *VERTICAL_SLASH, *BLOCK_SPARSE, *MIXED]

# With a scale for each head of q, k and v. head_dim is a multiple of 16, rows are aligned.
_float8 = replace(_mixed, dtype=F8, head_dim=128, q_len=300)
FLOAT8 = [
    *[
        _float8.regular(
            f"float8-{name}",
            heads=(pattern,),
            num_heads_q=4,
            covers_all=isinstance(pattern, Dense),
            reason="every op",
        )
        for name, pattern in zip(
            ("dense", "a-shape", "tri-shape", "vs", "lines", "top-k", "blocks"),
            _EVERY_PATTERN,
            strict=False,
        )
    ],
    *[
        _float8.awkward(
            f"float8-dense-d{d}",
            heads=(Dense(),),
            q_len=150,
            head_dim=d,
            covers_all=True,
            reason="head_dim of every instance, and those that fill none",
        )
        for d in (16, 64, 80, 96, 240, 256)
    ],
    *[_float8.regular(f"float8-mixed-{mode}", mode=mode, reason="every pattern") for mode in MODES],
    _float8.awkward(
        "float8-mixed-fused",
        layout="fused",
        batch=2,
        head_dim=64,
        q_len=200,
        reason="rows of one projection",
    ),
    _float8.awkward(
        "float8-mixed-every-second",
        layout="every_second",
        head_dim=256,
        softmax_scale=0.1,
        reason="rows with gaps",
    ),
    _float8.awkward(
        "float8-mixed-left-padded",
        q_len=200,
        batch=3,
        first_valid_key=(0, 50, 200),
        reason="every pattern counts from the first valid key",
    ),
    _float8.awkward(
        "float8-mixed-packed",
        lengths=((65, 65), (1, 1), (0, 0), (70, 300)),
        reason="sequences of any length",
    ),
    _float8.awkward(
        "float8-mixed-chunk",
        q_len=190,
        kv_len=333,
        estimate_every=64,
        reason="lines of each chunk of queries",
    ),
    _float8.awkward(
        "float8-dense-few-queries",
        heads=(Dense(),),
        q_len=70,
        kv_len=1100,
        num_heads_q=2,
        covers_all=True,
        reason="keys cut in parts",
    ),
    _float8.corner(
        "float8-dense-steep",
        heads=(Dense(),),
        spread=8.0,
        num_heads_q=2,
        covers_all=True,
        reason="logits tens apart: few keys take all the weight",
    ),
]
