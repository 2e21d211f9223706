"""What SAELens's ``cfg.json`` says, in all its versions.

Version 6 nests what is known about the model in ``metadata``; before, everything lay side by side, the
activation was a text with arguments (``activation_fn_str``, ``activation_fn_kwargs``), and some files hold
the whole configuration of the training run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from microscope.errors import MicroscopeError
from microscope.formats.base import Hints
from microscope.formats.filters import stated_filter
from microscope.formats.settings import Settings, names, stated_assumptions
from microscope.formats.sites import site_of_hook, site_of_module
from microscope.params import Site
from microscope.sae import TokenFilter

NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
SCALED, WHITENED = "expected_average_only_in", "covariance_whitening"
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
BATCHED = ("batchtopk", "matryoshka_batchtopk")
_KNOWN = ("standard", "gated", "topk", "jumprelu", *BATCHED, *TRANSCODERS)
_WINNERS = ("topk", *BATCHED)

# How it was trained, stored and called: nothing of it enters the function.
_DESCRIPTIVE = names(
    """
    dtype device metadata sae_lens_version sae_lens_training_version neuronpedia_id
    model_class_name context_size prepend_bos exclude_special_tokens seqpos_slice dataset_path
    dataset_trust_remote_code hook_layer hook_layer_out hook_point_layer hook_eval expansion_factor
    decoder_init_norm l1_coefficient l1_warm_up_steps lp_norm jumprelu_init_threshold jumprelu_bandwidth
    jumprelu_sparsity_loss_mode jumprelu_tanh_scale jumprelu_ste_to_input target_l0 l0_coefficient
    l0_warm_up_steps pre_act_loss_coefficient use_sparse_activations aux_loss_coefficient
    topk_threshold_lr use_matryoshka_aux_loss mse_loss_normalization noise_factor
    init_encoder_as_decoder_transpose decoder_orthogonal_init decoder_heuristic_init
    decoder_heuristic_init_norm normalize_sae_decoder scale_sparsity_penalty_by_decoder_norm
    b_dec_init_method apply_b_dec_to_input_init from_pretrained_path finetuning_method finetuning_tokens
    training_tokens lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps n_restart_cycles adam_beta1
    adam_beta2 train_batch_size_tokens train_batch_size store_batch_size store_batch_size_prompts
    eval_batch_size_prompts n_eval_batches n_batches_in_buffer n_batches_for_norm_estimate
    activations_mixing_fraction use_cached_activations cached_activations_path is_dataset_tokenized streaming
    disable_concat_sequences sequence_separator_token use_chat_formatting use_ghost_grads
    feature_sampling_window feature_sampling_method feature_reinit_scale resample_batches dead_feature_window
    dead_feature_threshold dead_feature_estimation_method tokens_per_buffer total_training_tokens
    total_training_steps seed verbose autocast autocast_lm compile_llm llm_compilation_mode compile_sae
    sae_compilation_mode act_store_device llm_device prefetch_llm_batches n_checkpoints checkpoint_path
    save_final_checkpoint output_path resume resume_from_checkpoint run_name logger log_to_wandb
    log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb wandb_project wandb_id
    wandb_entity wandb_log_frequency eval_every_n_wandb_logs prepend_bos_token model_kwargs
    model_batch_size trainer_class training_architecture training_architecture_details
    """
)
# Arguments of TransformerLens that choose a file, a device or a number format.
_LOADING = names(
    """
    revision checkpoint_index checkpoint_value device n_devices dtype torch_dtype trust_remote_code cache_dir
    local_files_only token tokenizer default_padding_side default_prepend_bos move_to_device first_n_layers
    low_cpu_mem_usage attn_implementation hf_model load_in_4bit load_in_8bit fold_ln center_unembed
    """
)
# They change what a head's z is, and leave everything else alone.
_CHANGE_Z = ("fold_value_biases", "refactor_factored_attn_matrices")
_LAYER_NORM_FAMILIES = ("gpt2", "gpt_neox", "bert", "roberta")
_LAYER_NORM = re.compile(
    r"gpt-?2|gpt-?neo|pythia|neox|gpt-?j|\bopt-|bloom|tiny-?stories|solu|gelu-|attn-only|redwood",
    re.IGNORECASE,
)
_RMS_NORM = re.compile(
    r"llama|gemma|mistral|mixtral|qwen|\byi-|smollm|deepseek|olmo-?2|phi-?[34]", re.IGNORECASE
)


@dataclass
class SaeLensConfig:
    """What is understood of a ``cfg.json``."""

    kind: str
    site: str
    site_out: str | None
    k: int
    apply_b_dec: bool
    norm: str
    by_norm: bool
    finetuned: bool
    centred: bool
    d_in: int | None
    d_sae: int | None
    d_out: int | None
    groups: tuple[int, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    token_filter: TokenFilter = field(default_factory=TokenFilter)


def understand(settings: Settings, hints: Hints) -> SaeLensConfig:
    """Read the settings, old or new.

    Raises:
        MicroscopeError: ``unsupported_sae``, ``unsupported_setting``, ``unknown_setting``, ``site_unknown``,
            ``k_unknown`` or ``bad_sae``.
    """
    nested = "metadata" in settings
    meta = settings.nested("metadata") if nested else settings
    kind, k = _architecture(settings, hints)
    transcoder = kind in TRANSCODERS
    site, site_out = _sites(meta, hints, transcoder=transcoder)
    config = SaeLensConfig(
        kind=kind,
        site=site,
        site_out=site_out,
        k=k,
        apply_b_dec=_pre_bias(settings, transcoder=transcoder),
        norm=_norm(settings),
        by_norm=_by_norm(settings, kind),
        finetuned=settings.flag("finetuning_scaling_factor"),
        centred=_centred(meta, site, hints),
        d_in=settings.count("d_in"),
        d_sae=settings.count("d_sae"),
        d_out=settings.count("d_out"),
        groups=_groups(settings, kind),
        model={"reference": meta.text("model_name", "")},
        assumed=stated_assumptions(meta),
        token_filter=stated_filter(meta),
    )
    _check_reshape(settings, site)
    settings.finish(_DESCRIPTIVE)
    return config


def _architecture(settings: Settings, hints: Hints) -> tuple[str, int]:
    """The architecture and, where there is one, the number of winners."""
    kind = settings.text("architecture", "standard") or "standard"
    if kind == "abstopk":
        raise MicroscopeError(
            "unsupported_sae",
            "An abstopk SAE has latents of both signs; features here are never negative.",
            "There is nothing equivalent: use another SAE.",
        )
    if kind not in _KNOWN:
        raise MicroscopeError("unsupported_sae", f"SAELens's architecture '{kind}' is not supported.")
    activation, old_k = _old_activation(settings, kind)
    if activation == "topk":
        kind = "topk"
    if kind not in _WINNERS:
        return kind, 0
    k = settings.number("k", old_k)
    if old_k is not None and k != old_k:
        raise MicroscopeError(
            "bad_sae", f"{settings.file} sets k to {k:g} and activation_fn_kwargs.k to {old_k:g}."
        )
    if k is not None and (k < 1 or (kind == "topk" and k != int(k))):
        raise MicroscopeError("bad_sae", f"{settings.file} sets k to {k:g}, which is not a count of latents.")
    winners = hints.need_k(None if k is None else max(1, round(k)), settings.file)
    return kind, winners


def _old_activation(settings: Settings, kind: str) -> tuple[str, float | None]:
    """The activation of versions before 6, ``relu`` unless the file says another, and its k."""
    allowed = {"standard": ("relu", "topk"), "topk": ("topk",)}.get(kind, ("relu",))
    default = allowed[0]
    found = {
        settings.expect(
            key, *allowed, default=default, why=f"a {kind} SAE with this activation is not supported"
        )
        for key in ("activation_fn_str", "activation_fn")
        if key in settings or key == "activation_fn_str"
    }
    activation = "topk" if "topk" in found else "relu"
    arguments = settings.nested("activation_fn_kwargs")
    k = None
    if activation == "topk":
        k = arguments.number("k")
        _check_rectified(arguments)
        arguments.flag("use_sparse_activations")
    arguments.finish()
    return activation, k


def _check_rectified(arguments: Settings) -> None:
    """The winners of an old TopK must be rectified; an identity in its place keeps their signs."""
    arguments.expect(
        "signed", False, default=False, why="it keeps negative winners, which features here never are"
    )
    after = arguments.get("postact_fn", "relu")
    if str(after).strip().lower().removesuffix("()") not in ("relu", "torch.nn.relu", "nn.relu"):
        raise arguments.unsupported("postact_fn", after, "winners that are not rectified are not supported")


def _sites(meta: Settings, hints: Hints, *, transcoder: bool) -> tuple[str, str | None]:
    for key in ("hook_head_index", "hook_point_head_index", "hook_head_index_out"):
        if meta.get(key) is not None:
            raise meta.unsupported(key, meta.get(key), "an SAE of one head alone is not supported")
    model = meta.text("model_name", "") or hints.model
    reads = [meta.text(key) for key in ("hook_name", "hook_point", "hf_hook_name")]
    writes = [meta.text(key) for key in ("hook_name_out", "hook_point_out", "hf_hook_name_out")]
    site = hints.need_site(
        None if hints.site else _first_site(reads, model, hints.family),
        meta.file,
        said=next(filter(None, reads), ""),
    )
    found = None if hints.site_out else _first_site(writes, model, hints.family)
    said = next(filter(None, writes), "")
    if transcoder:
        return site, hints.need_site_out(found, meta.file, said=said)
    if said and found != site:
        raise MicroscopeError(
            "unsupported_sae", f"{meta.file} describes an SAE that reads {reads[0]} and writes {said}."
        )
    return site, None


def _first_site(names: list[str | None], model: str, family: str) -> str | None:
    for name in filter(None, names):
        end = "input" if name.endswith(".input") else "output"
        path = name.removesuffix(".input").removesuffix(".output")
        found = site_of_hook(name) or site_of_module(path, end, model=model, family=family)  # type: ignore[arg-type]
        if found:
            return found
    return None


def _pre_bias(settings: Settings, *, transcoder: bool) -> bool:
    if not transcoder:
        return settings.flag("apply_b_dec_to_input", True)
    settings.expect("apply_b_dec_to_input", False, default=False, why="a transcoder has no bias to subtract")
    return False


def _norm(settings: Settings) -> str:
    value = settings.get("normalize_activations", "none")
    if isinstance(value, bool):  # before version 3
        value = SCALED if value else "none"
    if value not in (*NORMS, SCALED, WHITENED):
        raise settings.unsupported("normalize_activations", value, "this normalisation is not supported")
    return str(value)


def _by_norm(settings: Settings, kind: str) -> bool:
    on = settings.flag("rescale_acts_by_decoder_norm")
    if on and kind not in _WINNERS:
        raise settings.unsupported("rescale_acts_by_decoder_norm", True, f"a {kind} SAE does not have it")
    return on


def _groups(settings: Settings, kind: str) -> tuple[int, ...]:
    if kind != "matryoshka_batchtopk":
        return ()
    widths, n = settings.get("matryoshka_widths", []), settings.count("d_sae")
    whole = isinstance(widths, list) and all(isinstance(w, int) and not isinstance(w, bool) for w in widths)
    ends = sorted({*widths, n} if n else set(widths)) if whole else []
    if not ends or ends[0] < 1 or (n and ends[-1] != n):
        raise MicroscopeError(
            "bad_sae",
            f"{settings.file} sets matryoshka_widths to {widths}, which are no prefixes of {n} latents.",
        )
    return tuple(ends)


def _check_reshape(settings: Settings, site: str) -> None:
    """Heads side by side are how z is read here, so the reshaping is already done; elsewhere it has no sense."""
    if settings.expect("reshape_activations", "none", "hook_z", default="none") == "hook_z":
        kind = Site.parse(site).kind
        if kind != "attn_z":
            raise settings.unsupported(
                "reshape_activations", "hook_z", f"the SAE reads {site}, which has no heads"
            )


def _centred(meta: Settings, site: str, hints: Hints) -> bool:
    """Whether the rows it was trained on had their own mean subtracted, by TransformerLens's processing.

    ``center_writing_weights`` takes the mean out of everything that is added to the residual stream, in
    models with LayerNorm; TransformerLens leaves models with RMSNorm as they are.
    """
    loading = meta.nested("model_from_pretrained_kwargs")
    kind = Site.parse(site).kind
    for key in _CHANGE_Z:
        if loading.flag(key) and kind == "attn_z":
            raise loading.unsupported(key, True, "it changes what the heads' z is")
    centred = loading.flag("center_writing_weights")
    assumed = loading.assumed("center_writing_weights")
    loading.finish(_LOADING)
    if not centred or kind in ("attn_z", "mlp_act"):
        return False
    model = meta.text("model_name", "") or hints.model
    if assumed or hints.family in _LAYER_NORM_FAMILIES or _LAYER_NORM.search(model):
        return True
    if hints.family or _RMS_NORM.search(model):
        return False
    raise loading.unsupported(
        "center_writing_weights",
        True,
        f"it acts in models with LayerNorm only, and '{model}' may have another",
    )
