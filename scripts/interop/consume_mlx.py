"""mlx-lm on a folder octet wrote.

Usage: python consume_mlx.py MODEL_DIR IDS.npy OUT.npz
"""

import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from common import execute


def main(folder, ids, out):
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(folder))
    # Norms and scales of 16 bits would make it compute in 16 bits.
    model.set_dtype(mx.float32)

    def forward(tokens, state):
        state = make_prompt_cache(model) if state is None else state
        return np.array(model(mx.array(tokens.astype(np.int32)), cache=state).astype(mx.float32)), state

    execute(out, f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}", forward, np.load(ids))


if __name__ == "__main__":
    main(*sys.argv[1:4])
