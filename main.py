"""The command line: `python main.py --mode=train --config=configs/default.py --workdir=DIR`."""

from if_jax.__main__ import start

if __name__ == '__main__':
  start()
