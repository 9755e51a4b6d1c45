"""Quantize a model with llm-compressor, gptqmodel, AutoRound, mlx-lm or bitsandbytes on exactly the windows that octet calibrates with.

Usage: python calibrated_peers.py windows MODEL CORPUS.jsonl OUT.bin      (any environment with tokenizers)
       python calibrated_peers.py llmcompressor MODEL WINDOWS.bin OUTDIR [VARIANT...]  (requirements: llm-compressor 0.14, torch 2.14)
       python calibrated_peers.py gptqmodel MODEL WINDOWS.bin OUTDIR [VARIANT...]      (gptqmodel 7.7, torch 2.15)
       python calibrated_peers.py autoround MODEL WINDOWS.bin OUTDIR [VARIANT...]      (auto-round 0.15; w4-g128: bits and group)
       python calibrated_peers.py mlx MODEL WINDOWS.bin OUTDIR [VARIANT...]            (mlx-lm 0.32; w4-g64, w4-g64-dwq)
       python calibrated_peers.py bitsandbytes MODEL WINDOWS.bin OUTDIR   (bitsandbytes 0.50, transformers 5.23)

`windows` writes the 64 windows of 512 tokens that `octet quantize --seed 0` draws from the text, as uint16; give the file to
octet as `--calibration OUT.bin` and to the others as WINDOWS.bin. Each variant becomes a folder of OUTDIR, for `octet eval
--base MODEL` to judge; embedding and head stay as they are. Set HF_HUB_OFFLINE=1. What came of it is in
benches/record/2026-11-29-calibrated and 2026-11-30-frontier.
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


def llmcompressor(model, calibration, out, *only):
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
        "awq-g32": lambda: [AWQModifier(**groups(32))],
        "gptq-w3-g128": lambda: [GPTQModifier(**groups(128, 3), actorder="static")],
        "gptq-w3-g32": lambda: [GPTQModifier(**groups(32, 3), actorder="static")],
        "awq-w3-g128": lambda: [AWQModifier(**groups(128, 3))],
        "awq-w3-g32": lambda: [AWQModifier(**groups(32, 3))],
        "w8a8": lambda: [QuantizationModifier(**groups(None, 8, True))],
        "sq-gptq-w8a8": lambda: [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(**groups(None, 8, True))],
    }
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name in only or recipes:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        options = dict(num_calibration_samples=len(rows), max_seq_length=LENGTH, shuffle_calibration_samples=False)
        oneshot(model=loaded, dataset=data, recipe=recipes[name](), tokenizer=tokenizer, **options)
        loaded.save_pretrained(f"{out}/llmcompressor-{name}", save_compressed=True)
        tokenizer.save_pretrained(f"{out}/llmcompressor-{name}")


def bits_and_group(variant):
    """4 and 128 of w4-g128."""
    return (int(part[1:]) for part in variant.split("-")[:2])


def gptqmodel(model, calibration, out, *only):
    from gptqmodel import GPTQModel, QuantizeConfig

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in read(calibration)]
    for name in only or ["w4-g128", "w4-g32", "w4-g128-desc", "w3-g128", "w3-g32"]:
        bits, size = bits_and_group(name)
        loaded = GPTQModel.load(model, QuantizeConfig(bits=bits, group_size=size, sym=True, desc_act=name.endswith("desc")))
        loaded.quantize(rows, batch_size=1)
        loaded.save(f"{out}/gptqmodel-{name}")


def autoround(model, calibration, out, *only):
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [torch.tensor([row]) for row in read(calibration)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name in only or ["w4-g128", "w4-g32", "w3-g128", "w3-g32"]:
        bits, size = bits_and_group(name)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        data = dict(dataset=rows, nsamples=len(rows), seqlen=LENGTH, iters=200, device_map="cpu", enable_torch_compile=False)
        rounding = AutoRound(loaded, tokenizer, scheme={"bits": bits, "group_size": size, "sym": "asym" not in name, "data_type": "int"}, **data)
        rounding.quantize_and_save(f"{out}/autoround-{name}", format="auto_gptq")


def mlx(model, calibration, out, *only):
    import copy

    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optimizers
    from mlx.utils import tree_map
    from mlx_lm.quant.dwq import dwq_quantize
    from mlx_lm.utils import load, quantize_model, save

    rows = [(row, 0) for row in read(calibration)]
    original, tokenizer, config = load(model, return_config=True)
    stored, exact = mx.bfloat16, mx.float32
    # Products of bfloat16 take ages without a GPU, and so do those with packed weights, of which these are the same.
    as_type = lambda module, dtype: module.update(tree_map(lambda x: x if x.dtype == mx.uint32 else x.astype(dtype), module.parameters()))

    def dense(self, x):
        ones, rows = mx.ones_like(self.scales), self.scales.shape[0]
        codes = mx.dequantize(self.weight, ones, mx.zeros_like(ones), self.group_size, self.bits).reshape(rows, -1, self.group_size)
        return x @ (codes * self.scales[..., None] + self.biases[..., None]).reshape(rows, -1).T

    nn.QuantizedLinear.__call__ = dense
    for name in only or ["w4-g64", "w4-g64-dwq"]:
        bits, size = bits_and_group(name)
        linears = lambda path, _: "layers." in path
        quantized, described = quantize_model(copy.deepcopy(original), config, size, bits, quant_predicate=linears)
        if "-dwq" in name:
            # Its own rate is 1e-6; "-dwq1e-4-x4" is another, and four times the windows.
            rate, *times = name.split("-dwq")[1].split("-x")
            data = rows * int((times or [1])[0])
            target = lambda batch, *_, **__: original(batch)
            opt = optimizers.Adam(learning_rate=float(rate or 1e-6), bias_correction=True)
            quantized.model.embed_tokens.freeze()
            as_type(original, exact), as_type(quantized, exact)
            dwq_quantize(quantized, target, opt, data, rows[:8], 4, LENGTH, seed=123, dtype=exact)
            as_type(original, stored), as_type(quantized, stored)
        save(f"{out}/mlx-{name}", model, quantized, tokenizer, described)


def bitsandbytes(model, _, out):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu")
    loaded.save_pretrained(f"{out}/bitsandbytes-int8")
    AutoTokenizer.from_pretrained(model).save_pretrained(f"{out}/bitsandbytes-int8")


if __name__ == "__main__":
    tools = dict(windows=windows, llmcompressor=llmcompressor, gptqmodel=gptqmodel, autoround=autoround, mlx=mlx, bitsandbytes=bitsandbytes)
    if len(sys.argv) < 5 or sys.argv[1] not in tools:
        sys.exit(__doc__)
    tools[sys.argv[1]](*sys.argv[2:])
