"""onnxruntime on a folder octet wrote.

Usage: python consume_onnx.py MODEL_DIR IDS.npy OUT.npz
"""

import sys

import numpy as np
import onnxruntime

from common import execute


def main(folder, ids, out):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    pasts = [value for value in session.get_inputs() if value.name.startswith("past")]

    def forward(tokens, state):
        rows, count = tokens.shape
        at, past = (0, {v.name: np.zeros((rows, v.shape[1], 0, v.shape[3]), np.float32) for v in pasts}) if state is None else state
        feeds = {
            "input_ids": tokens.astype(np.int64),
            "attention_mask": np.ones((rows, at + count), np.int64),
            "position_ids": np.broadcast_to(np.arange(at, at + count), tokens.shape).astype(np.int64),
        }
        found = dict(zip(names, session.run(None, feeds | past)))
        logits = found.pop("logits")
        return logits, (at + count, {name.replace("present", "past_key_values"): value for name, value in found.items()})

    execute(out, f"onnxruntime {onnxruntime.__version__}", forward, np.load(ids))


if __name__ == "__main__":
    main(*sys.argv[1:4])
