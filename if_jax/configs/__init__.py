"""The configurations in configs/, under the name that they have once the package is installed.

A wheel holds that folder in this one's place (pyproject.toml, package-dir). So a configuration
finds another by `from if_jax.configs import default` in a checkout, in an installed package and in
a file of one's own.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent.parent / 'configs')]
