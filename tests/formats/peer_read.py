"""Run by the peers' own Python: load SAEs that this project wrote, with their packages, and store what they compute.

python peer_read.py FOLDER        (each subfolder: PEER-…, with expected.safetensors holding x)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def load(folder: Path) -> torch.nn.Module:
    match folder.name.split("-")[0]:
        case "saelens":
            from sae_lens import SAE

            return SAE.load_from_disk(folder)
        case "sparsify":
            from sparsify.sparse_coder import SparseCoder

            return SparseCoder.load_from_disk(folder)
        case "dictionary_learning":
            from dictionary_learning import dictionary
            from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
            from dictionary_learning.trainers.top_k import AutoEncoderTopK

            kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
            classes = {"AutoEncoderTopK": AutoEncoderTopK, "BatchTopKSAE": BatchTopKSAE}
            # AutoEncoder normalises its decoder on loading unless told otherwise; the others take the file as it is.
            return (classes.get(kind) or getattr(dictionary, kind)).from_pretrained(str(folder / "ae.pt"))
    raise ValueError(folder.name)


for case in sorted(Path(sys.argv[1]).iterdir()):
    x = load_file(case / "expected.safetensors")["x"]
    sae = load(case)
    if getattr(sae, "hook_z_reshaping_mode", False):
        x = x.view(len(x), 4, -1)  # heads apart, as TransformerLens gives them
    with torch.no_grad():
        out = sae(x)
    out = out if isinstance(out, torch.Tensor) else out.sae_out
    out = out.reshape(len(x), -1)
    save_file({"out": out.float().contiguous()}, case / "peer.safetensors")
