"""minference_ext: sparse attention for the prefill of long prompts, as PyTorch ops.

Importing it registers `torch.ops.minference`, and attn_implementation="minference" as soon as
Transformers is imported, too. ops.py and vs_index.py document each op.
"""

from __future__ import annotations

from . import _register
from . import autograd as autograd
from ._C import cpu_kernel_for, cpu_kernels, cuda_architectures, has_cuda, version
from .kernel_info import KernelInfo, attention_kernel
from .model_patterns import ModelPatterns
from .ops import (
    SlashMode,
    a_shape_attention,
    block_sparse_attention,
    block_sparse_attention_with_index,
    dense_attention,
    plan_stats,
    predict,
    sparse_attention,
    tri_shape_attention,
    vs_attention,
    vs_attention_with_index,
)
from .paths import cmake_dir, include_dir, lib_dir
from .patterns import HeadPattern, PatternKind, PlanStats, Prediction
from .upstream import MInference
from .vs_index import convert_vertical_slash_indexes, estimate_vs_index, estimate_vs_scores

__version__ = version()
_register.register_when_imported()

__all__ = [
    "HeadPattern",
    "KernelInfo",
    "MInference",
    "ModelPatterns",
    "PatternKind",
    "PlanStats",
    "Prediction",
    "SlashMode",
    "__version__",
    "a_shape_attention",
    "attention_kernel",
    "block_sparse_attention",
    "block_sparse_attention_with_index",
    "cmake_dir",
    "convert_vertical_slash_indexes",
    "cpu_kernel_for",
    "cpu_kernels",
    "cuda_architectures",
    "dense_attention",
    "estimate_vs_index",
    "estimate_vs_scores",
    "has_cuda",
    "include_dir",
    "lib_dir",
    "plan_stats",
    "predict",
    "sparse_attention",
    "tri_shape_attention",
    "vs_attention",
    "vs_attention_with_index",
]
