"""Quality at equal steps: our TopK SAE against those of sparsify and SAELens, several seeds each.

Every contestant trains on the same rows of one recording, with the same batch, number of steps and
schedule, and with the best of the given learning rates, chosen on the first seed. All are measured by
the same evaluation on held-out documents: FVU, CE recovered, dead latents. Peers run in the environment
that ``make peers`` installs. Their weights are checked to give the peer's own reconstruction.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from benchmarks import inputs, report
from benchmarks.contest import Settings
from microscope.activations import Recording, ShuffledRows
from microscope.evaluation import evaluate
from microscope.params import EvaluateParams, TrainParams
from microscope.sae import SaeConfig, TokenFilter, architecture, load_sae, save_sae
from microscope.training import train

_OURS = "microscope"
_PEERS = ("sparsify", "SAELens")
_PEER_PYTHON = Path(".venv-peers/bin/python")
# Two-sided 95 % of Student's t by number of seeds.
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def ordinary_rows(recording: Recording, site: str, out: Path) -> Path:
    """The training rows that pass the token filter, in one float16 array for the peers."""
    if not out.exists():
        rows = ShuffledRows(recording, recording.site(site), seed=0, buffer_bytes=2**40)
        np.save(out, next(rows.batches(rows.rows_per_epoch)).numpy())
    return out


def train_ours(args: argparse.Namespace, lr: float, seed: int, out: Path) -> None:
    common = {"width": args.width, "k": args.k, "tokens": args.tokens, "batch_size": args.batch}
    train(
        TrainParams(
            activations=args.recording,
            out=str(out),
            layer=args.layer,
            lr=lr,
            seed=seed,
            order_seed=seed,
            warmup=args.warmup,
            decay=args.decay,
            checkpoint_seconds=1e6,
            **common,
        )
    )


def train_peer(peer: str, args: argparse.Namespace, rows: Path, lr: float, seed: int, out: Path) -> None:
    spec = {
        "lr": lr,
        "seed": seed,
        "width": args.width,
        "k": args.k,
        "tokens": args.tokens,
        "batch": args.batch,
        "warmup": args.warmup,
        "decay": args.decay,
        "threads": torch.get_num_threads(),
        "aux": 1 / 32,
        "dead_after": args.tokens // 20,
    }
    weights = out.with_name(f"{out.name}.safetensors")
    script = Path(__file__).with_name("quality_peers.py")
    subprocess.run([_PEER_PYTHON, script, peer, rows, weights, json.dumps(spec)], check=True)
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        meta = file.metadata()
    recording = Recording(args.recording)
    site = recording.site(f"resid_post.{args.layer}")
    scale = float(meta["scale"])
    sae = architecture("topk")(
        SaeConfig(
            architecture="topk",
            d_in=site.width,
            n_latents=args.width,
            k=args.k,
            site=site.site,
            scale=scale,
            apply_b_dec=True,
            token_filter=TokenFilter(exclude_special=True, max_norm=site.outlier_norm),
        )
    ).requires_grad_(False)
    sae.load_state_dict({n: tensors[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")})
    got, expected = sae(tensors["sample"] / scale) * scale, tensors["reconstruction"]
    off = (got - expected).norm(dim=1) / expected.norm(dim=1)
    # Between two latents that tie up to rounding either may win: that is one row in hundreds, not a wrong weight.
    if float((off > 1e-4).float().mean()) > 0.01:
        raise SystemExit(
            f"{peer}: the weights give another reconstruction than the peer's own (median {float(off.median()):.1e})."
        )
    sae.config.training = {"seconds": float(meta["seconds"])}
    save_sae(sae, out)


def measured(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    result = folder / "quality.json"
    if not result.exists():
        params = EvaluateParams(
            sae_path=str(folder),
            activations=args.recording,
            layer=args.layer,
            loss_contexts=args.loss_contexts,
            bootstrap=0,
        )
        found = evaluate(params)
        numbers = {
            "fvu": found.ordinary.fvu,
            "dead": found.usage.dead_share,
            "l0": found.usage.l0,
            "ce_recovered": found.loss.ce_recovered
            if found.loss and found.loss.ce_recovered is not None
            else math.nan,
            "seconds": load_sae(folder).config.training["seconds"],
        }
        result.write_text(json.dumps(numbers))
    numbers_of: dict[str, float] = json.loads(result.read_text())
    return numbers_of


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return values[0], math.nan
    half = _STUDENT.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def run(args: argparse.Namespace) -> dict[str, Any]:
    data = Path(args.data)
    data.mkdir(parents=True, exist_ok=True)
    recording = Recording(args.recording)
    rows = ordinary_rows(recording, f"resid_post.{args.layer}", data / "rows.npy")
    contestants = [_OURS] + [p for p in _PEERS if p in args.peers and _PEER_PYTHON.exists()]
    table: dict[str, Any] = {}
    for name in contestants:
        results: dict[tuple[float, int], dict[str, float]] = {}

        def result(lr: float, seed: int, name: str = name, results: Any = results) -> dict[str, float]:
            folder = data / f"{name}-lr{lr:g}-s{seed}"
            if not (folder / "sae.json").exists():
                if name == _OURS:
                    train_ours(args, lr, seed, folder)
                else:
                    train_peer(name, args, rows, lr, seed, folder)
            results[lr, seed] = measured(args, folder)
            print(f"{name} lr {lr:g} seed {seed}: {results[lr, seed]}", flush=True)
            return dict(results[lr, seed])

        best = min(args.lr, key=lambda lr: result(lr, args.seeds[0])["fvu"])
        each = [result(best, seed) for seed in args.seeds]
        table[name] = {"lr": best, **{key: interval([e[key] for e in each]) for key in each[0]}}
    return table


def markdown(table: dict[str, Any], args: argparse.Namespace) -> str:
    head = (
        f"TopK, n {args.width}, k {args.k}, {args.tokens:,} training tokens in batches of {args.batch}, "
        f"{len(args.seeds)} seeds; mean ± half the 95 % interval.\n\n"
        "| trained by | learning rate | held-out FVU | CE recovered | dead on held-out text |\n|---|---|---|---|---|\n"
    )
    rows = [
        f"| {name} | {row['lr']:g} | {row['fvu'][0]:.4f} ± {row['fvu'][1]:.4f} "
        f"| {row['ce_recovered'][0]:.4f} ± {row['ce_recovered'][1]:.4f} "
        f"| {row['dead'][0]:.2%} ± {row['dead'][1]:.2%} |"
        for name, row in table.items()
    ]
    return head + "\n".join(rows) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--recording", required=True, help="folder of a recording")
    parser.add_argument("--layer", type=int, default=inputs.LAYER)
    parser.add_argument("--data", required=True, help="folder for what is trained; reused")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--peers", nargs="*", default=list(_PEERS))
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--warmup", type=float, default=0.05)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--loss-contexts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


_QUICK = ["--seeds", "0", "--lr", "3e-3", "--tokens", "40000", "--loss-contexts", "2"]


def sections(settings: Settings) -> Iterator[report.Section]:
    """One table. It takes an hour and a half, so it is measured only when it is named."""
    title = "Quality at equal steps"

    def measure() -> str:
        places = [
            "--recording",
            str(inputs.recording(settings) if settings.quick else inputs.long_recording(settings)),
            "--data",
            str(settings.data / ("quality-quick" if settings.quick else "quality")),
            "--threads",
            str(settings.threads),
        ]
        args = _parser().parse_args(places + (_QUICK if settings.quick else []))
        torch.set_num_threads(args.threads)
        return f"## {title}\n\n{markdown(run(args), args)}\n{report.footer(settings, 1)}"

    yield report.Section(title, measure)


def main(arguments: list[str] | None = None) -> None:
    """The same on any recording and with any settings."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    print(markdown(run(args), args))


if __name__ == "__main__":
    main()
