"""A run slow enough to be killed between two steps."""

import sys
from pathlib import Path

from parity import small

small.train(Path(sys.argv[1]), small.Rows(pause=0.03), steps=14, save_every=3, ema=0.9, log_every=2)
