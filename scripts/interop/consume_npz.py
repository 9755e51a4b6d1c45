"""The NumPy reader printed in docs/export.md on a folder octet wrote; transformers computes from the weights it gives.

Usage: python consume_npz.py MODEL_DIR IDS.npy OUT.npz
"""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from common import execute
from consume_transformers import logits_of

DOCS = Path(__file__).resolve().parents[2] / "docs/export.md"


def main(folder, ids, out):
    reader = next(code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "model_tensors_8bit" in code)
    space = {}
    exec(reader, space)
    weights = space["read"](folder)
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    state = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in weights.items()}
    lost = model.load_state_dict(state, strict=False)
    model.tie_weights()
    missing = [key for key in lost.missing_keys if not key.startswith("lm_head")]
    if missing or lost.unexpected_keys:
        sys.exit(f"weights and model do not fit: {missing[:4]} {lost.unexpected_keys[:4]}")
    execute(out, f"numpy {np.__version__} (computed by transformers {transformers.__version__})", logits_of(model.eval()), np.load(ids))


if __name__ == "__main__":
    main(*sys.argv[1:4])
