"""BERT-style encoders: record, train, evaluate, analyse; no next token, so no loss and no promoted tokens."""

from __future__ import annotations

import numpy as np
import pytest

from microscope.activations import BOS, SPECIAL, Recording, record
from microscope.errors import MicroscopeError
from microscope.evaluation import evaluate
from microscope.features import analyse
from microscope.live import ResidentModel
from microscope.models import load_model
from microscope.params import AnalyseParams, EvaluateParams, TraceParams, TrainParams
from microscope.training import train


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_whole_way_of_an_encoder(kind, tmp_path, model_folders, corpus):
    folder = str(tmp_path / "acts")
    record(
        TraceParams(
            model=str(model_folders[kind]),
            out=folder,
            layers=(2,),
            text=(str(corpus),),
            tokens=2500,
            context_length=32,
            held_out=0.2,
            dtype="float32",
            device="cpu",
        )
    )
    recording = Recording(folder)
    windows = [w for c in recording.chunks("train", recording.site("resid_post.2")) for w in c.windows()]
    assert {int(w.token[0]) for w in windows} == {1}
    assert {int(w.token[-1]) for w in windows[:-1]} == {2}
    assert all(w.flags[0] == SPECIAL | BOS and w.flags[-1] & SPECIAL for w in windows[:-1])
    assert np.bincount([len(w.token) for w in windows]).argmax() == 32
    sae = train(
        TrainParams(
            activations=folder, out=str(tmp_path / "sae"), layer=2, width=64, k=4, tokens=8000, batch_size=200
        )
    )
    result = evaluate(EvaluateParams(sae_path=str(tmp_path / "sae"), activations=folder))
    assert result.loss is None
    assert result.ordinary.n < result.every.n  # the wrapping tokens are not ordinary
    _, details = analyse(
        AnalyseParams(sae_path=str(tmp_path / "sae"), activations=folder, feature=int(sae.W_dec.shape[0]) - 1)
    )
    assert details[0].promoted == []
    with pytest.raises(MicroscopeError) as caught:
        ResidentModel(load_model(str(model_folders[kind])))
    assert caught.value.code == "unsupported_family"
