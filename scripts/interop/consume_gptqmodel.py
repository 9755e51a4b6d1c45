"""gptqmodel by itself, which computes in 16 bits, on a folder octet wrote: matrices of several widths need it.

Usage: python consume_gptqmodel.py MODEL_DIR IDS.npy OUT.npz
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

from importlib.metadata import version

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel

from common import execute
from consume_transformers import logits_of


def main(folder, ids, out):
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16, attn_implementation="eager")
    execute(out, f"gptqmodel {version('gptqmodel')} (float16)", logits_of(model.model.eval()), np.load(ids))


if __name__ == "__main__":
    main(*sys.argv[1:4])
