"""Parameters and edits as data."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microscope.errors import MicroscopeError
from microscope.params import (
    JOB_PARAMS,
    Edit,
    EditPlan,
    FeatureRef,
    Positions,
    ProvenanceParams,
    Site,
    TraceParams,
    TrainParams,
    decode_params,
    field_specs,
    plan_fingerprint,
    validate_plan,
)
from microscope.params.schema import schema_components


def edit(**changes: object) -> Edit:
    base = {
        "kind": "scale",
        "site": "resid_post.2",
        "feature": FeatureRef(sae="a" * 32, index=3),
        "strength": 0.5,
    }
    return Edit(**(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("params", JOB_PARAMS.values())
def test_every_parameter_is_described_and_its_default_is_valid(params):
    for spec in field_specs(params):
        assert spec.description.endswith((".", ")", "…")), spec.name
        if spec.minimum is not None and spec.default is not None:
            assert all(d >= spec.minimum for d in (spec.default if spec.many else [spec.default]))


def test_unknown_and_wrong_fields_are_refused_by_name():
    good = {"activations": "a", "out": "b", "layer": 1}
    assert decode_params(TrainParams, good).width == (4096,)
    for bad, word in (
        ({"foo": 1}, "foo"),
        ({"layer": -1}, "layer"),
        ({"lr": 0}, "lr"),
        ({"k": 9, "width": 4}, "k is 9"),
    ):
        with pytest.raises(MicroscopeError, match=word):
            decode_params(TrainParams, good | bad)


def test_importing_parameters_costs_no_torch():
    code = "import sys, microscope, microscope.params; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_sites_read_both_naming_schemes():
    assert Site.parse("mlp_act.7") == Site.parse("blocks.7.mlp.hook_post") == Site("mlp_act", 7)
    assert Site.parse("resid_post.3").transformer_lens_name == "blocks.3.hook_resid_post"
    for text in ("resid_post", "resid_post.x", "nothing.3", "blocks.3.hook_nothing", ""):
        with pytest.raises(MicroscopeError, match="names no site"):
            Site.parse(text)


def test_plans_stored_by_version_1_keep_their_meaning_and_fingerprint():
    """Bytes and hash as version 1 wrote them."""
    stored = (
        b'{"edits":[{"kind":"scale","site":"resid_post.2","feature":{"sae":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",'
        b'"index":3},"strength":0.5,"unit":"raw","unit_value":1.0,"positions":{"mode":"from","start":1,'
        b'"indices":[],"include_sinks":false},"enabled":true},{"kind":"add","site":"resid_post.2","feature":'
        b'{"sae":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","index":3},"strength":2.0,"unit":"p999","unit_value":3.5,'
        b'"positions":{"mode":"all","start":0,"indices":[],"include_sinks":false},"enabled":true}],"version":1}'
    )
    plan = msgspec.json.decode(stored, type=EditPlan)
    assert plan.edits == (
        edit(positions=Positions(mode="from", start=1)),
        edit(kind="add", strength=2.0, unit="p999", unit_value=3.5),
    )
    assert plan_fingerprint(plan) == "0e349f5717072b516db48e3d9dcc09de"


def test_fingerprints_of_edits_without_a_feature_cover_what_they_do():
    lora = Edit(kind="lora", adapter="a" * 32, strength=1.0)
    splice = Edit(kind="splice", site="resid_post.1", sae="b" * 32)
    everywhere = edit(kind="ablate_everywhere")
    different = [
        lora,
        msgspec.structs.replace(lora, strength=0.5),
        msgspec.structs.replace(lora, adapter="c" * 32),
        msgspec.structs.replace(lora, modules=("model.layers.0.mlp.down_proj",)),
        splice,
        msgspec.structs.replace(splice, site="resid_post.2"),
        msgspec.structs.replace(splice, sae="c" * 32),
        msgspec.structs.replace(splice, positions=Positions(mode="generated")),
        everywhere,
        edit(kind="ablate"),
        edit(kind="clamp_firing"),
        edit(kind="clamp_all"),
    ]
    assert len({plan_fingerprint((one,)) for one in different}) == len(different)
    # what does not act does not count
    assert plan_fingerprint((msgspec.structs.replace(everywhere, strength=9.0),)) == plan_fingerprint(
        (everywhere,)
    )
    assert plan_fingerprint((msgspec.structs.replace(lora, strength=0.0),)) == ""
    for one in different:
        assert msgspec.json.decode(msgspec.json.encode(one), type=Edit) == one


def test_fingerprint_ignores_order_mutes_and_no_ops_but_nothing_else():
    one, two = edit(), edit(kind="add", strength=2.0)
    plan = EditPlan(edits=(one, two))
    assert plan_fingerprint(plan) == plan_fingerprint(EditPlan(edits=(two, one)))
    silent = (
        edit(enabled=False),
        edit(strength=1.0),
        edit(kind="add", strength=0.0),
        edit(kind="project", strength=1.0),
    )
    assert plan_fingerprint(EditPlan(edits=(one, *silent, two))) == plan_fingerprint(plan)
    assert plan_fingerprint(EditPlan(edits=silent)) == plan_fingerprint(EditPlan()) == ""
    for changed in (
        edit(strength=0.25),
        edit(site="resid_post.1"),
        edit(kind="project"),
        edit(feature=FeatureRef(sae="b" * 32, index=3)),
        edit(feature=FeatureRef(sae="a" * 32, index=4)),
        edit(positions=Positions(mode="from", start=1)),
        edit(positions=Positions(include_sinks=True)),
        edit(unit_value=2.0),
    ):
        assert plan_fingerprint(EditPlan(edits=(changed, two))) != plan_fingerprint(plan)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=6))
def test_plans_survive_json_and_msgpack_with_their_fingerprint(strengths):
    plan = EditPlan(edits=tuple(edit(strength=s) for s in strengths))
    for codec in (msgspec.json, msgspec.msgpack):
        again = codec.decode(codec.encode(plan), type=EditPlan)
        assert again == plan
        assert plan_fingerprint(again) == plan_fingerprint(plan)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (edit(strength=math.nan), "strength_not_finite"),
        (edit(strength=math.inf), "strength_not_finite"),
        (edit(unit_value=math.nan), "strength_not_finite"),
        (edit(site="mlp_out.1"), "site_not_editable"),
        (edit(site="resid_post.4"), "layer_out_of_range"),
        (edit(site="elsewhere"), "bad_site"),
        (edit(feature=FeatureRef(sae="a", index=-1)), "bad_feature"),
        (edit(positions=Positions(mode="set", indices=(2, -1))), "bad_positions"),
        (edit(feature=None), "incomplete_edit"),
        (edit(sae="a"), "incomplete_edit"),
        (edit(modules=("x",)), "incomplete_edit"),
        (Edit(kind="lora", strength=1.0), "incomplete_edit"),
        (edit(kind="lora", adapter="a"), "incomplete_edit"),
        (Edit(kind="splice", site="resid_post.1"), "incomplete_edit"),
        (Edit(kind="splice", site="mlp_out.1", sae="a"), "site_not_editable"),
        (edit(kind="ablate_everywhere", site="mlp_act.1"), "site_not_editable"),
        (edit(kind="ablate_everywhere", positions=Positions(mode="from", start=1)), "bad_positions"),
        (Edit(kind="lora", adapter="a", positions=Positions(mode="generated")), "bad_positions"),
    ],
)
def test_bad_edits_are_refused_with_their_number(bad, code):
    with pytest.raises(MicroscopeError) as caught:
        validate_plan(EditPlan(edits=(edit(), bad)), n_layers=4)
    assert caught.value.code == code
    if code != "bad_site":
        assert "Edit 2" in caught.value.message


@pytest.mark.parametrize(
    "number", [2**53 + 1, 2**63, 2**64, -(2**64), 10**400], ids=lambda n: f"{n:.0e}" if n < 2**99 else "huge"
)
@pytest.mark.parametrize("place", ["index", "start", "indices"])
def test_whole_numbers_that_not_everybody_can_hold_are_no_plan(number, place):
    """Some readers of JSON round them, msgpack and databases have no place for them."""
    feature = {"sae": "a", "index": number if place == "index" else 0}
    positions = {"mode": "set", "indices": [number]} if place == "indices" else {}
    positions |= {"start": number} if place == "start" else {}
    plan = {"edits": [{"kind": "ablate", "site": "resid_post.1", "feature": feature, "positions": positions}]}
    for read in (
        lambda: msgspec.convert(plan, type=EditPlan),
        lambda: msgspec.json.decode(json.dumps(plan), type=EditPlan),
    ):
        with pytest.raises(msgspec.ValidationError, match=place):
            read()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [0.1, math.nan]])
def test_no_parameter_may_be_nan_or_infinite(value):
    """A limit from below lets NaN and infinity pass."""
    many = isinstance(value, list)
    for params in JOB_PARAMS.values():
        for spec in field_specs(params):
            if spec.type == "number" and spec.many >= many:
                with pytest.raises(MicroscopeError) as caught:
                    decode_params(params, {spec.name: value})
                assert caught.value.code == "bad_parameters"
                assert spec.name in caught.value.message
                assert "finite" in caught.value.hint


def test_a_site_is_replaced_by_one_reconstruction_only():
    splice = Edit(kind="splice", site="resid_post.1", sae="a")
    validate_plan(EditPlan(edits=(splice, msgspec.structs.replace(splice, enabled=False))), n_layers=4)
    with pytest.raises(MicroscopeError, match="Edit 2 is a second splice"):
        validate_plan(EditPlan(edits=(splice, splice)), n_layers=4)


def test_a_plan_has_a_limit():
    with pytest.raises(MicroscopeError, match="257 edits"):
        validate_plan(EditPlan(edits=(edit(),) * 257), n_layers=4)


def test_trace_needs_a_layer():
    with pytest.raises(MicroscopeError, match="layers"):
        decode_params(TraceParams, {"model": "m", "out": "o", "layers": []})


def test_schemas_do_not_show_the_indentation_of_docstrings() -> None:
    class Told(msgspec.Struct):
        """One line.

        Another, indented in the code:
            and one further in.
        """

        description: str = ""

    (_,), found = schema_components([Told], "#/{name}")
    assert found["Told"]["description"] == (
        "One line.\n\nAnother, indented in the code:\n    and one further in."
    )
    assert found["Told"]["properties"]["description"] == {"type": "string", "default": ""}


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ({"feature": 3, "token": " a"}, "two_targets", ("--feature", "--token")),
        ({"attention": "1.0:2:1", "direction": "v.json"}, "two_targets", ("--attention", "--direction")),
        ({"token": "a", "token_id": 3}, "two_targets", ("--token", "--token-id")),
        ({"token": "a", "against": "b", "against_id": 3}, "two_targets", ("--against", "--against-id")),
        ({"feature": 3, "against": "b"}, "bad_target", ("--against", "--token")),
        ({"attention": "1:2:3"}, "bad_target", ("1:2:3",)),
        ({"attention": "1.0:٢:1"}, "bad_target", ("1.0:٢:1",)),
    ],
)
def test_one_thing_is_explained_at_a_time(given, code, named):
    with pytest.raises(MicroscopeError) as caught:
        decode_params(ProvenanceParams, {"model": "m", "prompt": "p", **given})
    assert caught.value.code == code
    assert all(name in caught.value.message for name in named)


@pytest.mark.parametrize("given", [{}, {"direction": "v.json"}])
def test_a_graph_needs_a_whole_target(given):
    with pytest.raises(MicroscopeError) as caught:
        decode_params(ProvenanceParams, {"model": "m", "prompt": "p", **given}).require_target()
    assert caught.value.code == "bad_target"


def test_an_attention_score_is_named_by_layer_head_query_and_key():
    params = decode_params(ProvenanceParams, {"model": "m", "prompt": "p", "attention": "5.3:11:-4"})
    assert params.attention_score() == (5, 3, 11, -4)
