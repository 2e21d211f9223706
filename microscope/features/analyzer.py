"""Ask about single features from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from microscope.activations import Recording
from microscope.errors import MicroscopeError
from microscope.features.codes import CodeReader
from microscope.features.statistics import TokenStatistics
from microscope.models import TokenTexts
from microscope.params import Site
from microscope.sae import SparseAutoencoder


class FeatureAnalyzer:
    """Looks features up in a recording.

    Args:
        sae: the autoencoder.
        tokenizer: the model's Hugging Face tokenizer.
        activation_path: folder of a recording.
        layer_idx: block the recording and the SAE belong to.

    Raises:
        MicroscopeError: ``wrong_site`` when the SAE belongs to another layer, and the errors of
            :class:`Recording`.
    """

    def __init__(
        self, sae: SparseAutoencoder, tokenizer: Any, activation_path: str | Path, layer_idx: int
    ) -> None:
        site = Site.parse(sae.config.site)
        if site.layer != layer_idx:
            raise MicroscopeError("wrong_site", f"The SAE was trained at {site}, not at layer {layer_idx}.")
        self._sae, self._text = sae, TokenTexts(tokenizer)
        self._recording = Recording(activation_path)
        self._site = self._recording.site(str(site))

    def analyze_feature_tokens(
        self, feature: int, top_k: int = 10, max_tokens: int | None = None
    ) -> list[dict[str, Any]]:
        """The tokens on which a feature is strongest in sum.

        Returns:
            Up to ``top_k`` rows with ``token`` (id), ``text``, ``mean_activation`` where it fires and ``count``.

        Raises:
            MicroscopeError: ``no_such_feature`` or ``wrong_width``.
        """
        self._sae.check_feature(feature)
        codes = CodeReader(
            self._sae,
            self._recording,
            self._site,
            max_tokens=max_tokens,
            memory_bytes=0,
            features=np.array([feature]),
        )
        statistics = TokenStatistics(self._recording.manifest.model.vocab_size)
        for firings in codes:
            statistics.add(firings)
        return [
            {"token": token, "text": self._text(token), "mean_activation": mean, "count": count}
            for token, mean, count in statistics.top(top_k).get(feature, [])
        ]
