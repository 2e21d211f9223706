"""Apply a patch to a Hugging Face model. Needs torch and safetensors, and nothing else.

    from transformers import AutoModelForCausalLM
    from load_patch import attach

    model = AutoModelForCausalLM.from_pretrained("the base model")
    patch = attach(model, "this/folder")      # patch.remove() restores the model bit for bit

Edits act in hooks; weights are not touched. Batches padded on the left or the right and generation with a
key/value cache work as usual. Start a new generation after attaching or removing: cached keys and values
belong to the model they were computed with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Patch:
    """Hooks on a model. ``remove()`` takes them off again."""

    def __init__(self, model: Any, folder: str | Path) -> None:
        folder = Path(folder)
        self.spec = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
        base, config = self.spec["base"], model.config
        found = (config.model_type, config.hidden_size, config.num_hidden_layers)
        if found != (base["model_type"], base["d_model"], base["n_layers"]):
            raise ValueError(f"the patch is for {base}, this model is {found}")
        device = next(model.parameters()).device
        self.t = {k: v.to(device) for k, v in load_file(folder / "rows.safetensors").items()}
        self.special = torch.tensor(self.spec["special_tokens"], device=device)
        self.prompt = 0
        self.place = self.is_special = torch.empty(0)
        self.handles = [model.register_forward_pre_hook(self._see_tokens, with_kwargs=True)]
        at = model.get_submodule
        for layer, edits in self.spec["sites"].items():
            self.handles.append(at(f"{self.spec['blocks']}.{layer}").register_forward_hook(self._site(edits)))
        for number, path in enumerate(self.spec["deltas"]):
            a, b = self.t[f"delta.{number}.A"], self.t[f"delta.{number}.B"]
            self.handles.append(
                at(path).register_forward_hook(
                    lambda _m, x, y, a=a, b=b: y + (x[0].float() @ a.T @ b.T).to(y.dtype)
                )
            )
        if "span" in self.t:
            first = at(f"{self.spec['blocks']}.0")
            self.handles.append(first.register_forward_pre_hook(self._project_input, with_kwargs=True))
            for path in self.spec["writers"]:
                self.handles.append(
                    at(path).register_forward_hook(lambda _m, _x, y: self._map(y, self._project))
                )

    def remove(self) -> None:
        """Restore the model."""
        for handle in self.handles:
            handle.remove()

    def _see_tokens(self, _module: Any, args: Args, kwargs: Kwargs) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("the patch needs input_ids to know special tokens")
        past = kwargs.get("past_key_values")
        start = int(past.get_seq_length()) if past is not None else 0
        pads = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2:
            pads = (mask.cumsum(1) == 0).sum(1, keepdim=True)  # those on the left
        if start == 0:
            self.prompt = ids.shape[1] - pads
        self.place = torch.arange(start, start + ids.shape[1], device=ids.device)[None] - pads
        self.is_special = torch.isin(ids, self.special)

    @staticmethod
    def _map(output: Any, change: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def _project(self, y: torch.Tensor) -> torch.Tensor:
        q = self.t["span"]
        return (y.float() - (y.float() @ q) @ q.T).to(y.dtype)

    def _project_input(self, _module: Any, args: Args, kwargs: Kwargs) -> Any:
        if args:
            return (self._project(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._project(kwargs["hidden_states"])}

    def _site(self, edits: list[Kwargs]) -> Any:
        def change(x: torch.Tensor) -> torch.Tensor:
            stream = x.float()
            total = torch.zeros_like(stream)
            for edit in edits:
                total += self._delta(edit, stream) * self._mask(edit, stream)[..., None]
            return x + total.to(x.dtype)

        return lambda _module, _inputs, output: self._map(output, change)

    def _mask(self, edit: Kwargs, x: torch.Tensor) -> torch.Tensor:
        where, place = edit["positions"], self.place
        keep = place >= (self.prompt if where["mode"] == "generated" else 0)
        if where["mode"] == "from":
            keep = place >= where["start"]
        elif where["mode"] == "set":
            keep = torch.isin(place, torch.tensor(where["indices"], device=place.device))
        if not where["include_sinks"]:
            keep = keep & ~self.is_special
            if edit["max_norm"] is not None:
                keep = keep & (x.norm(dim=-1) <= edit["max_norm"])
        return keep

    def _delta(self, edit: Kwargs, x: torch.Tensor) -> torch.Tensor:
        kind, amount = edit["kind"], edit["amount"]
        if kind == "splice":
            return self._reconstruction(edit, x) - x
        d = self.t[edit["row"]]
        if kind in ("add", "project"):
            unit = d / d.norm()
            return (
                amount * unit.expand_as(x) if kind == "add" else (amount - 1) * (x @ unit)[..., None] * unit
            )
        f, gain = self._activation(edit, x), self._norm(edit["sae"], x)[1] / edit["sae"]["output_scale"]
        change = {"ablate": lambda: -f, "scale": lambda: (amount - 1) * f}.get(kind, lambda: amount - f)()
        if kind == "clamp_firing":
            change = torch.where(f > 0, change, 0.0)
        return change[..., None] * gain * d

    def _norm(self, sae: Kwargs, x: torch.Tensor) -> tuple[Any, Any]:
        if sae["input_norm"] == "constant_norm":
            return 0.0, x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        if sae["input_norm"] == "layer_norm":
            centre = x.mean(-1, keepdim=True)
            return centre, (x - centre).std(-1, keepdim=True)
        return 0.0, 1.0

    def _pre(self, sae: Kwargs, x: torch.Tensor) -> torch.Tensor:
        centre, spread = self._norm(sae, x)
        if sae["input_norm"] == "layer_norm":
            spread = spread + 1e-5
        elif sae["input_norm"] == "constant_norm":
            spread = spread.clamp_min(torch.finfo(torch.float32).tiny)
        u = (x - centre) / spread * sae["scale"]
        return u @ self.t[sae["W"]].T + self.t[sae["b"]]

    def _codes(self, sae: Kwargs, x: torch.Tensor) -> torch.Tensor:
        pre = self._pre(sae, x)
        if sae["gate"] == "topk":
            best = pre.topk(sae["k"], dim=-1)
            return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
        if sae["gate"] == "groupmax":
            groups = pre.unflatten(-1, (sae["k"], -1))
            best = groups.max(-1, keepdim=True)
            return torch.zeros_like(groups).scatter(-1, best.indices, best.values.relu()).flatten(-2)
        m, c, cut = self.t[sae["gate_rows"]]
        return torch.where(pre > cut, m * pre + c, 0.0).relu()

    def _activation(self, edit: Kwargs, x: torch.Tensor) -> torch.Tensor:
        return self._codes(edit["sae"], x)[..., edit["column"]]

    def _reconstruction(self, edit: Kwargs, x: torch.Tensor) -> torch.Tensor:
        sae = edit["sae"]
        out = self._codes(sae, x) @ self.t[sae["W_dec"]] + self.t[sae["b_dec"]]
        centre, spread = self._norm(sae, x)
        return out * spread / sae["output_scale"] + centre


def attach(model: Any, folder: str | Path) -> Patch:
    """Put the patch of a folder on a model; returns what takes it off."""
    return Patch(model, folder)
