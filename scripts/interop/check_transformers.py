"""Ask transformers + compressed-tensors what it computes from a folder octet wrote.

Usage: python check_transformers.py MODEL_DIR IDS.npy LOGITS.npy [--dtype float32|own] [--tolerance X]

MODEL_DIR  a model folder (for octet: written with --portable), loaded unchanged
IDS.npy    token ids, i64 or i32, [B,T] or [T]
LOGITS.npy octet's own logits for them, f32, [B,T,V] or [T,V]   (octet logits MODEL_DIR --ids IDS.npy ...)

Prints one JSON object: max |difference|, the same relative to max |logit|, the share of positions
with the same most likely token, and mean KL(transformers || octet) in nats. Exit code 1 when the
relative difference is above the tolerance (absent: never).
"""

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM


def load(folder, dtype):
    """The folder's model on the CPU with eager attention, computing in `dtype`."""
    kwargs = {"dtype": torch.float32 if dtype == "float32" else "auto"}
    quant = getattr(AutoConfig.from_pretrained(folder), "quantization_config", None)
    method = quant.get("quant_method") if isinstance(quant, dict) else getattr(quant, "quant_method", None)
    if method == "fp8":
        # Block FP8 has no CPU kernel: transformers decodes it at loading.
        kwargs["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **kwargs)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        sys.exit(f"{folder}: transformers did not take every tensor: {info}")
    if method == "fp8" and dtype == "float32":
        model = model.float()
    return model.eval()


def read(path, axes, kind):
    array = np.load(path)
    if array.ndim == axes - 1:
        array = array[None]
    if array.ndim != axes:
        sys.exit(f"{path}: expected {axes} or {axes - 1} axes ({kind}), found shape {array.shape}")
    return array


@torch.no_grad()
def compare(model, ids, ours):
    """The figures of the module's description for logits `ours` [B,T,V]."""
    theirs = torch.cat([model(row[None]).logits.float() for row in ids])
    if theirs.shape != ours.shape:
        sys.exit(f"logits have shape {tuple(ours.shape)}, transformers computes {tuple(theirs.shape)}")
    delta = (theirs - ours).abs().max().item()
    log_p, log_q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    return {
        "max_abs_difference": delta,
        "relative_to_max_logit": delta / theirs.abs().max().item(),
        "same_top1": (theirs.argmax(-1) == ours.argmax(-1)).double().mean().item(),
        "mean_kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        "positions": ids.numel(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("ids")
    parser.add_argument("logits")
    parser.add_argument("--dtype", choices=("float32", "own"), default="float32")
    parser.add_argument("--tolerance", type=float)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    ids = torch.from_numpy(read(args.ids, 2, "B,T").astype(np.int64))
    ours = torch.from_numpy(read(args.logits, 3, "B,T,V").astype(np.float32))
    model = load(args.model, args.dtype)
    report = {"model": args.model, "dtype": args.dtype, "compute": str(model.dtype),
              "transformers": transformers.__version__} | compare(model, ids, ours)
    print(json.dumps(report, indent=1))
    if args.tolerance is not None and not report["relative_to_max_logit"] <= args.tolerance:
        sys.exit(1)


if __name__ == "__main__":
    main()
