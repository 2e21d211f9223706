"""The autoencoders and adapters that plans of a resident model may name."""

from __future__ import annotations

from pathlib import Path

from microscope.activations.token_filters import filter_on_model
from microscope.errors import MicroscopeError
from microscope.live.cache import AdapterCache, MemoryBudget, SaeCache, size_of
from microscope.models import LoadedModel
from microscope.patching.adapters import LowRankAdapter
from microscope.patching.hooks import check_called
from microscope.sae import SparseAutoencoder, TokenFilter


class Attached:
    """What has been attached to a model, by fingerprint.

    Reading (:meth:`read_sae`, :meth:`read_adapter`) may happen on any thread, everything else on the one that
    computes.

    Args:
        loaded: the model.
        limit: bytes that all of it may take in memory; above it the least recently used is read again when used.
    """

    def __init__(self, loaded: LoadedModel, limit: int) -> None:
        self._loaded = loaded
        self._derived: dict[str, TokenFilter] = {}  # by site, for SAEs without a token filter of their own
        self.budget = MemoryBudget(limit)
        self.saes = SaeCache(self.budget, loaded.device, self._complete_filter)
        self.adapters = AdapterCache(self.budget, loaded.device)

    def make_room_for(self, path: str | Path) -> None:
        """Evict what is needed before something is read."""
        self.budget.make_room(size_of(Path(path)))

    def read_sae(self, path: str | Path, *, expect: str = "") -> tuple[str, SparseAutoencoder] | None:
        """Read an SAE for :meth:`attach_sae`; None if it is attached already.

        Raises:
            MicroscopeError: ``no_sae``, ``bad_sae``, ``sae_too_big`` or ``wrong_sae`` (another fingerprint than
                expected).
        """
        return None if expect and expect in self.saes else self.saes.load(Path(path), expect=expect)

    def attach_sae(
        self, path: str | Path, *, expect: str = "", read: tuple[str, SparseAutoencoder] | None = None
    ) -> SparseAutoencoder:
        """Load an SAE, unless it is ``read`` already, so that plans may refer to it by fingerprint.

        Raises:
            MicroscopeError: what :meth:`read_sae` raises, or ``wrong_model`` (trained on a model with other
                weights).
        """
        if expect and expect in self.saes:
            return self.saes[expect]
        if read is None:
            self.make_room_for(path)
        found, sae = read or self.saes.load(Path(path), expect=expect)
        trained_on = sae.config.model.get("fingerprint")
        if trained_on and trained_on != self._loaded.fingerprint:
            raise MicroscopeError(
                "wrong_model",
                f"The SAE was trained on another model ({sae.config.model.get('reference')}).",
                "Attach it to the model it was trained on.",
            )
        self.saes.keep(found, sae, Path(path))
        return sae

    def read_adapter(self, path: str | Path, *, expect: str = "") -> tuple[str, LowRankAdapter] | None:
        """Read a low-rank adapter for :meth:`attach_adapter`; None if it is attached already.

        Raises:
            MicroscopeError: what :func:`load_adapter` raises, ``adapter_too_big`` or ``wrong_adapter`` (another
                fingerprint than expected).
        """
        return None if expect and expect in self.adapters else self.adapters.load(Path(path), expect=expect)

    def attach_adapter(
        self, path: str | Path, *, expect: str = "", read: tuple[str, LowRankAdapter] | None = None
    ) -> LowRankAdapter:
        """Load a low-rank adapter, unless it is ``read`` already, so that plans may refer to it by fingerprint.

        Raises:
            MicroscopeError: what :meth:`read_adapter` raises, ``wrong_model``, ``no_such_module``,
                ``wrong_adapter_shape`` or ``module_not_linear``.
        """
        if expect and expect in self.adapters:
            return self.adapters[expect]
        if read is None:
            self.make_room_for(path)
        found, adapter = read or self.adapters.load(Path(path), expect=expect)
        if adapter.model and adapter.model != self._loaded.fingerprint:
            raise MicroscopeError(
                "wrong_model",
                "The adapter was made for other weights than those of this model.",
                "Use it with the model it was made for.",
            )
        adapter.check(self._loaded.model)
        check_called(self._loaded, adapter.factors)
        self.adapters.keep(found, adapter, Path(path))
        return adapter

    def sae(self, fingerprint: str) -> SparseAutoencoder:
        """An attached SAE; raises :class:`MicroscopeError` ``sae_not_attached``."""
        found = self.saes.get(fingerprint)
        if found is None:
            raise MicroscopeError(
                "sae_not_attached",
                f"The SAE {fingerprint[:12]} is not attached to this model.",
                "Attach it first.",
            )
        return found

    def _complete_filter(self, sae: SparseAutoencoder) -> None:
        """Give an SAE that came without a token filter one that follows from this model and the SAE's site."""
        config = sae.config
        if not config.token_filter.known:
            if config.site not in self._derived:
                self._derived[config.site] = filter_on_model(self._loaded, config.site)
            config.token_filter = self._derived[config.site]
