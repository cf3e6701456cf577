"""What holds for every test: the CPU backend, in this process with one device."""

import os
from pathlib import Path

# Set before anything imports jax. Tests of several devices start a process of their own.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Programs that several commands compile are compiled once, and nothing is left in the user's cache.
_COMPILED = Path(__file__).parent.parent / '.pytest_cache' / 'compiled'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(_COMPILED)
# What oneDNN computes for many images could not be kept there; tests/test_onednn.py switches it on.
os.environ['IF_JAX_ONEDNN'] = 'off'
# Programs with an environment of their own: pytest, which looks for doctests everywhere, would
# import them, and what they set would hold for all tests.
collect_ignore = ['smoke.py', 'tiny_main.py']
