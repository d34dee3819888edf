"""What ``tokpipe doctor`` looks at: one small function a topic."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

State = Literal["ok", "missing", "optional"]
_DECODERS = {
    "h264": "H.264",
    "hevc": "H.265",
    "vp9": "VP9",
    "av1": "AV1",
    "aac": "AAC",
    "opus": "Opus",
    "mp3": "MP3",
}
#: Extra: a module that is there when it is installed.
_EXTRAS = {
    "encoders": ("open_clip", "transformers", "timm"),
    "audio": ("torchaudio", "onnxruntime", "silero_vad"),
    "faiss": ("faiss",), "decord": ("decord",), "torchcodec": ("torchcodec",),
    "dataset": ("pyarrow", "fsspec"), "ray": ("ray",), "s3": ("s3fs",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        state: ``missing`` is needed and not there; ``optional`` is not there and need not be.
        fix: What to do about it, empty when nothing.
    """

    topic: str
    name: str
    state: State
    text: str
    fix: str = ""


def findings() -> Iterator[Finding]:
    """Look at everything; a check that breaks is a finding, too."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions, _devices, _decoders, _encoders, _bank, _extras, _self_test,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
            name = check.__name__.strip("_").replace("_", " ")
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield Finding(
                "check", name, "missing", text, "reinstall tokpipe in a fresh environment"
            )


def _versions() -> Iterator[Finding]:
    import tokpipe

    where = f"{platform.system()} {platform.machine()}"
    yield Finding("version", "tokpipe", "ok", tokpipe.__version__)
    yield Finding("version", "python", "ok", f"{platform.python_version()} on {where}")
    for name in ("torch", "av", "numpy", "pillow", "safetensors"):
        try:
            yield Finding("version", name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("version", name, "missing", "not installed", f"pip install {name}")
    import av

    libraries = ", ".join(
        f"{k} {'.'.join(map(str, v))}" for k, v in sorted(av.library_versions.items())
    )
    yield Finding("version", "FFmpeg", "ok", libraries)


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("device", "cpu", "ok", f"{torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            yield Finding(
                "device", f"cuda:{i}", "ok", f"{device.name}, {device.total_memory / 1e9:.0f} GB"
            )
    else:
        built = (
            f"torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "torch is built without CUDA"
        )
        yield Finding("device", "cuda", "optional", f"no device found; {built}")
    if platform.system() == "Darwin":
        there = torch.backends.mps.is_available()
        yield Finding(
            "device",
            "mps",
            "ok" if there else "optional",
            "available" if there else "not available",
        )


def _decoders() -> Iterator[Finding]:
    import av

    for name, label in _DECODERS.items():
        there = False
        for codec in (name, f"lib{name}", "libdav1d" if name == "av1" else name):
            try:
                av.Codec(codec, "r")
            except av.FFmpegError:
                continue
            except ValueError:
                continue
            there = True
            break
        fix = "" if there else "install PyAV from its own wheel: pip install --force-reinstall av"
        yield Finding(
            "decode",
            label,
            "ok" if there else "missing",
            "available" if there else "not available",
            fix,
        )


def _encoders() -> Iterator[Finding]:
    import av
    from PIL import features

    try:
        av.Codec("libopus", "w")
        opus = True
    except (av.FFmpegError, ValueError):
        opus = False
    fix = "" if opus else "install PyAV from its own wheel, or use --audio-codec flac"
    yield Finding(
        "encode", "Opus", "ok" if opus else "missing", "libopus" if opus else "not available", fix
    )
    webp = bool(features.check("webp"))
    fix = "" if webp else "install Pillow from its own wheel: pip install --force-reinstall pillow"
    yield Finding(
        "encode", "WebP", "ok" if webp else "missing", "pillow" if webp else "not available", fix
    )


def _bank() -> Iterator[Finding]:
    from tokpipe.cache.bank import bank_root
    from tokpipe_cli.words import size

    root = bank_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        text = f"{root} cannot be written: {error.strerror or error}"
        yield Finding(
            "bank", "folder", "missing", text, "set TOKPIPE_CACHE_DIR to a folder that can be"
        )
        return
    entries = [p for p in root.iterdir() if not p.name.startswith(".")]
    held = sum(f.stat().st_size for p in entries for f in p.rglob("*") if f.is_file())
    free = shutil.disk_usage(root).free
    text = f"{root}: entries {len(entries)}, {size(held)}; {size(free)} free"
    yield Finding("bank", "folder", "ok", text)


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if absent:
            yield Finding(
                "extra", extra, "optional", "not installed", f"pip install 'tokpipe[{extra}]'"
            )
        else:
            yield Finding("extra", extra, "ok", "installed")


def _self_test() -> Iterator[Finding]:
    """Make a clip of one second, compress it, check the cache."""
    from tokpipe.budget import Budget
    from tokpipe.cache.verify import verify
    from tokpipe.run import Options, compress_file
    from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

    with tempfile.TemporaryDirectory(prefix="tokpipe-doctor-") as folder:
        clip = Path(folder) / "clip.mkv"
        video = VideoTrack(fps=Fraction(10), frames=10, codec=_writer("libx264", "mpeg4"))
        audio = AudioTrack(duration=Fraction(1), bursts=(0.25,), codec=_writer("aac", "flac"))
        write_media(clip, video, audio)
        record = compress_file(clip, options=Options(budget=Budget.parse(64), keep_bank=False))
        report = verify(record.output, deep=True)
    if report.ok and record.tokens["total"] == 64:
        yield Finding(
            "test",
            "self-test",
            "ok",
            f"1 s of media to 64 tokens in {record.seconds['total']:.2f} s",
        )
    else:
        text = (
            f"{record.tokens['total']} tokens instead of 64"
            if report.ok
            else report.problems[0].message
        )
        yield Finding(
            "test",
            "self-test",
            "missing",
            text,
            "report this with the output of `tokpipe doctor --json`",
        )


def _writer(*names: str) -> str:
    """The first of these encoders that FFmpeg has."""
    import av

    for name in names:
        try:
            av.Codec(name, "w")
        except (av.FFmpegError, ValueError):
            continue
        return name
    return names[-1]
