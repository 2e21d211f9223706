"""Which runner serves a model: the fastest one that is proven to compute what the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from microscope.errors import MicroscopeError
from microscope.hardware import is_out_of_memory
from microscope.models.configuration import first_line
from microscope.models.declarations import decoder_of
from microscope.models.load import LoadedModel
from microscope.models.own_blocks import OwnBlocks
from microscope.models.plain_pass import plain_pass
from microscope.models.runner.base import BlockRunner
from microscope.models.runner.decoder import DecoderRunner
from microscope.models.runner.general import GeneralRunner
from microscope.models.runner.proof import Proof, prove, same_arguments

_NOT_COMPOSED = "fast path: there is none for this type of model"
# What was proven of a model, by the candidate's name, for the next that asks for a runner of it.
_proven: WeakKeyDictionary[Any, tuple[str, Proof, str]] = WeakKeyDictionary()


def runner_for(loaded: LoadedModel, *, fast: bool = True) -> BlockRunner:
    """A runner over the weights of a loaded model.

    Candidates are tried in the order of their speed, and the first that agrees with a plain pass of the model
    serves: our own composition of the weights where the family has one, the model's own blocks with caches,
    and the same without. ``runner.proof`` holds the numbers, ``runner.why`` why the faster ones do not serve.

    Args:
        loaded: the model.
        fast: False leaves out our own composition.

    Raises:
        MicroscopeError: ``unsupported_family`` with the numbers of all candidates, or ``model_is_spread``.
    """
    if loaded.spread:
        raise MicroscopeError(
            "model_is_spread",
            "Running a model block by block needs it on one device, and this one is spread over several.",
            "Load it on one device, in 8 or 4 bits if it does not fit otherwise.",
        )
    if not loaded.family.causal:
        raise MicroscopeError(
            "unsupported_family", f"Models of type '{loaded.config.model_type}' cannot be run live."
        )
    if fast and loaded.model in _proven:
        name, proof, why = _proven[loaded.model]
        return _named(dict(_candidates(loaded, fast=True))[name](), proof, why)
    model, family = loaded.model, loaded.family
    own = OwnBlocks(model, model.get_submodule(family.blocks))
    seen = plain_pass(own, loaded.vocab_size, loaded.device)
    against = [_NOT_COMPOSED] if fast and decoder_of(model.config.model_type) is None else []
    for name, build in _candidates(loaded, fast=fast):
        try:
            runner = build()
        except (
            Exception
        ) as error:  # models that want other arguments fail in as many ways as there are families
            if is_out_of_memory(error):
                raise
            against.append(f"{name}: it cannot be composed ({first_line(error)[:160]})")
            continue
        proof = prove(runner, seen)
        reason = proof.against
        if not reason and isinstance(runner, GeneralRunner):
            reason = same_arguments(runner.own.note(seen.tokens, None), seen.calls)
        if not reason:
            why = "; ".join(against)
            if fast:
                _proven[model] = name, proof, why
            return _named(runner, proof, why)
        against.append(f"{name}: {reason}")
    raise MicroscopeError(
        "unsupported_family",
        f"Models of type '{model.config.model_type}' cannot be run live: {'; '.join(against)}.",
        "Recording and training on its activations do not need this.",
    )


def _candidates(loaded: LoadedModel, *, fast: bool) -> Iterator[tuple[str, Callable[[], BlockRunner]]]:
    model, family = loaded.model, loaded.family
    declared = decoder_of(model.config.model_type) if fast else None
    if declared is not None:
        yield "fast path", lambda: DecoderRunner(model, declared, family, loaded.max_context)
    yield "the model's own blocks with caches", lambda: GeneralRunner(model, family)
    yield "the model's own blocks without", lambda: GeneralRunner(model, family, remembering=False)


def _named(runner: BlockRunner, proof: Proof, why: str) -> BlockRunner:
    runner.proof, runner.why = proof, why
    return runner
