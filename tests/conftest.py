"""What holds for every test: the CPU backend, in this process with one device."""

import os

# Set before anything imports jax. Tests of several devices start a process of their own.
os.environ['JAX_PLATFORMS'] = 'cpu'
