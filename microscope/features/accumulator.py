"""How one analysis sees a recording, and what it may look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from microscope.activations import Recording
from microscope.features.codes import Firings
from microscope.features.statistics import ActivationStatistics
from microscope.models import LoadedModel, TokenTexts
from microscope.params import AnalyseParams
from microscope.sae import SparseAutoencoder


class AnalysisContext:
    """What all analyses of one run share.

    Attributes:
        sae: the autoencoder.
        recording: what it fires on.
        loaded: the recorded model.
        params: the run's parameters.
        features: indices of the features that are described, ascending.
        memory_bytes: what one analysis may keep of a text, however long that is.
        statistics: firings, mean, maximum and percentiles of every latent; complete after the first pass.
        tokens: how many were read in the first pass.
        counted: how many of them the SAE's token filter keeps.
        left_out: what could not be found of any feature, and why; a sentence each.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        recording: Recording,
        loaded: LoadedModel,
        params: AnalyseParams,
        features: np.ndarray,
    ) -> None:
        self.sae, self.recording, self.loaded, self.params = sae, recording, loaded, params
        self.features = features
        self.memory_bytes = params.memory_mb * 2**20 // 8
        self.statistics = ActivationStatistics(sae.config.n_latents)
        self.tokens = self.counted = 0
        self.left_out: list[str] = []

    @property
    def text(self) -> TokenTexts:
        """The text of a token by its id."""
        return self.loaded.texts

    @cached_property
    def density(self) -> np.ndarray:
        """The share it fires on of the tokens that are counted, of every latent; after the first pass."""
        return self.statistics.firings / self.counted

    def add(self, firings: Firings) -> None:
        """A chunk of the first pass."""
        self.statistics.add(firings)
        self.tokens += len(firings.chunk.doc)
        self.counted += firings.counted


class Accumulator:
    """One analysis: it sees every firing of a recording twice, chunk by chunk, and then describes the features.

    An SAE's weights, the model and what the passes found are in ``context``. What it keeps of a text must stay
    within ``context.memory_bytes``.
    """

    def __init__(self, context: AnalysisContext) -> None:
        self.context = context

    def first_pass(self, firings: Firings) -> None:
        """See a chunk, in the order of the text."""

    def between_passes(self) -> None:
        """The first pass is complete: choose what to look for in the second."""

    def second_pass(self, firings: Firings) -> None:
        """See the same chunk again."""

    @abstractmethod
    def results(self) -> Iterator[Any]:
        """What was found of each of ``context.features``, in their order.

        One value (a number, a text or None), or for an analysis with columns a list of rows of values.
        """
