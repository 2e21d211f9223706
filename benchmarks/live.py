"""The live path: a toggle's compute, a generated token, and the round trip through the whole portal."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks import inputs, live_decoding, toggle
from benchmarks.contest import OWN, Contest, Contestant, Settings, Standing, run
from benchmarks.report import Section, footer, goal, section

_PROMPT_TOKENS = 128
_STRENGTH = 30.0
_PRECISIONS = ("float32", "bfloat16")
_PLAIN = "plain forward"
_ALL, _HALF, _LAST = "toggle, all positions", "toggle, from the middle", "toggle, last 8"
_SEEN = "back to a seen state"
_NNSIGHT = "nnsight"
_OWN_BLOCKS_LAYER = 6
# Compute as a share of the plain forward pass of the same prompt.
_SHARES = {_ALL: 0.47, _HALF: 0.33, _LAST: 0.15}
_SEEN_MILLISECONDS = 3.0
_DECODING_TO_PLAIN, _PATCHED_TO_UNPATCHED = 1.2, 0.95


def sections(settings: Settings) -> Iterator[Section]:
    """Compute in both precisions, then round trips."""
    for dtype in _PRECISIONS[:1] if settings.quick else _PRECISIONS:
        title = f"Live, compute of a toggle, {dtype}"
        yield Section(title, lambda d=dtype, t=title: _toggles(settings, d, t))
        if dtype == "float32":
            title = "Live, compute of a toggle, own blocks"
            yield Section(title, lambda t=title: _own_blocks(settings, t))
        title = f"Live, a generated token, {dtype}"
        yield Section(title, lambda d=dtype, t=title: _decoding(settings, d, t))
    title = "Live, round trips"
    yield Section(title, lambda: _round_trips(settings, title))


# --- compute of a toggle ------------------------------------------------------------------------------


def _prompt(settings: Settings) -> tuple[str, list[int]]:
    """A text of exactly so many tokens, and the tokens."""
    tokenizer = AutoTokenizer.from_pretrained(inputs.model_folder(settings))
    speech = min(inputs.corpus_folder(settings).rglob("*.txt")).read_text()[:8000]
    ids = tokenizer(speech)["input_ids"]
    for start in range(len(ids) - _PROMPT_TOKENS):  # some pieces are tokenised differently alone
        chosen = ids[start : start + _PROMPT_TOKENS]
        text = tokenizer.decode(chosen)
        if tokenizer(text)["input_ids"] == chosen:
            return text, chosen
    raise AssertionError("no piece of the speech is tokenised alone as it is within")


def _toggles(settings: Settings, dtype: str, title: str) -> str:
    contest = Contest(
        title,
        "toggles/s",
        f"One edit at block {inputs.LAYER} of SmolLM2-135M with a strength not seen before, on a prompt of "
        f"{_PROMPT_TOKENS} tokens, to the next token's logits. The peers reuse nothing, so theirs takes the same "
        "time wherever the edit acts.",
        tuple(_contestants(settings, dtype)),
    )
    standings = run(contest, settings)
    return "\n".join([section(contest, standings, settings), "", *_toggle_goals(standings)])


def _contestants(settings: Settings, dtype: str) -> Iterator[Contestant]:
    text, ids = _prompt(settings)
    options = {
        "model": str(inputs.model_folder(settings)),
        "ids": ids,
        "dtype": dtype,
        "layer": inputs.LAYER,
        "strength": _STRENGTH,
        "times": 1 if settings.quick else 3,
    }
    own = {**options, "text": text}
    packages = ("torch", "transformers")
    for name, start in ((_ALL, 0), (_HALF, _PROMPT_TOKENS // 2), (_LAST, _PROMPT_TOKENS - 8)):
        yield Contestant(name, "live_ours:toggle", {**own, "start": start}, packages=packages, compared=True)
    yield Contestant(_SEEN, "live_ours:seen", {**own, "times": 50}, packages=packages)
    for name, entry, package in (
        (_PLAIN, "plain", "transformers"),
        ("plain forward with a hook", "hooked", "transformers"),
        ("PEFT adapter switched, forward", "peft", "peft"),
    ):
        yield Contestant(
            name,
            f"live_peers:{entry}",
            options,
            "peer",
            (package,),
            compared=entry == "plain",
            environment=OWN,
        )
    for name, entry, package, environment in (
        (_NNSIGHT, "nnsight", "nnsight", "nnsight"),
        ("TransformerLens, bridge", "lens_bridge", "transformer-lens", "peers"),
        ("TransformerLens, HookedTransformer", "lens_hooked", "transformer-lens", "peers"),
    ):
        yield Contestant(name, f"live_peers:{entry}", options, "peer", (package,), environment=environment)


def _own_blocks(settings: Settings, title: str) -> str:
    """As above with a model whose family has no composed path: its own blocks run."""
    contest = Contest(
        title,
        "toggles/s",
        f"One edit at block {_OWN_BLOCKS_LAYER} of 12 of a BLOOM of 122 million random weights in float32, run by the "
        f"model's own blocks, with a strength not seen before, on a prompt of {_PROMPT_TOKENS} tokens, to the next "
        "token's logits.",
        tuple(_own_blocks_contestants(settings)),
    )
    standings = run(contest, settings)
    return "\n".join([section(contest, standings, settings), "", *_own_blocks_goals(standings)])


def _own_blocks_contestants(settings: Settings) -> Iterator[Contestant]:
    text, ids = _prompt(settings)
    options = {
        "model": str(inputs.own_blocks_folder(settings)),
        "ids": ids,
        "dtype": "float32",
        "layer": _OWN_BLOCKS_LAYER,
        "strength": _STRENGTH,
        "times": 1 if settings.quick else 3,
    }
    own, packages = {**options, "text": text, "composed": False}, ("torch", "transformers")
    for name, start in ((_ALL, 0), (_HALF, _PROMPT_TOKENS // 2), (_LAST, _PROMPT_TOKENS - 8)):
        yield Contestant(name, "live_ours:toggle", {**own, "start": start}, packages=packages, compared=True)
    plain = Contestant(
        _PLAIN, "live_peers:plain", options, "peer", ("transformers",), compared=True, environment=OWN
    )
    inside = {**options, "blocks": "transformer.h"}
    hook = Contestant(
        "plain forward with a hook", "live_peers:hooked", inside, "peer", ("transformers",), environment=OWN
    )
    nnsight = Contestant(_NNSIGHT, "live_peers:nnsight", inside, "peer", ("nnsight",), environment="nnsight")
    yield from (plain, hook, nnsight)


def _own_blocks_goals(standings: list[Standing]) -> Iterator[str]:
    by_name = {s.contestant.name: s for s in standings}
    if by_name[_ALL].rates and by_name[_NNSIGHT].rates:
        ratio = by_name[_ALL].ratio(by_name[_NNSIGHT]).median
        yield goal(f"{_ALL}, speed ÷ {_NNSIGHT}", ratio, least=1.0)


def _toggle_goals(standings: list[Standing]) -> Iterator[str]:
    by_name = {s.contestant.name: s for s in standings}
    plain = by_name[_PLAIN]
    for name, share in _SHARES.items():
        if by_name[name].rates and plain.rates:
            yield goal(f"{name}, share of a plain forward", plain.ratio(by_name[name]).median, most=share)
    if by_name[_SEEN].rates:
        slowest = 1000 / min(by_name[_SEEN].rates)
        yield goal(f"{_SEEN}, ms in the slowest round", slowest, most=_SEEN_MILLISECONDS)


# --- a generated token --------------------------------------------------------------------------------


def _decoding(settings: Settings, dtype: str, title: str) -> str:
    torch.set_num_threads(settings.threads)
    speech = min(inputs.corpus_folder(settings).rglob("*.txt")).read_text()[:1000]
    tokens = 24 if settings.quick else 24 * settings.rounds
    rows = live_decoding.decoding(str(inputs.model_folder(settings)), speech, dtype, inputs.LAYER, tokens)
    lines = ["| | ms | speed ÷ plain | speed ÷ unpatched |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {r.milliseconds:.1f} | {1 / r.to_plain:.2f} | {1 / r.to_unpatched:.2f} |"
        for name, r in rows.items()
    ]
    about = (
        "A greedily generated token with keys and values kept; the columns are written in one process, token by "
        f"token in turn, {tokens} tokens each. Patched: one feature of 4,096 multiplied by 3."
    )
    ours = {name: row for name, row in rows.items() if name != live_decoding.PLAIN}
    patched = {name: row for name, row in ours.items() if name != live_decoding.UNPATCHED}
    goals = [
        goal(f"{name}, speed ÷ plain", 1 / row.to_plain, least=_DECODING_TO_PLAIN)
        for name, row in ours.items()
        if dtype == "bfloat16"  # in float32 both only wait for the weights to come from memory
    ]
    goals += [
        goal(f"{name}, speed ÷ unpatched", 1 / row.to_unpatched, least=_PATCHED_TO_UNPATCHED)
        for name, row in patched.items()
    ]
    return "\n".join([f"## {title}", "", about, "", *lines, "", footer(settings, 1), "", *goals])


# --- round trips --------------------------------------------------------------------------------------


def _round_trips(settings: Settings, title: str) -> str:
    model, corpus = inputs.model_file(settings), inputs.corpus_folder(settings)
    with tempfile.TemporaryDirectory(prefix="toggle-") as folder:
        data = Path(folder)
        for source in (model, corpus):  # where the portal looks before it downloads
            target = data / source.relative_to(settings.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        rows = toggle.run(
            users=[1, 8] if settings.quick else [1, 4, 8],
            seconds=5 if settings.quick else 30,
            tokens=64,
            data_dir=data,
        )
    about = (
        "From sending a plan over a WebSocket to having its answer, on loopback, in ms. Everybody toggles once a "
        "second, and every state is new but those of the last row."
    )
    lines = [
        f"## {title}",
        "",
        about,
        "",
        toggle.table(rows),
        "",
        footer(settings, 1),
        "",
        *toggle.goals(rows),
    ]
    return "\n".join(lines)
