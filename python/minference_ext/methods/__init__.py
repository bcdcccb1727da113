"""Methods of sparse prefill, those of MInference and those it is compared with, on one interface.

    from minference_ext.methods import Layer, parse

    method = parse("vertical_slash(1000,6096)")
    out, lse = method.attend(Layer(q, k, v))  # [1, H, S, D] of one prompt
    minference_ext.transformers.configure(model, method)  # or a method for every head

`minference methods` lists them. Every method says in its docstring which query attends which key;
tests hold it to that by an oracle of its own.
"""

from __future__ import annotations

from .catalog import METHODS, by_name, of_pattern, parameters, parse, parse_list
from .method import Layer, LayerIndex, Method, Rotation, attend_heads, stats_of_heads

__all__ = [
    "METHODS",
    "Layer",
    "LayerIndex",
    "Method",
    "Rotation",
    "attend_heads",
    "by_name",
    "of_pattern",
    "parameters",
    "parse",
    "parse_list",
    "stats_of_heads",
]
