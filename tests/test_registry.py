"""The registry: one flat namespace, read without heavy imports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tokpipe import registry
from tokpipe.errors import RecipeError, UnknownOperator

ROOT = Path(__file__).parents[1]
OPERATORS = [n for n, e in registry.entries().items() if e.kind != "preset" and not e.plugin]


def test_registry_names_are_sorted_and_known() -> None:
    assert registry.names() == sorted(registry.names())
    assert {"mel", "silence-gate", "adjacent-merge"} <= set(registry.names())


def test_registry_stems_are_unique_over_all_folders() -> None:
    stems = [
        path.stem.replace("_", "-")
        for folder in ("sample", "encode", "compress/*")
        for path in (ROOT / "tokpipe").glob(f"{folder}/[a-z]*.py")
    ]
    stems += [path.stem for path in (ROOT / "tokpipe" / "recipes").glob("*.toml")]
    assert len(stems) == len(set(stems))
    assert set(stems) <= set(registry.names())


@pytest.mark.parametrize("name", OPERATORS)
def test_registry_operator_is_one_frozen_dataclass_with_a_source(name: str) -> None:
    entry, kind = registry.lookup(name), registry.load(name)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(kind)
    assert isinstance(vars(kind)["source"], str)
    assert vars(kind)["source"]
    assert entry.summary
    assert not entry.summary.endswith(".")


def test_registry_folder_gives_kind_and_mechanism() -> None:
    gate, mel = registry.lookup("silence-gate"), registry.lookup("mel")
    assert (gate.kind, gate.mechanism) == ("reducer", "transformation")
    assert (mel.kind, mel.mechanism) == ("encoder", "encoder")
    assert "mel" in registry.names("encoder")
    assert "mel" not in registry.names("reducer")


def test_registry_reads_summaries_without_heavy_imports() -> None:
    code = (
        "import sys; from tokpipe import registry, recipe\n"
        "assert all(e.summary for e in registry.entries().values())\n"
        "recipe.from_line('pixels')\n"
        "heavy = {'torch', 'av', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_registry_unknown_name_suggests() -> None:
    with pytest.raises(UnknownOperator, match="silence-gat") as caught:
        registry.load("silence-gat")
    assert caught.value.hint == "did you mean `silence-gate`?"


def test_registry_unknown_name_far_from_all_says_how_to_list() -> None:
    with pytest.raises(UnknownOperator) as caught:
        registry.lookup("zzzzqqqq")
    assert caught.value.hint is not None
    assert "ops list" in caught.value.hint


def plugin(folder: Path, target: str, name: str = "their-op") -> str:
    """Install a distribution with one entry point into ``folder``; code that loads it."""
    meta = folder / "theirs-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(f"[tokpipe.compressors]\n{name} = {target}\n")
    (folder / "theirs.py").write_text("class Op:\n    pass\n")
    return (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from tokpipe import registry\n"
        "from tokpipe.errors import RecipeError\n"
        "try:\n"
        f"    print(registry.load({name!r}).__name__)\n"
        "except RecipeError as error:\n"
        "    print('RecipeError', error, error.hint)\n"
    )


@pytest.mark.parametrize(
    ("target", "name", "told"),
    [
        ("theirs:Op", "their-op", "Op\n"),
        ("theirs:Nope", "their-op", "plug-in `their-op` of theirs does not import"),
        ("absent:Op", "their-op", "plug-in `their-op` of theirs does not import"),
        ("theirs:Op", "mel", "two operators are called `mel`"),
    ],
)
def test_registry_plugins_load_or_are_named(
    tmp_path: Path, target: str, name: str, told: str
) -> None:
    code = plugin(tmp_path, target, name)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told in done.stdout, done.stderr


def test_registry_presets_are_no_operators() -> None:
    presets = registry.names("preset")
    if not presets:
        pytest.skip("no presets are there yet")
    with pytest.raises(RecipeError, match="preset"):
        registry.load(presets[0])


def test_registry_finds_every_operator_file() -> None:
    files = [p.stem for p in (ROOT / "tokpipe").glob("compress/*/[a-z]*.py")]
    ours = [n for n in OPERATORS if registry.lookup(n).target.startswith("tokpipe.compress")]
    assert len(files) == len(ours)
