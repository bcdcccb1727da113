"""How far an evaluation is, on stderr: a bar on a terminal, else a line per prompt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_REFRESH_SECONDS = 0.2


class Progress:
    """Counts prompts, and shows the layer that is at work where a bar can."""

    def __init__(self, num_prompts: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

        self._num_prompts = num_prompts
        self._num_done = 0
        self._is_terminal = sys.stderr.isatty()
        self._shown_at = 0.0
        self._bar = tqdm(
            total=num_prompts,
            unit="prompt",
            leave=False,
            disable=not self._is_terminal,
            bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} prompts, {elapsed}<"
            "{remaining}: {desc}",
        )

    @contextmanager
    def prompt(self, model: Any, what: str) -> Iterator[None]:
        """While a prompt runs; `what` says which."""
        if not self._is_terminal:
            yield
            return
        layers = [
            module
            for module in model.modules()
            if isinstance(getattr(module, "layer_idx", None), int)
            and getattr(module, "is_causal", False)
        ]

        # It returns nothing: what a hook returns is the layer's input.
        def begin(module: Any, *_: object) -> None:
            if time.monotonic() - self._shown_at > _REFRESH_SECONDS:
                self._shown_at = time.monotonic()
                place = f"layer {module.layer_idx + 1}/{len(layers)}"
                self._bar.set_description_str(f"{what}, {place}")

        self._bar.set_description_str(what)
        hooks = [layer.register_forward_pre_hook(begin) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def done(self, what: str, result: str, *, counts: bool = True) -> None:
        """Says what a prompt gave; `counts`: it is one of those that were announced."""
        self._num_done += counts
        self._bar.update(int(counts))
        line = f"{self._num_done}/{self._num_prompts} {what}: {result}"
        if self._is_terminal:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
