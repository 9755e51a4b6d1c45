"""transformers, with whatever it loads the folder's format by, on a folder octet wrote.

Usage: python consume_transformers.py MODEL_DIR IDS.npy OUT.npz
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

from importlib.metadata import version

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from common import execute

LIBRARIES = {"compressed-tensors": "compressed-tensors", "gptq": "gptqmodel", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes"}


def logits_of(model):
    @torch.no_grad()
    def forward(tokens, state):
        out = model(torch.from_numpy(np.ascontiguousarray(tokens)), past_key_values=state, use_cache=True)
        return out.logits.float().numpy(), out.past_key_values
    return forward


def main(folder, ids, out):
    transformers.utils.logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, device_map="cpu", output_loading_info=True)
    missing = [key for key in info["missing_keys"] if not key.startswith("lm_head")]
    if missing or info["mismatched_keys"] or info["unexpected_keys"]:
        sys.exit(f"transformers did not take every tensor: {missing[:4]} {list(info['mismatched_keys'])[:4]} {list(info['unexpected_keys'])[:4]}")
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    library = LIBRARIES.get(getattr(method, "value", method))
    kinds = {type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__} - {"Linear"}
    tool = f"transformers {transformers.__version__}" + (f", {library} {version(library)}" if library else "")
    execute(out, tool + (f" ({', '.join(sorted(kinds))})" if kinds else ""), logits_of(model.eval()), np.load(ids))


if __name__ == "__main__":
    main(*sys.argv[1:4])
