"""Quantize a model with llm-compressor, gptqmodel or bitsandbytes on exactly the windows that octet calibrates with.

Usage: python calibrated_peers.py windows MODEL CORPUS.jsonl OUT.bin      (any environment with tokenizers)
       python calibrated_peers.py llmcompressor MODEL WINDOWS.bin OUTDIR  (requirements: llm-compressor 0.14, torch 2.14)
       python calibrated_peers.py gptqmodel MODEL WINDOWS.bin OUTDIR      (gptqmodel 7.7, torch 2.15)
       python calibrated_peers.py bitsandbytes MODEL WINDOWS.bin OUTDIR   (bitsandbytes 0.50, transformers 5.23)

`windows` writes the 64 windows of 512 tokens that `octet quantize --seed 0` draws from the text, as uint16; give the file to
octet as `--calibration OUT.bin` and to the others as WINDOWS.bin. Each variant becomes a folder of OUTDIR, for `octet eval
--base MODEL` to judge. Set HF_HUB_OFFLINE=1. Versions that worked are in benches/record/2026-11-29-calibrated.
"""

import json
import pathlib
import struct
import sys

COUNT, LENGTH, SEED, MASK = 64, 512, 0, (1 << 64) - 1


def draw(ids):
    """The windows that octet draws (octet-quant/src/samples.rs)."""
    windows = [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]
    chosen = list(range(len(windows)))
    if len(windows) > COUNT:
        whole = len(ids) // LENGTH
        if whole >= COUNT:
            chosen = chosen[:whole]
        state = SEED
        for i in range(COUNT):
            state = (state + 0x9E3779B97F4A7C15) & MASK
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
            other = i + ((z ^ (z >> 31)) * (len(chosen) - i) >> 64)
            chosen[i], chosen[other] = chosen[other], chosen[i]
        chosen = sorted(chosen[:COUNT])
    return [windows[index] for index in chosen]


def windows(model, corpus, out):
    from tokenizers import Tokenizer

    documents = [json.loads(line)["text"].rstrip("\n") for line in open(corpus) if line.strip()]
    ids = Tokenizer.from_file(f"{model}/tokenizer.json").encode("\n\n".join(documents), add_special_tokens=False).ids
    flat = [token for window in draw(ids) for token in window]
    pathlib.Path(out).write_bytes(struct.pack(f"<{len(flat)}H", *flat))


def read(path):
    data = pathlib.Path(path).read_bytes()
    ids = list(struct.unpack(f"<{len(data) // 2}H", data))
    return [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]


def llmcompressor(model, calibration, out):
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.awq import AWQModifier
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.smoothquant import SmoothQuantModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # AWQ pins memory whether there is a GPU or not.
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    rows = read(calibration)
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})

    def groups(size, bits=4, integer=False):
        weights = dict(num_bits=bits, type="int", symmetric=True, strategy="group" if size else "channel", group_size=size)
        inputs = dict(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True) if integer else None
        return dict(config_groups={"group_0": dict(targets=["Linear"], weights=weights, input_activations=inputs)}, ignore=["lm_head"])

    recipes = {
        "rtn-g128": lambda: [QuantizationModifier(**groups(128))],
        "gptq-g128": lambda: [GPTQModifier(**groups(128), actorder="static")],
        "gptq-g32": lambda: [GPTQModifier(**groups(32), actorder="static")],
        "awq-g128": lambda: [AWQModifier(**groups(128))],
        "w8a8": lambda: [QuantizationModifier(**groups(None, 8, True))],
        "sq-gptq-w8a8": lambda: [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(**groups(None, 8, True))],
    }
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name, recipe in recipes.items():
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        options = dict(num_calibration_samples=len(rows), max_seq_length=LENGTH, shuffle_calibration_samples=False)
        oneshot(model=loaded, dataset=data, recipe=recipe(), tokenizer=tokenizer, **options)
        loaded.save_pretrained(f"{out}/llmcompressor-{name}", save_compressed=True)
        tokenizer.save_pretrained(f"{out}/llmcompressor-{name}")


def gptqmodel(model, calibration, out):
    from gptqmodel import GPTQModel, QuantizeConfig

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in read(calibration)]
    for name, size, desc in [("g128", 128, False), ("g32", 32, False), ("g128-desc", 128, True)]:
        loaded = GPTQModel.load(model, QuantizeConfig(bits=4, group_size=size, sym=True, desc_act=desc))
        loaded.quantize(rows, batch_size=1)
        loaded.save(f"{out}/gptqmodel-{name}")


def bitsandbytes(model, _, out):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu")
    loaded.save_pretrained(f"{out}/bitsandbytes-int8")
    AutoTokenizer.from_pretrained(model).save_pretrained(f"{out}/bitsandbytes-int8")


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] not in ("windows", "llmcompressor", "gptqmodel", "bitsandbytes"):
        sys.exit(__doc__)
    globals()[sys.argv[1]](*sys.argv[2:])
