"""Why a head attends: sums, the model's own attention weights, and formulas written out for GPT-2 and Llama."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.graphs import Attended
from microscope.models import LoadedModel, load_model
from microscope.provenance import attended
from microscope.sae import SparseAutoencoder
from tests.families.oracle import Plain
from tests.families.tiny import auto_class, make_any
from tests.live_rig import PROMPT, random_sae

QUERY, KEYS = 9, (9, 6, 4)
# Softmax attention of many kinds: biases, norms of queries and keys, distances, bounds, sinks, shared keys, windows.
SOFTMAX = (
    *(
        "gpt2",
        "llama",
        "gpt_neox",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "bloom",
        "mpt",
        "gpt_oss",
        "falcon",
    ),
    *(
        "openai-gpt",
        "opt",
        "mimo_v2_flash",
        "vaultgemma",
        "deepseek_v3",
        "jamba",
        "mixtral",
        "gptj",
        "phi",
        "cohere2",
    ),
)
BY_DISTANCE = ("bloom", "mpt")
BOUNDS = ("gemma2", "vaultgemma")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, LoadedModel]]:
    root, known = tmp_path_factory.mktemp("attended"), {}

    def load(name: str) -> tuple[Path, LoadedModel]:
        if name not in known:
            folder = make_any(name, root / name)
            known[name] = folder, load_model(str(folder), dtype="float32", device="cpu")
        return known[name]

    return load


def adds_up(found: Attended) -> None:
    """Pairs, and both lists of marginals, sum to what is bilinear; with the distance they are the score."""
    size = sum(abs(pair.attribution) for pair in found.pairs) + 1e-6
    for each in (found.pairs, found.query_contributors, found.key_contributors):
        assert abs(math.fsum(one.attribution for one in each) - found.bilinear) <= 1e-5 * size
    assert found.score == pytest.approx(
        found.bilinear + found.position_term, abs=1e-4 * max(1, abs(found.score))
    )
    for side, place in (("query_contributors", "query"), ("key_contributors", "key")):
        for number, contributor in enumerate(getattr(found, side)):
            own = math.fsum(p.attribution for p in found.pairs if getattr(p, place) == number)
            assert contributor.attribution == pytest.approx(own, abs=1e-5 * size)


def weights(folder: Path, name: str, ids: Sequence[int]) -> Sequence[Tensor | None]:
    """The attention weights that transformers itself returns, ``[heads, queries, keys]`` by block."""
    model = auto_class(name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(torch.tensor([list(ids)]), use_cache=False, output_attentions=True).attentions
    return [None if one is None else one[0] for one in found]


@pytest.mark.parametrize("name", SOFTMAX)
def test_scores_are_the_model_s_own(name, opened):
    folder, loaded = opened(name)
    ids = loaded.encode(PROMPT)
    layer = 1 if loaded.n_layers < 4 or name == "jamba" else 2
    own = weights(folder, name, ids)[0 if name == "jamba" else layer]
    assert own is not None
    head = own.shape[0] - 1
    found = [attended(loaded, ids, layer, head, QUERY, key) for key in KEYS]
    for key, one in zip(KEYS, found, strict=True):
        adds_up(one)
        assert one.weight == pytest.approx(float(own[head, QUERY, key]), rel=1e-3, abs=1e-6)
        if name in BY_DISTANCE:
            assert one.position_term if key != QUERY else True
        else:
            assert one.position_term == 0
    if name in BY_DISTANCE:
        assert len({one.position_term for one in found}) == len(KEYS)
    bound = getattr(loaded.config, "attn_logit_softcapping", None) if name in BOUNDS else None
    scores = [one.score if bound is None else bound * math.tanh(one.score / bound) for one in found]
    for score, key in zip(scores, KEYS, strict=True):
        told = math.log(float(own[head, QUERY, key]) / float(own[head, QUERY, KEYS[0]]))
        assert score - scores[0] == pytest.approx(told, abs=2e-4 * max(1.0, abs(score)))


@pytest.mark.parametrize("name", SOFTMAX)
def test_with_the_sae_in_front_features_are_the_contributors(name, opened):
    _, loaded = opened(name)
    layer = 1 if loaded.n_layers < 4 or name == "jamba" else 2
    sae = random_sae(32, layer - 1, 3)
    by_parts = attended(loaded, loaded.encode(PROMPT), layer, 0, QUERY, 4)
    found = attended(loaded, loaded.encode(PROMPT), layer, 0, QUERY, 4, {"sae": sae})
    adds_up(found)
    assert found.bilinear == pytest.approx(by_parts.bilinear, rel=1e-5)
    for side in (found.query_contributors, found.key_contributors):
        assert {c.kind for c in side} - {"bias"} == {"feature", "error"}
        assert len([c for c in side if c.kind == "feature"]) == 6
        assert {c.sae for c in side if c.kind != "bias"} == {"sae"}


# --- formulas ---------------------------------------------------------------------------------------------


def norm_matrix(x: Tensor, norm: Any, *, centred: bool) -> Tensor:
    """A norm at a row as a matrix, its denominator held."""
    d = len(x)
    centre = torch.eye(d, dtype=x.dtype) - (1 / d if centred else 0)
    row = centre @ x
    eps = norm.eps if centred else norm.variance_epsilon
    return torch.diag(norm.weight.double()) @ centre / (row.pow(2).mean() + eps).sqrt()


def turned(vector: Tensor, position: int, theta: float) -> Tensor:
    """Llama's rotary embedding of one head."""
    half = len(vector) // 2
    angle = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = vector[:half], vector[half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))


def features_of(sae: SparseAutoencoder, x: Tensor) -> dict[int, Tensor]:
    codes = sae.encode(x[None].float())
    found = zip(codes.values[0].tolist(), codes.indices[0].tolist(), strict=True)
    return {index: value * sae.W_dec[index].double() / 0.8 for value, index in found}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pairs_of_features_are_as_written_out(name, opened):
    _, loaded = opened(name)
    ids, layer, head, key = loaded.encode(PROMPT), 2, 3, 4
    sae = random_sae(32, 1, 3)
    found = attended(loaded, ids, layer, head, QUERY, key, {"sae": sae}, top=50)
    before, _ = Plain(loaded.model, torch.tensor(ids)).streams(torch.tensor(ids))
    x, y = (before[layer][position].double() for position in (QUERY, key))
    ends: list[Callable[[Tensor], Tensor]] = []
    if name == "gpt2":
        block: Any = loaded.model.transformer.h[layer]
        own = slice(8 * head, 8 * head + 8)
        for number, row in enumerate((x, y)):
            w = block.attn.c_attn.weight.double().T[32 * number : 32 * number + 32][own]
            m = w @ norm_matrix(row, block.ln_1, centred=True)
            ends.append(lambda v, m=m: m @ v)
    else:
        block = loaded.model.model.layers[layer]
        theta = loaded.config.rope_parameters["rope_theta"]
        width, kv = block.self_attn.head_dim, head // (4 // loaded.config.num_key_value_heads)
        projections = (block.self_attn.q_proj, head, QUERY, x), (block.self_attn.k_proj, kv, key, y)
        for linear, which, position, row in projections:
            w = linear.weight.double()[width * which : width * which + width]
            m = w @ norm_matrix(row, block.input_layernorm, centred=False)
            ends.append(lambda v, m=m, position=position: turned(m @ v, position, theta))
    at_query, at_key = features_of(sae, x), features_of(sae, y)
    checked = 0
    for pair in found.pairs:
        a, b = found.query_contributors[pair.query], found.key_contributors[pair.key]
        if a.kind == b.kind == "feature":
            assert a.index is not None
            assert b.index is not None
            q, k = ends[0](at_query[a.index]), ends[1](at_key[b.index])
            assert pair.attribution == pytest.approx(float(q @ k) / len(q) ** 0.5, rel=1e-3, abs=1e-5)
            checked += 1
    assert checked == 36


def test_components_are_what_was_written_below(opened):
    """Of GPT-2: every head, MLP and bias below, read off hooks, is what the list says it brings to the query."""
    _, loaded = opened("gpt2")
    ids, layer, head, key = loaded.encode(PROMPT), 2, 1, 4
    found = attended(loaded, ids, layer, head, QUERY, key, top=100)
    before, _ = Plain(loaded.model, torch.tensor(ids)).streams(torch.tensor(ids))
    blocks: Any = loaded.model.transformer.h
    seen: dict[tuple[str, int], Tensor] = {}

    def note(kind: str, at: int) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            seen[kind, at] = (inputs[0] if kind == "heads" else output)[0, QUERY].double()

        return hook

    handles = [blocks[at].mlp.register_forward_hook(note("mlp", at)) for at in range(layer)]
    handles += [blocks[at].attn.c_proj.register_forward_hook(note("heads", at)) for at in range(layer)]
    with torch.no_grad():
        loaded.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    x, y = (before[layer][position].double() for position in (QUERY, key))
    own, block = slice(8 * head, 8 * head + 8), blocks[layer]
    w, b = block.attn.c_attn.weight.double().T, block.attn.c_attn.bias.double()
    m = w[:32][own] @ norm_matrix(x, block.ln_1, centred=True)
    normed = norm_matrix(y, block.ln_1, centred=True) @ y + block.ln_1.bias.double()
    k = (w[32:64] @ normed + b[32:64])[own] / 8**0.5
    expected: dict[tuple[str, int | None, int | None], Tensor] = {
        ("embedding", None, None): before[0][QUERY].double()
    }
    for at in range(layer):
        expected["mlp", at, None] = seen["mlp", at]
        out = blocks[at].attn.c_proj
        for number in range(4):
            part = slice(8 * number, 8 * number + 8)
            expected["head", at, number] = seen["heads", at][part] @ out.weight.double()[part]
        expected["bias", at, None] = out.bias.double()
    bias = w[:32][own] @ block.ln_1.bias.double() + b[:32][own]
    told = {(c.kind, c.layer, c.head): c.attribution for c in found.query_contributors}
    assert told.keys() == expected.keys() | {("bias", layer, None)}
    for name, vector in expected.items():
        assert told[name] == pytest.approx(float(m @ vector @ k), rel=1e-3, abs=1e-5)
    assert told["bias", layer, None] == pytest.approx(float(bias @ k), rel=1e-3, abs=1e-5)


def test_what_is_not_listed_is_summed(opened):
    _, loaded = opened("gpt2")
    ids = loaded.encode(PROMPT)
    few, all_of_them = (attended(loaded, ids, 3, 0, QUERY, 4, top=top) for top in (3, 500))
    adds_up(few)
    adds_up(all_of_them)
    assert few.bilinear == all_of_them.bilinear
    assert [c.kind for c in few.query_contributors].count("other") == 1
    assert "other" not in {c.kind for c in all_of_them.query_contributors}
    assert len([c for c in few.key_contributors if c.kind not in ("bias", "other")]) == 3
    sizes = [abs(pair.attribution) for pair in few.pairs]
    assert sizes == sorted(sizes, reverse=True)


def test_derivatives_are_taken_a_few_at_a_time_where_they_are_large(opened, monkeypatch):
    _, loaded = opened("llama")
    ids = loaded.encode(PROMPT)
    whole = attended(loaded, ids, 2, 1, QUERY, 4, top=500)
    monkeypatch.setattr(sys.modules[attended.__module__], "MOST_BYTES", 1)
    pieces = attended(loaded, ids, 2, 1, QUERY, 4, top=500)
    for found, wanted in ((pieces.query_contributors, whole.query_contributors), (pieces.pairs, whole.pairs)):
        assert [one.attribution for one in found] == pytest.approx(
            [one.attribution for one in wanted], abs=1e-6
        )


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("llama", (9, 0, 9, 4), "layer_out_of_range"),
        ("llama", (2, 4, 9, 4), "no_such_head"),
        ("llama", (2, 0, 99, 4), "no_such_position"),
        ("llama", (2, 0, 4, 9), "not_visible"),
        ("gemma2", (0, 0, 13, 2), "not_visible"),  # outside the window
        ("jamba", (0, 0, 9, 4), "scores_unknown"),
        ("mamba", (1, 0, 9, 4), "scores_unknown"),
    ],
)
def test_what_cannot_be_told_is_refused(name, arguments, code, opened):
    _, loaded = opened(name)
    with pytest.raises(MicroscopeError) as caught:
        attended(loaded, loaded.encode(PROMPT), *arguments)
    assert caught.value.code == code
