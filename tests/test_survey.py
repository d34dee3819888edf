"""Every row of the survey's lists stands somewhere, and what is said to run does."""

from __future__ import annotations

import pytest

from tokpipe import registry, survey


def test_rows_have_a_status_and_a_reason() -> None:
    for row in survey.rows():
        assert row.status in survey.STATUS, row.name
        assert set(row.lists) <= {"image", "vit", "video", "audio"} and row.lists
        assert row.reason or row.status in ("runs", "reading"), row.name
        assert row.runs or row.status != "runs", row.name


def test_what_rows_say_runs_is_registered() -> None:
    missing = {n for row in survey.rows() for n in row.runs} - set(registry.entries())
    assert not missing


def test_rows_are_named_once() -> None:
    slugs = [row.slug for row in survey.rows()]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize(
    "slug", ["agilepruner", "hivtp", "visiontrim", "topv", "zoo-prune", "adafv"]
)
def test_methods_without_a_full_description_are_listed_with_the_reason(slug: str) -> None:
    row = survey.find(slug)
    assert row is not None and row.status == "unspecified" and row.reason
    assert slug not in registry.entries()


def test_every_list_is_whole() -> None:
    count = {name: sum(name in row.lists for row in survey.rows())
             for name in ("image", "vit", "video", "audio")}  # fmt: skip
    assert count["image"] >= 105 and count["vit"] == 9
    assert count["video"] >= 112 and count["audio"] == 30
