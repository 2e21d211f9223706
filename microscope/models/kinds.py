"""What a configuration is a model of: which class of ``transformers`` is built, or why none is.

Every causal language model of the installed ``transformers`` is built, and of a multimodal model its text
part. Families that are declared as encoders are built with their own head. All others are refused by what
they are: encoder–decoders, encoders, and models of images or sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

from microscope.errors import MicroscopeError
from microscope.models.families import declared_family

# Text parts that have no causal class of their own and, for text alone, compute what another type's class
# does: their positions have three axes, which are equal where there is no image. None of their weights differ.
_SAME_FUNCTION = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
}
_REMEDY = "Causal language models of transformers load, text parts of multimodal ones, and as encoders BERT and RoBERTa."
# What models of transformers are, by the tables that list them; the first that fits is said.
_TABLES = (
    (("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"), "an encoder–decoder model"),
    (
        ("MASKED_LM", "TEXT_ENCODING", "QUESTION_ANSWERING", "SEQUENCE_CLASSIFICATION"),
        "a text encoder, which predicts no next token",
    ),
    (
        ("AUDIO_CLASSIFICATION", "CTC", "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM", "AUDIO_XVECTOR"),
        "a model of sound",
    ),
    (
        (
            *("IMAGE_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "MASKED_IMAGE_MODELING", "BACKBONE"),
            *("OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION"),
            *("IMAGE", "IMAGE_TO_IMAGE", "MASK_GENERATION", "VIDEO_CLASSIFICATION", "KEYPOINT_DETECTION"),
        ),
        "a model of images",
    ),
)


@dataclass(frozen=True)
class Kind:
    """A model as its configuration describes it.

    ``config`` is that of what is built and ``build`` its class; ``whole`` is the configuration of the
    multimodal model whose text part that is, None where the model is text alone.
    """

    config: PretrainedConfig
    build: Any
    whole: PretrainedConfig | None = None


def check_known(settings: dict[str, Any], reference: str) -> None:
    """Refuse a ``model_type`` that the installed ``transformers`` has no code for.

    Raises:
        MicroscopeError: ``unsupported_family``.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type in CONFIG_MAPPING:
        return
    own = "; it comes with code of its own, which is never run" if settings.get("auto_map") else ""
    raise MicroscopeError(
        "unsupported_family",
        f"{reference} is of type '{model_type[:60]}', which transformers {transformers.__version__} has no code "
        f"for{own}.",
        "Use a version of transformers that knows it, or a conversion to a type that this one knows.",
    )


def kind_of(config: PretrainedConfig, reference: str) -> Kind:
    """What is built from a configuration.

    Raises:
        MicroscopeError: ``unsupported_family`` saying what the model is instead of a causal one.
    """
    family = declared_family(config.model_type)
    if family is not None and not family.causal:
        return Kind(config, _table("MASKED_LM", config))
    if config.is_encoder_decoder or _saved_with_encoder(config):
        raise _refused(config, reference, "an encoder–decoder model")
    text = _text_config(config, reference)
    build = _causal_class(text, config)
    if build is None:
        text, build = _same_function(text)
    if build is None:
        if text is not config and _table("MULTIMODAL_LM", config) is not None:
            what = f"a multimodal model, and transformers has no model of its text part ({text.model_type}) alone"
            raise _refused(config, reference, what)
        raise _refused(config, reference, _described(config))
    if not getattr(text, "is_decoder", True) and _table("MASKED_LM", text) is not None:
        raise _refused(config, reference, "a text encoder, whose tokens see those that follow them")
    if _text_config(config, reference) is config:
        return Kind(text, build)
    if whole_class(config) is None:
        what = (
            "a model of several parts that transformers does not build whole, to compare its text part with"
        )
        raise _refused(config, reference, what)
    # Of what ends an answer the whole model often says more.
    if getattr(config, "eos_token_id", None) is not None:
        text.eos_token_id = config.eos_token_id
    return Kind(text, build, whole=config)


def whole_class(config: PretrainedConfig) -> Any:
    """The class of a multimodal model with all its parts, or None."""
    tables = (
        "MULTIMODAL_LM",
        "IMAGE_TEXT_TO_TEXT",
        "SPEECH_SEQ_2_SEQ",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "PRETRAINING",
    )
    found = [_table(name, config) for name in tables]
    return next((build for build in found if build is not None), None)


def _saved_with_encoder(config: PretrainedConfig) -> bool:
    """Whether what was saved is an encoder–decoder, of whose type there are decoders alone, too."""
    both = (_table("SEQ_TO_SEQ_CAUSAL_LM", config), _table("SPEECH_SEQ_2_SEQ", config))
    names = {build.__name__ for build in both if build is not None}
    return not names.isdisjoint(config.architectures or ()) and _table("CAUSAL_LM", config) not in both


def _text_config(config: PretrainedConfig, reference: str) -> PretrainedConfig:
    try:
        found: PretrainedConfig = config.get_text_config(decoder=True)
    except ValueError as error:  # several, none of them the main one
        raise _refused(
            config, reference, "a model of several parts, none of which is its text model"
        ) from error
    return found


def _causal_class(text: PretrainedConfig, config: PretrainedConfig) -> Any:
    """The class of a causal model that a configuration is of; those that need images or sound are none."""
    build = _table("CAUSAL_LM", text)
    if build is None and text is not config:
        # Some text parts are listed under the multimodal model's type only.
        build = _table("CAUSAL_LM", config)
        build = build if build is not None and build.config_class is type(text) else None
    if build is None:  # and some classes of text in another table only
        build = _table("MULTIMODAL_LM", text)
        build = build if build is not None and build.__name__.endswith("ForCausalLM") else None
    return build


def _same_function(text: PretrainedConfig) -> tuple[PretrainedConfig, Any]:
    model_type = _SAME_FUNCTION.get(text.model_type)
    if model_type is None:
        return text, None
    settings = {name: value for name, value in text.to_dict().items() if name != "model_type"}
    positions = dict(settings.get("rope_parameters") or {})
    positions.pop("mrope_section", None)
    positions.pop("mrope_interleaved", None)
    config = CONFIG_MAPPING[model_type](**settings | {"rope_parameters": positions})
    return config, _table("CAUSAL_LM", config)


def _table(name: str, config: PretrainedConfig) -> Any:
    """The class that one of the tables of ``transformers`` has for a configuration, or None."""
    found = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING").get(type(config), None)
    return found[0] if isinstance(found, (list, tuple)) else found


def _described(config: PretrainedConfig) -> str:
    for tables, what in _TABLES:
        if any(config.model_type in getattr(modeling_auto, f"MODEL_FOR_{n}_MAPPING_NAMES") for n in tables):
            return what
    return "no causal language model"


def _refused(config: PretrainedConfig, reference: str, what: str) -> MicroscopeError:
    return MicroscopeError(
        "unsupported_family", f"{reference} ({config.model_type}) is {what}; it cannot be loaded.", _REMEDY
    )
