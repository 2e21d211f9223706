"""The names promised to users, used as the README shows them."""

from __future__ import annotations

import torch

from microscope import ActivationRecorder, FeatureAnalyzer, LoRAPatcher, SparseAutoencoder, train_sae
from microscope.models import load_model


def test_the_whole_way_in_python(tmp_path, model_folders, corpus):
    folder = str(model_folders["qwen2"])
    recorder = ActivationRecorder(
        model_name=folder,
        layer_idx=2,
        output_path=str(tmp_path / "layer2.parquet"),
        max_samples=2000,
        context_length=32,
        held_out=0.2,
    )
    manifest = recorder.record(text=str(corpus))
    assert manifest.train.rows + manifest.held_out.rows == 2000
    sae = train_sae(
        activation_path=str(tmp_path / "layer2.parquet"),
        output_dir=str(tmp_path / "saes"),
        layer_idx=2,
        latent_dim=64,
        k=4,
        tokens=5000,
    )
    assert isinstance(sae, SparseAutoencoder)
    loaded = load_model(folder, dtype="float32")
    analyzer = FeatureAnalyzer(sae, loaded.tokenizer, str(tmp_path / "layer2.parquet"), 2)
    busiest = max(range(64), key=lambda i: len(analyzer.analyze_feature_tokens(i)))
    assert analyzer.analyze_feature_tokens(busiest, top_k=10)[0]["count"] > 0
    patcher = LoRAPatcher(loaded.model)
    ids = torch.tensor([[5, 9, 11]])
    before = loaded.model(ids).logits
    patch = patcher.create_feature_patch(
        feature_id="trigger", layer_idx=2, feature_vector=sae.decoder_direction(busiest), strength=-2.0
    )
    patcher.enable_patch(patch)
    assert not torch.equal(loaded.model(ids).logits, before)
    patcher.disable_patch(patch)
    assert torch.equal(loaded.model(ids).logits, before)
    assert (patcher.export(patch, tmp_path / "adapter") / "adapter_config.json").is_file()
