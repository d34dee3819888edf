"""Bank entries of small media: what the deciding tests choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.cache.bank import Bank
from tokpipe.chain import Chain, build_chain
from tokpipe.decode import probe
from tokpipe.ingest import ingest
from tokpipe.recipe import load_recipe
from tokpipe.spec import MediaInfo
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe.testing.odd_media import odd_file

TINY = (64, 48)
#: Frames of a tiny picture have 3 x 2 cells.


class Entry:
    """A bank entry and the media it was made from."""

    def __init__(self, name: str, info: MediaInfo, bank: Bank) -> None:
        """Hold them; no dataclass, whose fields a failing property would print for pages."""
        self.name, self.info, self.bank = name, info, bank

    def __repr__(self) -> str:
        """Show the name."""
        return f"Entry({self.name})"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns, 0 x 0 without video."""
        rows, cols = (self.bank.meta["grid"] or (0, 0))[:2]
        return rows, cols

    def chains(self, recipe: str) -> dict[str, Chain]:
        """Chains of the recipe for the streams this media has."""
        made = load_recipe(recipe)
        there = {"video": self.info.video, "audio": self.info.audio}
        return {s: build_chain(s, c) for s, c in made.chains.items() if there[s] is not None}

    def candidates(self, recipe: str) -> tuple[int, int]:
        """Candidates (video, audio) of a recipe, counted by hand."""
        chains, (rows, cols) = self.chains(recipe), self.grid
        video = self.bank.num_frames * rows * cols if "video" in chains else 0
        return video, self.bank.meta["cells"] if "audio" in chains else 0


def drawing(seconds_a_scene: float) -> Callable[[int, float], NDArray[np.uint8]]:
    """Scenes of coloured blocks, one of which moves: some cells change, others stay."""

    def draw(_number: int, time: float) -> NDArray[np.uint8]:
        scene = np.random.default_rng(int(time / seconds_a_scene))
        picture = np.repeat(np.repeat(scene.integers(0, 256, (6, 8, 3)), 8, 0), 8, 1)
        left = int(time * 9) % 56
        picture[16:24, left : left + 8] = (250, 250, 20)
        return picture.astype(np.uint8)

    return draw


def _tiny(path: Path, seconds: int, audio: AudioTrack | None) -> None:
    video = VideoTrack(
        size=TINY, fps=Fraction(4), frames=4 * seconds, gop=20, b_frames=0, draw=drawing(12.5)
    )
    write_media(path, *([video] if audio is None else [video, audio]))


def _speech(seconds: int) -> AudioTrack:
    """Bursts in groups with silence in between."""
    bursts = [t + k / 5 for t in range(0, seconds, 4) for k in range(8)]
    return AudioTrack(duration=Fraction(seconds), bursts=bursts)


def _silence(seconds: int) -> AudioTrack:
    return AudioTrack(samples=np.zeros(16000 * seconds, np.float32))


def _write(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "long.mp4":
        _tiny(path, 200, _speech(200))
    elif name == "short.mp4":
        _tiny(path, 12, _speech(12))
    elif name == "video_only.mp4":
        _tiny(path, 12, None)
    elif name == "silent_track.mp4":
        _tiny(path, 8, _silence(8))
    else:
        odd_file(name).make(path)
    return path


GENERATED = (
    "long.mp4", "short.mp4", "video_only.mp4", "silent_track.mp4", "black.mp4", "one_frame.mp4",
    "audio_only.mp4", "animation.gif",
)  # fmt: skip
SAMPLES = ("lecture.mp4", "action.mp4", "screen.mp4", "late_audio.mp4")


@pytest.fixture(scope="session")
def entries(
    tmp_path_factory: pytest.TempPathFactory, samples: Path
) -> Iterator[Mapping[str, Entry]]:
    """Every entry by name; they are made once a session."""
    folder = tmp_path_factory.mktemp("decide")
    recipe = load_recipe("auto")
    made: dict[str, Entry] = {}
    for name in (*SAMPLES, *GENERATED):
        path = samples / name if name in SAMPLES else _write(folder, name)
        info = probe(path)
        there = {"video": info.video, "audio": info.audio}
        chains = {s: build_chain(s, c) for s, c in recipe.chains.items() if there[s] is not None}
        made[name] = Entry(name, info, ingest(path, info, chains, keep=False).bank)
    yield made
    for entry in made.values():
        entry.bank.close()
