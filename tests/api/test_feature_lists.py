"""Pages of the feature list: the same rows whichever way the database finds them."""

from __future__ import annotations

import itertools
import random
from urllib.parse import urlsplit

import pytest
from rest_framework.serializers import ModelSerializer

from apps.features.models import Feature
from apps.features.serializers import FeatureSerializer
from tests import factories as f

pytestmark = pytest.mark.postgres

ORDERINGS = [way + name for name in ("index", "density", "max_activation", "p999") for way in ("", "-")]


@pytest.fixture
def sae(world):
    """One with 400 features, many of which share their values and some their words."""
    chosen = random.Random(5)
    sae = f.AnalysisFactory(sae=f.SaeFactory(recording=world.recording), features=[]).sae
    Feature.objects.filter(sae=sae).delete()
    rows = []
    for index in range(400):
        density = chosen.choice((0.0, 1e-5, 0.001, 0.02))
        rows.append(
            Feature(
                sae=sae,
                index=index,
                density=density,
                firings=round(density * 1e6),
                max_activation=chosen.randrange(4),
                mean_activation=0.5,
                p999=chosen.randrange(3) / 2,
                dead=density == 0,
                top_tokens_text=chosen.choice((" peace\x1f war", " war", "", " Peaceful\x1f%")),
                promoted_text=chosen.choice(("", " peace")),
                label=chosen.choice(("", "", "peace talks")),
                starred=chosen.random() < 0.2,
                detail_offset=0,
                detail_length=0,
            )
        )
    Feature.objects.bulk_create(rows)
    return sae


def matches(row: Feature, filters: dict[str, str]) -> bool:
    """What the filters mean, row by row."""
    words = f"{row.label}\n{row.top_tokens_text}\n{row.promoted_text}".lower()
    return (
        filters.get("search", "").lower() in words
        and ("dead" not in filters or row.dead == (filters["dead"] == "true"))
        and float(filters.get("min_density", 0)) <= row.density <= float(filters.get("max_density", 1))
        and ("starred" not in filters or row.starred)
    )


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"dead": "false"},
        {"dead": "false", "min_density": "0.00001", "max_density": "0.001"},
        {"min_density": "0.001", "starred": "true"},
        {"search": "PEACE", "dead": "false"},
        {"search": "peace", "max_density": "0.001"},
        {"search": "nowhere"},
    ],
    ids=lambda filters: "+".join(filters) or "all",
)
def test_pages_are_the_sorted_list_in_pieces_forwards_and_backwards(sae, editor, ordering, filters) -> None:
    name = ordering.removeprefix("-")
    wanted = sorted(
        (row for row in Feature.objects.filter(sae=sae) if matches(row, filters)),
        key=lambda row: (getattr(row, name), row.index),
        reverse=ordering.startswith("-"),
    )
    query = {"sae": str(sae.pk), "ordering": ordering, "page_size": "60", **filters}
    pages = [editor.get("/api/v1/features", query).json()]
    while pages[-1]["next"]:
        pages.append(editor.get("/api/v1/features?" + urlsplit(pages[-1]["next"]).query).json())
    assert {page["count"] for page in pages} == {len(wanted)}
    found = [row["index"] for page in pages for row in page["results"]]
    assert found == [row.index for row in wanted]
    for page, later in itertools.pairwise(pages):
        before = editor.get("/api/v1/features?" + urlsplit(later["previous"]).query).json()
        assert [row["index"] for row in before["results"]] == [row["index"] for row in page["results"]]


def test_the_quick_representation_says_what_the_fields_say(sae) -> None:
    serializer = FeatureSerializer()
    for row in Feature.objects.filter(sae=sae)[:30]:
        assert serializer.to_representation(row) == ModelSerializer.to_representation(serializer, row)
