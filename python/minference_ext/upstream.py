"""The entry point of the original implementation, so that scripts written for it run.

    from minference_ext import MInference  # was: from minference import MInference
    model = MInference("minference", model_name)(model)

The model stays the same object; it attends through attn_implementation="minference".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .model_patterns import ModelPatterns
from .patterns import HeadPattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .methods import Method

Model = TypeVar("Model", bound="PreTrainedModel")

# What the original reads from attn_kwargs, with its defaults; None: no bound.
_A_SHAPE = {"n_init": 128, "n_local": 3968}
_TRI_SHAPE = {**_A_SHAPE, "n_last": 100}
_TRI_MIX = {"n_init": 8, "n_local": 512, "n_last": 128, "starting_layer": 16}
_INF_LLM = {
    "n_init": 128,
    "n_local": 4096,
    "topk": 16,
    "block_size": 128,
    "exc_block_size": 512,
    "repr_topk": 4,
}
_FLEXPREFILL = {
    "gamma": 0.9,
    "tau": 0.1,
    "min_budget": None,
    "max_budget": None,
    "block_size": 128,
}
_XATTENTION = {"stride": 8, "norm": 1.0, "threshold": 0.9, "block_size": 128}
_ARGUMENTS: dict[str, Mapping[str, Any]] = {
    "minference": {},
    "a_shape": _A_SHAPE,
    "tri_shape": _TRI_SHAPE,
    "tri_mix": _TRI_MIX,
    "tri_mix_minference": _TRI_MIX,
    "static": {},
    "dilated1": {},
    "dilated2": {},
    "inf_llm": _INF_LLM,
    "flexprefill": _FLEXPREFILL,
    "xattention": _XATTENTION,
    "dense": {},
    "hf": {},
}
_ABSENT = ("vllm", "vllm_minference", "vllm_a_shape", "vllm_tri_shape", "vllm_flexprefill")

# attn_types that are a method of ours, and the names of arguments that differ.
_METHODS = {
    "static": "static",
    "dilated1": "streaming_llm_dilated",
    "dilated2": "streaming_llm_strided",
    "inf_llm": "infllm",
    "flexprefill": "flexprefill",
    "xattention": "xattention",
}
_RENAMED = {"exc_block_size": "exec_block_size"}


class MInference:
    """Callable that switches a Transformers model to sparse prefill, as the original's does.

    Args:
        attn_type: "minference" (patterns of `config_path` or `model_name`), "a_shape", "tri_shape",
            "tri_mix" (dense layers, then tri_shape), "tri_mix_minference" (minference, then
            tri_shape), "dense" (also "minference_with_dense"), "hf": the model as it is; or a
            method of `minference methods`, which says where it differs from the original's:
            "static", "dilated1" (streaming_llm_dilated), "dilated2" (streaming_llm_strided),
            "inf_llm" (infllm), "flexprefill", "xattention".
        model_name: of a model with published patterns, as in `ModelPatterns.load`.
        config_path: a pattern file, of the original's format or ours.
        starting_layer: layers before it attend densely.
        attn_kwargs: sizes of the shapes: n_init, n_local, n_last; starting_layer of tri_mix;
            parameters of the methods by the original's names.

    Raises:
        NotImplementedError: another attn_type or kv_type of the original, kv_cache_cpu, is_search.
        TypeError, ValueError: an unknown argument, or a pattern file that is missing by name.
    """

    def __init__(
        self,
        attn_type: str = "minference",
        model_name: str | None = None,
        config_path: str | os.PathLike[str] | None = None,
        starting_layer: int = -1,
        kv_cache_cpu: bool = False,
        kv_type: str = "dense",
        is_search: bool = False,
        attn_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        attn_type = {"minference_with_dense": "dense"}.get(attn_type, attn_type)
        if attn_type not in _ARGUMENTS:
            error = NotImplementedError if attn_type in _ABSENT else ValueError
            raise error(f"attn_type is {attn_type!r}; supported are {', '.join(_ARGUMENTS)}")
        if kv_type not in ("", "dense"):
            raise NotImplementedError(f"kv_type is {kv_type!r}; only 'dense' is supported")
        if kv_cache_cpu:
            raise NotImplementedError("kv_cache_cpu is True; the cache stays where it is")
        if is_search:
            raise NotImplementedError(
                "is_search is True; `minference search` finds the patterns of a model, and "
                "config_path takes the file it writes"
            )
        sizes = dict(attn_kwargs or {})
        if "last_n" in sizes:  # as the original's documentation has it
            sizes["n_last"] = sizes.pop("last_n")
        unknown = set(sizes) - set(_ARGUMENTS[attn_type])
        if unknown:
            raise ValueError(
                f"attn_kwargs has {', '.join(sorted(unknown))}; {attn_type} takes "
                f"{', '.join(_ARGUMENTS[attn_type]) or 'none'}"
            )
        self.attn_type = attn_type
        self._sizes = {**_ARGUMENTS[attn_type], **sizes}
        self._method: Callable[[], Method] | None = None
        if attn_type in _METHODS:
            from .methods import by_name

            parameters = {_RENAMED.get(name, name): value for name, value in self._sizes.items()}
            self._method = partial(by_name()[_METHODS[attn_type]], **parameters)
            self._method()  # refuses values now
        self._starting_layer = max(0, starting_layer)
        self._patterns: ModelPatterns | None = None
        if attn_type in ("minference", "tri_mix_minference"):
            source = config_path or model_name
            if source is None:
                raise ValueError(f"{attn_type} needs model_name or config_path")
            self._patterns = ModelPatterns.load(source)

    def __call__(self, model: Model) -> Model:
        """Configures `model` and returns it."""
        from .transformers import configure

        if self.attn_type != "hf":
            configure(model, self._patterns_for(model), starting_layer=self._starting_layer)
        return model

    patch_model = __call__

    def _patterns_for(self, model: PreTrainedModel) -> HeadPattern | ModelPatterns | Method:
        sizes = self._sizes
        if self._method is not None:
            return self._method()  # its own for each model: static learns from prompts
        if self.attn_type == "dense":
            return HeadPattern.dense()
        if self.attn_type == "minference":
            assert self._patterns is not None
            return self._patterns
        if self.attn_type == "a_shape":
            return HeadPattern.a_shape(sizes["n_init"], sizes["n_local"])
        tri_shape = HeadPattern.tri_shape(sizes["n_init"], sizes["n_local"], sizes["n_last"])
        if self.attn_type == "tri_shape":
            return tri_shape
        config: Any = model.config.get_text_config()
        num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
        first = self._patterns or ModelPatterns.uniform(HeadPattern.dense(), num_layers, num_heads)
        changes_at = sizes["starting_layer"]
        if changes_at < 0:
            raise ValueError(f"starting_layer is {changes_at}; it must be >= 0")
        rest = ((tri_shape,) * first.num_heads,) * max(0, first.num_layers - changes_at)
        return ModelPatterns((*first.layers[:changes_at], *rest))
