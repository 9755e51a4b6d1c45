"""Write a checkpoint folder (Llama or Qwen3, BF16 safetensors) as a BF16 GGUF for llama.cpp.

Usage: python to_gguf.py MODEL_DIR OUT.gguf

For timing only: the file has no tokenizer, just the size of the vocabulary. Tensor names and metadata as in the GGUF
specification (ggml, docs/gguf.md); rows of q and k of Llama are permuted for its rope, as llama.cpp's converter does.
"""

import glob
import json
import os
import sys

import gguf
import numpy as np

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(folder):
    """Name and bfloat16 bits of every tensor of a folder, mapped."""
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        yield from tensors_of(path)


def tensors_of(path):
    data = np.memmap(path, np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    for name, entry in json.loads(bytes(data[8 : 8 + size])).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            sys.exit(f"{path}: {name} is {entry['dtype']}, only BF16 is converted")
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        yield name, data[start:end].view(np.uint16).reshape(entry["shape"])


def gguf_name(name):
    module = name.removesuffix(".weight")
    if module in OUTER:
        return OUTER[module] + ".weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{INNER[rest]}.weight"


def rope_order(bits, heads):
    """Rows of each head from halves (transformers) to pairs (ggml's llama rope)."""
    rows, cols = bits.shape
    return bits.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def llama3_factors(config, scaling):
    """Divisors of the rope frequencies (Llama 3.1)."""
    half = np.arange(0, config["head_dim"], 2, dtype=np.float32) / config["head_dim"]
    lengths = 2 * np.pi * config["rope_theta"] ** half
    original = scaling["original_max_position_embeddings"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def main(folder, out):
    config = json.load(open(os.path.join(folder, "config.json")))
    arch, heads, kv_heads = config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]
    if arch not in ("llama", "qwen3"):
        sys.exit(f"{folder}: model_type {arch} is not converted, only llama and qwen3")
    writer = gguf.GGUFWriter(out, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    if arch == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    if config.get("rope_scaling"):
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, config["rope_scaling"]))
    for name, bits in tensors(folder):
        target = gguf_name(name)
        if arch == "llama" and target.endswith(("attn_q.weight", "attn_k.weight")):
            bits = rope_order(bits, heads if "attn_q" in target else kv_heads)
        if bits.ndim == 1:
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(target, np.ascontiguousarray(bits).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
