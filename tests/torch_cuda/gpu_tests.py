"""Runs the tests that need a GPU on CUDA tensors of a torch without CUDA (fake_torch_cuda.cpp), in
the emulator: `python gpu_tests.py libtorch_cuda.so FILE...`."""

from __future__ import annotations

import sys

import pytest
import torch

torch.ops.load_library(sys.argv[1])
torch.cuda._lazy_init = lambda: None  # refuses to make CUDA tensors in a torch without CUDA
torch.cuda.is_available = lambda: True
torch.ops.fake_cuda.begin_stream()
torch.set_num_threads(1)  # tensors this small only wait for each other's threads
sys.exit(pytest.main(["-m", "gpu", "-p", "no:cacheprovider", *sys.argv[2:]]))
