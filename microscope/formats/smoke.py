"""The first look at an imported SAE: does it reconstruct what the model really computes?

A wrong orientation, a lost scale or the wrong model shows at once in L0 and FVU.
"""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from torch import Tensor

from microscope.activations import Recording
from microscope.activations.forward import SiteReader
from microscope.activations.manifest import Split
from microscope.activations.token_filters import (
    PROBE_TEXT,
    kept_rows,
    settle_on_model,
    settle_on_recording,
    special_tokens,
)
from microscope.models import LoadedModel, check_site
from microscope.params import Site
from microscope.sae import SparseAutoencoder, TokenFilter

_MAX_ROWS = 4096
# Above this an SAE explains less than half of the variance: it does not belong here.
_HOPELESS_FVU = 0.5


class SmokeTest(msgspec.Struct, kw_only=True, frozen=True):
    """What an SAE does to real activations. ``passed`` means finite and an FVU of at most one half.

    ``tokens`` are those that its token filter keeps, ``left_out`` the others, and ``filter_rule`` says which
    these are. ``message`` says in words what was found.
    """

    tokens: int
    l0: float
    fvu: float
    nmse0: float
    not_finite: int
    passed: bool
    message: str
    left_out: int = 0
    filter_rule: str = ""


def smoke_test_on_recording(sae: SparseAutoencoder, recording: Recording) -> SmokeTest:
    """Test on rows of a recording, held-out ones where there are; an SAE without a token filter receives its.

    Raises:
        MicroscopeError: ``site_not_recorded`` or ``wrong_width``.
    """
    site = recording.site(sae.config.site)
    target = recording.site(sae.config.site_out) if sae.config.site_out else site
    token_filter = settle_on_recording(sae, recording)
    split: Split = "held_out" if recording.rows("held_out") else "train"
    chunks = list(recording.chunks(split, site, max_rows=_MAX_ROWS))
    wanted = chunks if target is site else list(recording.chunks(split, target, max_rows=_MAX_ROWS))
    if not chunks:
        return _nothing(0, token_filter)
    columns = [torch.cat([torch.from_numpy(c.values) for c in part]).float() for part in (chunks, wanted)]
    flags, norm = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("flags", "norm"))
    return smoke_test(sae, *columns, keep=torch.from_numpy(kept_rows(token_filter, flags, norm)))


def smoke_test_on_model(sae: SparseAutoencoder, loaded: LoadedModel, text: str = PROBE_TEXT) -> SmokeTest:
    """Test on what a model computes on a text; an SAE without a token filter receives one.

    Raises:
        MicroscopeError: ``layer_out_of_range``, ``no_such_site`` or ``wrong_width``.
    """
    sites = [Site.parse(sae.config.site)]
    if sae.config.site_out:
        sites.append(Site.parse(sae.config.site_out))
    for site in sites:
        check_site(site, loaded.n_layers)
    token_filter = settle_on_model(sae, loaded)
    ids = loaded.encode(text)[: loaded.max_context]
    tokens = torch.tensor([ids])
    with SiteReader(loaded, sites) as reader:
        caught = reader.read(tokens, torch.ones_like(tokens, dtype=torch.bool))
    x, target = (caught[str(site)][0].float().cpu() for site in (sites[0], sites[-1]))
    return smoke_test(sae, x, target, keep=token_filter.keep(special_tokens(loaded, ids), x.norm(dim=1)))


@torch.no_grad()
def smoke_test(sae: SparseAutoencoder, x: Tensor, target: Tensor, *, keep: Tensor | None = None) -> SmokeTest:
    """Test on given rows: inputs ``[rows, d_in]``, what they should become ``[rows, d_out]``, which count ``[rows]``.

    Raises:
        MicroscopeError: ``wrong_width``.
    """
    sae.check_width(x)
    rows = len(x)
    if keep is not None:
        x, target = x[keep], target[keep]
    left_out, token_filter = rows - len(x), sae.config.token_filter
    if not len(x):
        return _nothing(left_out, token_filter)
    codes = sae.encode(x)
    out = sae.decode(codes, x)
    finite = torch.isfinite(out).all(1)
    error = (out[finite] - target[finite]).double().square().sum()
    kept = target[finite].double()
    spread, size = (kept - kept.mean(0)).square().sum(), kept.square().sum()
    l0 = float((codes.values > 0).sum(1).double().mean())
    fvu = float(error / spread) if len(kept) > 1 else float("nan")
    bad = int((~finite).sum())
    passed = bad == 0 and bool(np.isfinite(fvu)) and fvu <= _HOPELESS_FVU
    return SmokeTest(
        tokens=len(x),
        l0=l0,
        fvu=fvu,
        nmse0=float(error / size) if len(kept) else float("nan"),
        not_finite=bad,
        passed=passed,
        message=_verdict(l0, fvu, bad, len(x), passed),
        left_out=left_out,
        filter_rule=token_filter.words,
    )


def _nothing(left_out: int, token_filter: TokenFilter) -> SmokeTest:
    """No token counts: nothing is known about the SAE."""
    return SmokeTest(
        tokens=0,
        l0=float("nan"),
        fvu=float("nan"),
        nmse0=float("nan"),
        not_finite=0,
        passed=False,
        message=f"Nothing to test on: all {left_out} tokens are left out ({token_filter.words}).",
        left_out=left_out,
        filter_rule=token_filter.words,
    )


def _verdict(l0: float, fvu: float, bad: int, tokens: int, passed: bool) -> str:
    found = f"On {tokens} tokens: L0 {l0:.1f}, FVU {fvu:.3f}"
    if bad:
        return f"{found}; {bad} reconstructions are not finite. The files are damaged or of another format."
    if passed:
        return f"{found}. The SAE fits."
    if not np.isfinite(fvu):
        return f"{found}. The tokens are all alike, so that no variance is left to explain."
    return f"{found}. An FVU this high means the wrong model, site or scale: check them before using the SAE."
