"""CUDA kernel text on the CPU: compiled by g++, run with the barriers, shuffles and blocks of a GPU. Tests only."""
