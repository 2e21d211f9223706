"""Every SAE that the peers' libraries are made to write: architecture by option, named by both.

No library is imported here: the peers' Python writes the files of these cases, the project's reads them.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

D, N, D_OUT, K = 16, 48, 12, 6
HEADS = 4
NORMS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
RANKED = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")


class Case(NamedTuple):
    """One folder of files.

    ``settings`` are the library's own; ``refused`` is the code of the refusal, or None where latents and
    reconstructions must agree.
    """

    name: str
    library: str
    kind: str
    settings: dict[str, Any]
    how: str = ""
    refused: str | None = None


def saelens() -> list[Case]:
    """Architectures as SAELens saves them: for inference, and as training leaves them with and without conversion."""
    cases = []
    inference = ("standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit", *TRANSCODERS)
    training = ("standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
    ways = [("inference", kind) for kind in inference]
    ways += [(how, kind) for how in ("checkpoint", "converted") for kind in training]
    for how, kind in ways:
        pre_bias = (False,) if kind in TRANSCODERS else (True, False)
        rescales = (True, False) if kind in RANKED else (None,)
        for norm, applied, rescale in itertools.product(NORMS, pre_bias, rescales):
            # whitening of a matching pursuit, whose encoder is its decoder, has no file of its own
            settings: dict[str, Any] = {"normalize_activations": norm, "apply_b_dec_to_input": applied}
            if rescale is not None:
                settings["rescale_acts_by_decoder_norm"] = rescale
            words = [how, kind, norm] + ["no-pre-bias"] * (not applied) + ["by-norm"] * bool(rescale)
            cases.append(
                Case("saelens-" + "-".join(words), "saelens", kind, settings, how, _refusal(kind, norm))
            )
    for norm in ("expected_average_only_in", "covariance_whitening"):
        for kind in ("standard", "gated", "topk", "jumprelu", "batchtopk"):
            for applied in (True, False):
                settings = {"normalize_activations": norm, "apply_b_dec_to_input": applied}
                words = ["scaled", kind, norm] + ["no-pre-bias"] * (not applied)
                cases.append(Case("saelens-" + "-".join(words), "saelens", kind, settings, "with_scaler"))
    for kind in ("standard", "topk", "jumprelu", "gated"):
        settings = {"reshape_activations": "hook_z"}
        cases.append(Case(f"saelens-inference-{kind}-hook_z", "saelens", kind, settings, "inference"))
    return cases


def _refusal(kind: str, norm: str) -> str | None:
    if kind in ("abstopk", "matching_pursuit"):
        return "unsupported_sae"
    if norm in ("expected_average_only_in", "covariance_whitening"):
        return "scale_unknown"
    return None


def sparsify() -> list[Case]:
    """Every combination of the fields of its configuration that are about the function."""
    cases = []
    for activation, transcode, skip, multi, normalise in itertools.product(
        ("topk", "groupmax"), (False, True), (False, True), (False, True), (False, True)
    ):
        settings = {
            "activation": activation,
            "transcode": transcode,
            "skip_connection": skip,
            "multi_topk": multi,
            "normalize_decoder": normalise,
            "k": K,
        }
        words = [activation] + [name for name, on in settings.items() if on is True]
        refused = "unsupported_setting" if multi else None
        cases.append(Case("sparsify-" + "-".join(words), "sparsify", activation, settings, "", refused))
    for activation in ("topk", "groupmax"):
        settings = {"activation": activation, "k": N}
        cases.append(Case(f"sparsify-{activation}-all", "sparsify", activation, settings))
    return cases


def dictionary_learning() -> list[Case]:
    """Its dictionary classes; those with a threshold also before training has set it."""
    plain = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder")
    ranked = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    cases = [Case(f"dictionary_learning-{k}", "dictionary_learning", k, {}) for k in (*plain, *ranked)]
    for kind in ranked:
        refused = None if kind == "AutoEncoderTopK" else "bad_sae"
        settings = {"threshold": -1.0}
        cases.append(
            Case(f"dictionary_learning-{kind}-fresh", "dictionary_learning", kind, settings, "", refused)
        )
    return cases


CASES = {case.name: case for case in (*saelens(), *sparsify(), *dictionary_learning())}
