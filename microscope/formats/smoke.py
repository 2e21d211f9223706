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
from microscope.models import LoadedModel, check_site
from microscope.params import Site
from microscope.sae import SparseAutoencoder

_MAX_ROWS = 4096
_SINK_FACTOR = 8.0
# Above this an SAE explains less than half of the variance: it does not belong here.
_HOPELESS_FVU = 0.5

PROBE_TEXT = (
    "The committee met on Tuesday to discuss the new bridge across the river. Its chair, an engineer by training, "
    "said that the old one had been built in 1931 and could no longer carry the traffic of a growing town. Several "
    "members asked about the cost: 4.2 million over three years, of which the region would pay a third.\n\n"
    "def mean(values):\n    return sum(values) / len(values)\n\n"
    "When water is heated to 100 degrees Celsius at sea level it begins to boil; on a high mountain, where the air is "
    "thinner, it boils earlier, and an egg takes longer to cook. “That is why,” she wrote in her diary, “we carry a "
    "pot with a heavy lid.” In the morning they went on, past two lakes and a small white church, until the valley "
    "opened and they could see the lights of the harbour."
)


class SmokeTest(msgspec.Struct, kw_only=True, frozen=True):
    """What an SAE does to real activations. ``passed`` means finite and an FVU of at most one half.

    Sinks (norm above eight times the median) are left out. ``message`` says in words what was found.
    """

    tokens: int
    l0: float
    fvu: float
    nmse0: float
    not_finite: int
    passed: bool
    message: str


def smoke_test_on_recording(sae: SparseAutoencoder, recording: Recording) -> SmokeTest:
    """Test on held-out rows of a recording.

    Raises:
        MicroscopeError: ``site_not_recorded`` or ``wrong_width``.
    """
    site = recording.site(sae.config.site)
    target = recording.site(sae.config.site_out) if sae.config.site_out else site
    columns = [
        torch.cat(
            [torch.from_numpy(c.values) for c in recording.chunks("held_out", place, max_rows=_MAX_ROWS)]
        ).float()
        for place in (site, target)
    ]
    return smoke_test(sae, *columns)


def smoke_test_on_model(sae: SparseAutoencoder, loaded: LoadedModel, text: str = PROBE_TEXT) -> SmokeTest:
    """Test on what a model computes on a text.

    Raises:
        MicroscopeError: ``layer_out_of_range``, ``no_such_site`` or ``wrong_width``.
    """
    sites = [Site.parse(sae.config.site)]
    if sae.config.site_out:
        sites.append(Site.parse(sae.config.site_out))
    for site in sites:
        check_site(site, loaded.n_layers)
    ids = loaded.tokenizer(text, verbose=False)["input_ids"][: loaded.max_context]
    tokens = torch.tensor([ids])
    with SiteReader(loaded, sites) as reader:
        caught = reader.read(tokens, torch.ones_like(tokens, dtype=torch.bool))
    columns = [caught[str(site)][0].float().cpu() for site in sites]
    return smoke_test(sae, columns[0], columns[-1])


@torch.no_grad()
def smoke_test(sae: SparseAutoencoder, x: Tensor, target: Tensor) -> SmokeTest:
    """Test on given rows: inputs ``[rows, d_in]`` and what they should become ``[rows, d_out]``.

    Raises:
        MicroscopeError: ``wrong_width``.
    """
    sae.check_width(x)
    norms = x.norm(dim=1)
    keep = norms <= _SINK_FACTOR * norms.median()
    x, target = x[keep], target[keep]
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
    )


def _verdict(l0: float, fvu: float, bad: int, tokens: int, passed: bool) -> str:
    found = f"On {tokens} tokens: L0 {l0:.1f}, FVU {fvu:.3f}"
    if bad:
        return f"{found}; {bad} reconstructions are not finite. The files are damaged or of another format."
    if passed:
        return f"{found}. The SAE fits."
    return f"{found}. An FVU this high means the wrong model, site or scale: check them before using the SAE."
