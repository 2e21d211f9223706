"""What is measured on: the demo's model and text, prepared once and kept in the data folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BloomConfig

from benchmarks.contest import Settings
from microscope.activations import Recording, ShuffledRows, record
from microscope.formats import saelens
from microscope.models import load_model
from microscope.params import TraceParams, TrainParams
from microscope.sae import load_sae
from microscope.training import train
from workbench.demo import assets

LAYER = 15
CONTEXT = 128
SMALL_WIDTH = 256
SITE = f"resid_post.{LAYER}"


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file or folder that is complete when it has its name."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial-" + path.name)
        make(partial)
        partial.rename(path)
    return path


def model_file(settings: Settings) -> Path:
    """The demo model as it is fetched, a GGUF file."""
    return assets.fetch(settings.data)[0]


def model_folder(settings: Settings) -> Path:
    """The demo model as a Hugging Face folder in float32, which every contestant can load."""
    gguf = model_file(settings)

    def make(folder: Path) -> None:
        loaded = load_model(str(gguf), dtype="float32", device="cpu")
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    return _once(settings.data / "models" / assets.MODEL_NAME, make)


def own_blocks_folder(settings: Settings) -> Path:
    """A BLOOM of 122 million random weights with the demo model's tokenizer: a family without a composed path."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(settings))

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        config = BloomConfig(
            vocab_size=49_152,
            hidden_size=768,
            n_layer=12,
            n_head=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _once(settings.data / "models" / "bloom-random", make)


def corpus_folder(settings: Settings) -> Path:
    """The folder of speeches."""
    return assets.fetch(settings.data)[1]


def pieces_file(settings: Settings) -> Path:
    """The speeches in pieces of 300 words as JSONL: documents short enough that few contexts take several."""
    corpus = corpus_folder(settings)

    def make(path: Path) -> None:
        with path.open("w") as stream:
            for file in sorted(corpus.rglob("*.txt")):
                words = file.read_text().split(" ")
                for first in range(0, len(words) - 300, 300):
                    stream.write(json.dumps({"text": " ".join(words[first : first + 300])}) + "\n")

    return _once(settings.data / "corpora" / "pieces.jsonl", make)


def recording(settings: Settings) -> Path:
    """Block outputs of the layer on real text: 100,000 tokens, or 12,000 in a quick run."""
    return _recorded(settings, 12_000 if settings.quick else 100_000, 7 * CONTEXT)


def long_recording(settings: Settings) -> Path:
    """The same for half a million distinct training tokens."""
    return _recorded(settings, 640_000, None)


def block_saes(settings: Settings, layers: tuple[int, ...]) -> list[Path]:
    """TopK SAEs with 4,096 latents (k 32) of several blocks that were recorded in one pass."""
    tokens = 12_000 if settings.quick else 200_000
    name = "-".join(map(str, layers))

    def record_all(folder: Path) -> None:
        params = TraceParams(
            model=str(model_folder(settings)),
            out=str(folder),
            layers=layers,
            text=(str(corpus_folder(settings)),),
            tokens=tokens,
            tokens_per_document=7 * CONTEXT,
            resume=True,
        )
        record(params)

    source = _once(settings.data / "recordings" / f"blocks-{name}-{tokens}", record_all)

    def trained(layer: int) -> Path:
        def make(folder: Path) -> None:
            steps = 20_000 if settings.quick else 1_000_000
            train(
                TrainParams(activations=str(source), out=str(folder), layer=layer, tokens=steps, resume=True)
            )

        return _once(settings.data / "saes" / f"{source.name}-{layer}", make)

    return [trained(layer) for layer in layers]


def _recorded(settings: Settings, tokens: int, per_document: int | None) -> Path:
    def make(folder: Path) -> None:
        params = TraceParams(
            model=str(model_folder(settings)),
            out=str(folder),
            layers=(LAYER,),
            text=(str(corpus_folder(settings)),),
            tokens=tokens,
            tokens_per_document=per_document,
            resume=True,
        )
        record(params)

    return _once(settings.data / "recordings" / f"{SITE}-{tokens}", make)


def rows_file(settings: Settings) -> Path:
    """Ordinary rows of the recording in random order, scaled to a mean square norm of d: float32 ``.npy``."""
    source = recording(settings)

    def make(path: Path) -> None:
        opened = Recording(source)
        site = opened.site(SITE)
        stream = ShuffledRows(opened, site, seed=0, buffer_bytes=2**30)
        rows = next(stream.batches(min(stream.rows_per_epoch, 60_000))).float().numpy()
        rows *= site.width**0.5 / site.rms_norm
        with path.open("wb") as file:
            np.save(file, rows)

    return _once(settings.data / "rows" / f"{source.name}.npy", make)


def tokens_file(settings: Settings) -> Path:
    """Contexts of tokens ``[512, 128]`` int32 as ``.npy``: the speeches end to end, in shuffled pieces."""
    folder, corpus = model_folder(settings), corpus_folder(settings)

    def make(path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids: list[int] = []
        for file in sorted(corpus.rglob("*.txt")):
            if len(ids) > 1024 * CONTEXT:
                break
            ids += tokenizer(file.read_text(), verbose=False)["input_ids"] + [tokenizer.eos_token_id]
        windows = np.array(ids[: 1024 * CONTEXT], np.int32).reshape(-1, CONTEXT)
        with path.open("wb") as stream:
            np.save(stream, np.random.default_rng(0).permutation(windows)[:512])

    return _once(settings.data / "tokens" / f"{CONTEXT}.npy", make)


def sae_folder(settings: Settings) -> Path:
    """A TopK SAE with 4,096 latents (k 32) trained on the recording for 200,000 tokens."""
    source = recording(settings)

    def make(folder: Path) -> None:
        train(
            TrainParams(
                activations=str(source),
                out=str(folder),
                layer=LAYER,
                tokens=20_000 if settings.quick else 200_000,
                resume=True,
            )
        )

    return _once(settings.data / "saes" / source.name, make)


def sae_for_saelens(settings: Settings) -> Path:
    """The same SAE in SAELens's format."""
    source = sae_folder(settings)
    target = settings.data / "saes" / f"{source.name}-saelens"
    return _once(target, lambda folder: saelens.write(load_sae(source), folder))


def small_model_folder(settings: Settings) -> Path:
    """A random model of two blocks with the demo model's tokenizer: fast, and with rows of a usual size."""
    source = model_folder(settings)

    def make(folder: Path) -> None:
        config = AutoConfig.from_pretrained(source)
        config.num_hidden_layers = 2
        config.hidden_size = config.intermediate_size = SMALL_WIDTH
        config.num_attention_heads = config.num_key_value_heads = 4
        config.head_dim = SMALL_WIDTH // 4
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)

    return _once(settings.data / "models" / f"random-{SMALL_WIDTH}", make)


def small_recording(settings: Settings, *, layers: tuple[int, ...], tokens: int) -> Path:
    """A recording of the small model."""
    model, text = small_model_folder(settings), pieces_file(settings)

    def make(folder: Path) -> None:
        record(
            TraceParams(
                model=str(model),
                out=str(folder),
                layers=layers,
                text=(str(text),),
                tokens=tokens,
                held_out=0.2,
                dtype="float32",
                device="cpu",
                resume=True,
            )
        )

    return _once(settings.data / "recordings" / f"small-{tokens}", make)


def small_sae(settings: Settings, source: str, *, layer: int) -> Path:
    """An SAE with 512 latents (k 16) of the small model."""

    def make(folder: Path) -> None:
        train(
            TrainParams(
                activations=source,
                out=str(folder),
                layer=layer,
                width=(512,),
                k=(16,),
                tokens=50_000,
                device="cpu",
                resume=True,
            )
        )

    return _once(settings.data / "saes" / f"{Path(source).name}-512", make)
