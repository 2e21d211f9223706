"""Apply a patch to a Hugging Face model. Needs torch and safetensors, and nothing else.

    from transformers import AutoModelForCausalLM
    from load_patch import attach

    model = AutoModelForCausalLM.from_pretrained("the base model")
    patch = attach(model, "this/folder")      # patch.remove() restores the model bit for bit

Edits act in hooks; weights are not touched. ``model.generate`` works as usual: with or without a cache,
dynamic or static, prompts padded on the left, beams, several answers to a prompt, prefilling in chunks,
assistants. Positions count the tokens of a text that are no padding. Start a new generation after attaching
or removing: cached keys and values belong to the model they were computed with. A patch of the text part of a
multimodal model acts on the whole model, too, where places of images are positions like others.

A patch that acts "while generating" has to know where the prompt ends. ``generate`` says it. In a loop of
your own, set ``patch.prompt_length`` to the columns of the prompt, padding included; without it the first
call on an empty cache counts as the prompt and single tokens on that cache as generated, and what is neither
is refused. A token whose position cannot be told raises a ValueError.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
# What models call their first arguments when their signature does not say.
_NAMES = ("input_ids", "attention_mask", "position_ids", "cache", "inputs_embeds")
_CACHES = ("cache", "past_key_values", "cache_params", "state")
# What each kind of edit adds to the stream, by name: defined at the end of this file.
CHANGES: dict[str, Callable[..., Tensor]] = {}


class _Call(threading.local):
    """What a thread's present call of the model, and its generation, are about."""

    generating: int | None = None  # columns of the prompt, while generate() runs
    began: Tensor | None = None  # tokens of the last call on an empty cache
    seen = 0  # columns the cache of that text has by now
    position: Tensor | None = None  # of each token in its text, [batch, columns]
    counting: Any = None  # the cache of this call, where it has no length of its own
    behind = is_special = torch.empty(0)


class Patch:
    """Hooks on a model. ``remove()`` takes them off again."""

    def __init__(self, model: Any, folder: str | Path) -> None:
        folder = Path(folder)
        self.spec = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
        base, config = self.spec["base"], model.config
        whole = self.spec.get("whole", {})
        if config.model_type == whole.get("model_type"):  # the patch is for the text part of this model
            self.spec |= whole
            config = config.get_text_config(decoder=True)
            base["model_type"] = config.model_type
        width = base.get("hidden_size", base["d_model"])
        at = model.get_submodule
        try:
            blocks = len(at(self.spec["blocks"]))
        except AttributeError:
            blocks = None
        found = (config.model_type, getattr(config, "hidden_size", width), blocks)
        if found != (base["model_type"], width, base["n_layers"]):
            raise ValueError(f"the patch is for {base}, this model is {found}")
        device = next(model.parameters()).device
        self.t = {k: v.to(device) for k, v in load_file(folder / "rows.safetensors").items()}
        self.special = torch.tensor(self.spec["special_tokens"], dtype=torch.long, device=device)
        all_edits = [edit for edits in self.spec["sites"].values() for edit in edits]
        strange = sorted({edit["kind"] for edit in all_edits} - CHANGES.keys())
        if strange:
            raise ValueError(f"this loader knows no '{strange[0]}'; use the load_patch.py of {folder}")
        where = [edit["positions"] for edit in all_edits]
        self.spares_special = any(not one["include_sinks"] for one in where)
        self.generates = any(one["mode"] == "generated" for one in where)
        self.needs_positions = any(one["mode"] != "all" for one in where)
        # Columns of the prompt, padding included, of all rows or of each ([batch, 1]); None: as generate() or
        # the first call on an empty cache says.
        self.prompt_length: int | Tensor | None = None
        self._call = _Call()
        # Columns seen by caches that do not say it: the state of a recurrent model has no length.
        self._lengths: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.model, self._names = model, _names(model)
        self._forget_generate = self._watch_generate()
        self.handles = [
            model.register_forward_pre_hook(self._see_tokens, with_kwargs=True),
            model.register_forward_hook(self._forget_tokens, always_call=True),
        ]
        for layer, edits in self.spec["sites"].items():
            self.handles.append(at(f"{self.spec['blocks']}.{layer}").register_forward_hook(self._site(edits)))
        for number, path in enumerate(self.spec["deltas"]):
            self.handles.append(at(path).register_forward_hook(self._delta_of(f"delta.{number}")))
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
        self._forget_generate()

    # --- where the columns of a call are in their texts ------------------------------------------------

    def _watch_generate(self) -> Callable[[], None]:
        """Let ``model.generate`` say how long the prompt is; returns what undoes that."""
        model, before = self.model, self.model.__dict__.get("generate")
        original = getattr(model, "generate", None)
        if original is None:
            return lambda: None
        live = True

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            # A generation inside another, as of a model that drafts for itself, continues the outer one's prompt.
            if not live or self._call.generating is not None:
                return original(*args, **kwargs)
            self._refuse_guidance(kwargs)
            if hasattr(getattr(model, "generation_config", None), "disable_compile"):
                kwargs.setdefault("disable_compile", True)  # a compiled model would not call the hooks anew
            given = kwargs.get("inputs_embeds")
            if given is None:
                given = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            # With a cache from before, the mask counts it, too. Without any prompt one token begins the text.
            known = [
                x.shape[1] for x in (given, kwargs.get("attention_mask")) if x is not None and x.dim() > 1
            ]
            self._call.generating, self._call.began = max(known, default=1), None
            try:
                return original(*args, **kwargs)
            finally:
                self._call.generating = self._call.began = None

        def forget() -> None:
            nonlocal live
            live = False  # in case somebody wrapped this in turn
            if model.__dict__.get("generate") is generate:
                if before is None:
                    del model.generate
                else:
                    model.generate = before

        model.generate = generate
        return forget

    def _refuse_guidance(self, kwargs: Kwargs) -> None:
        """Guidance runs a second text beside the first through the same model, with positions of its own."""
        configs = (kwargs.get("generation_config"), getattr(self.model, "generation_config", None))
        scales = [kwargs.get("guidance_scale"), *(getattr(c, "guidance_scale", None) for c in configs)]
        if self.needs_positions and next((s for s in scales if s is not None), 1) != 1:
            raise ValueError("the patch acts at positions, which guidance_scale counts in two texts")

    def _see_tokens(self, _module: Any, args: Args, kwargs: Kwargs) -> None:
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids, embedded = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None and embedded is None:
            raise ValueError("the patch needs input_ids")
        if ids is None and self.spares_special:
            raise ValueError(
                "the patch spares special tokens and cannot tell them in inputs_embeds; give input_ids"
            )
        tokens: Any = ids if ids is not None else embedded
        (batch, width), device = tokens.shape[:2], tokens.device
        start = self._cached(given, width)
        self._call.position = _positions(given, start, width, device, self.needs_positions).expand(
            batch, width
        )
        columns = torch.arange(start, start + width, device=device)
        prompt = self._prompt(ids, start, width)
        self._call.behind = columns >= (prompt.to(device) if isinstance(prompt, Tensor) else prompt)
        if ids is None:
            self._call.is_special = torch.zeros(batch, width, dtype=torch.bool, device=device)
        else:
            self._call.is_special = torch.isin(ids, self.special.to(device))

    def _cached(self, given: Kwargs, width: int) -> int:
        """Columns that are in the cache already, of a call with ``width`` new ones."""
        # Whatever a version of transformers calls it.
        found = [given[name] for name in _CACHES if given.get(name) is not None]
        found += [v for k, v in given.items() if k not in _CACHES and hasattr(v, "get_seq_length")]
        if not found:
            return 0
        cache, mask = found[0], given.get("attention_mask")
        if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list):
            return int(cache[0][0].shape[-2])  # keys of the first block, as old versions pass them
        with contextlib.suppress(AttributeError, ValueError):
            return int(cache.get_seq_length())
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > width:
            start = mask.shape[1] - width
        elif not self.needs_positions:
            return 0
        elif isinstance(cache, tuple | list) or not (cache in self._lengths or _is_empty(cache)):
            raise ValueError(f"the patch cannot tell how much is in a cache of type {type(cache).__name__}")
        else:
            start = self._lengths.get(cache, 0)
        if not isinstance(cache, tuple | list):
            self._call.counting, self._lengths[cache] = cache, start
        return start

    def _prompt(self, ids: Tensor | None, start: int, width: int) -> int | Tensor:
        """Columns of the prompt."""
        call = self._call
        known = call.generating if call.generating is not None else self.prompt_length
        if known is not None or not self.generates:
            return 0 if known is None else known
        remedy = "use model.generate, or set patch.prompt_length"
        if start == 0:
            before, call.began, call.seen = call.began, ids, width
            if before is not None and ids is not None and before.shape[0] == ids.shape[0]:
                n = before.shape[1]
                if n < width and torch.equal(before, ids[:, :n]):
                    raise ValueError(f"is this a longer prompt, or a prompt and what was generated? {remedy}")
            return width
        if width > 1 or start != call.seen:
            raise ValueError(f"is this more of the prompt, or generated? {remedy}")
        call.seen += width
        return start

    def _forget_tokens(self, *_: Any) -> None:
        call, position = self._call, self._call.position
        if call.counting is not None and position is not None:
            self._lengths[call.counting] = self._lengths.get(call.counting, 0) + position.shape[1]
        call.position = call.counting = None

    def _delta_of(self, name: str) -> Any:
        def hook(_module: Any, inputs: Args, output: Tensor) -> Tensor:
            a, b = self._row(f"{name}.A", output), self._row(f"{name}.B", output)
            return output + (inputs[0].float() @ a.T @ b.T).to(output.dtype)

        return hook

    def _row(self, name: str, beside: Tensor) -> Tensor:
        return self.t[name].to(beside.device)

    @staticmethod
    def _map(output: Any, change: Any) -> Any:
        if isinstance(output, tuple | list):
            return type(output)((change(output[0]), *output[1:]))
        return change(output)

    def _project(self, y: Tensor) -> Tensor:
        q = self._row("span", y)
        return (y.float() - (y.float() @ q) @ q.T).to(y.dtype)

    def _project_input(self, _module: Any, args: Args, kwargs: Kwargs) -> Any:
        if args:
            return (self._project(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._project(kwargs["hidden_states"])}

    def _site(self, edits: list[Kwargs]) -> Any:
        def change(x: Tensor) -> Tensor:
            if self._call.position is None or self._call.position.shape != x.shape[:2]:
                raise ValueError("call the model the patch was attached to, not a part of it")
            stream = x.float()
            total = torch.zeros_like(stream)
            for edit in edits:
                total += self._delta(edit, stream) * self._mask(edit, stream)[..., None]
            return x + total.to(x.dtype)

        return lambda _module, _inputs, output: self._map(output, change)

    def _mask(self, edit: Kwargs, x: Tensor) -> Tensor:
        assert self._call.position is not None
        where, position = edit["positions"], self._call.position.to(x.device)
        keep = position >= (where["start"] if where["mode"] == "from" else 0)
        if where["mode"] == "generated":
            keep = keep & self._call.behind.to(x.device)
        elif where["mode"] == "set":
            keep = keep & torch.isin(
                position, torch.tensor(where["indices"], dtype=torch.long, device=x.device)
            )
        if not where["include_sinks"]:
            keep = keep & ~self._call.is_special.to(x.device)
            if edit["max_norm"] is not None:
                keep = keep & (x.norm(dim=-1) <= edit["max_norm"])
        return keep

    def _delta(self, edit: Kwargs, x: Tensor) -> Tensor:
        change, amount = CHANGES[edit["kind"]], edit["amount"]
        if "row" not in edit:  # it reads the whole reconstruction
            return change(x, self._reconstruction(edit, x), amount)
        d = self._row(edit["row"], x)
        if "sae" not in edit:  # it reads the direction alone
            return change(x, d / d.norm(), amount)
        gain = self._norm(edit["sae"], x)[1] / edit["sae"]["output_scale"]
        return change(self._activation(edit, x), amount)[..., None] * gain * d

    def _norm(self, sae: Kwargs, x: Tensor) -> tuple[Any, Any]:
        if sae["input_norm"] == "constant_norm":
            return 0.0, x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        if sae["input_norm"] == "layer_norm":
            centre = x.mean(-1, keepdim=True)
            return centre, (x - centre).std(-1, keepdim=True)
        return 0.0, 1.0

    def _pre(self, sae: Kwargs, x: Tensor) -> Tensor:
        centre, spread = self._norm(sae, x)
        if sae["input_norm"] == "layer_norm":
            spread = spread + 1e-5
        elif sae["input_norm"] == "constant_norm":
            spread = spread.clamp_min(torch.finfo(torch.float32).tiny)
        u = (x - centre) / spread * sae["scale"]
        return u @ self._row(sae["W"], x).T + self._row(sae["b"], x)

    def _codes(self, sae: Kwargs, x: Tensor) -> Tensor:
        pre = self._pre(sae, x)
        if sae["gate"] == "topk":
            best = pre.topk(sae["k"], dim=-1)
            return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
        if sae["gate"] == "groupmax":
            groups = pre.unflatten(-1, (sae["k"], -1))
            best = groups.max(-1, keepdim=True)
            return torch.zeros_like(groups).scatter(-1, best.indices, best.values.relu()).flatten(-2)
        m, c, cut = self._row(sae["gate_rows"], x)
        return torch.where(pre > cut, m * pre + c, 0.0).relu()

    def _activation(self, edit: Kwargs, x: Tensor) -> Tensor:
        return self._codes(edit["sae"], x)[..., edit["column"]]

    def _reconstruction(self, edit: Kwargs, x: Tensor) -> Tensor:
        sae = edit["sae"]
        out = self._codes(sae, x) @ self._row(sae["W_dec"], x) + self._row(sae["b_dec"], x)
        centre, spread = self._norm(sae, x)
        return out * spread / sae["output_scale"] + centre


def _names(model: Any) -> tuple[str, ...]:
    """Names of a model's positional arguments."""
    try:
        found = tuple(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return _NAMES
    return found if "input_ids" in found else _NAMES


def _is_empty(cache: Any) -> bool:
    """Whether a recurrent model's cache is known to have seen nothing yet."""
    try:
        return not cache.has_previous_state()
    except (AttributeError, ValueError):
        return False


def _positions(given: Kwargs, start: int, width: int, device: torch.device, needed: bool) -> Tensor:
    """Positions ``[batch or 1, width]`` counted without padding on the left, which gets negative ones."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        if mask.shape[1] < start + width:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, but {start} are cached and {width} are new"
            )
        # Padding on the right repeats the last position; nothing is read from it.
        return (mask.to(device).long().cumsum(1) - 1)[:, start : start + width]
    if isinstance(positions, Tensor) and positions.dim() <= 2 and positions.shape[-1] == width:
        return positions.to(device).reshape(-1, width)
    if mask is not None and needed:
        raise ValueError(
            "the patch cannot read padding from this attention_mask; give one of [batch, positions], "
            "or position_ids"
        )
    return torch.arange(start, start + width, device=device)[None]


def attach(model: Any, folder: str | Path) -> Patch:
    """Put the patch of a folder on a model; returns what takes it off."""
    return Patch(model, folder)
