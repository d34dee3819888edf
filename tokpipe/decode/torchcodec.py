"""Fast reader for plain files: video by torchcodec on the CPU or a GPU, sound by PyAV.

Only the pictures somebody wants are decoded, with a search to each that is far from the last; the
others cost their packet's header. Times and ranks are those of the reference reader, taken from
the packets and compared with what torchcodec says of every picture. Files it would get wrong are
refused before their first picture, see ``_plain``. What it cannot show is damage that a decoder
conceals inside a picture: ``strict`` is therefore refused, and ``pyav`` stays the reference.

On the CPU a picture differs from the reference by 1 to 1.5 grey levels on average at the size of
a grid: the colours are converted before resizing, not after. Nor is it faster there, unless far
fewer pictures are wanted than there are key pictures: it is made for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tokpipe.decode._by_rank import WantedReader, not_strict, shrink
from tokpipe.decode._ffmpeg_log import complaints
from tokpipe.decode._plain import Reach, Shown, look
from tokpipe.decode._timeline import Timeline
from tokpipe.decode.pyav import MediaSource, StreamReader
from tokpipe.device import out_of_memory
from tokpipe.errors import DecodeError, MissingExtra, ResourceError
from tokpipe.protocols import Picture
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Seconds by which torchcodec's time of a picture, a float64, may differ from the packet's.
_CLOSE = 1e-5
#: How much swscale's cubic sharpens.
_SHARP = 0.6
_PYAV = "use --decoder pyav, which goes on past damage"
#: What torchcodec reads rightly: on a GPU only what was compared with the reference there.
CPU = Reach("torchcodec")
GPU = Reach(
    "torchcodec",
    formats=frozenset({"yuv420p"}),
    unchecked="is not checked on a GPU",
    turned="turned pictures are not checked on a GPU",
    hidden="its edit list is not checked on a GPU",
)


class TorchcodecSource(MediaSource):
    """A plain media file; the same interface as :class:`tokpipe.decode.pyav.MediaSource`.

    A picture keeps the decoder open and decodes when its pixels are asked for; asking in order is
    fast, in another order right but slow.
    """

    def __init__(
        self, path: Path, info: MediaInfo, *, strict: bool = False, device: str = "cpu"
    ) -> None:
        """Open nothing yet.

        Args:
            path: The file.
            info: As :func:`tokpipe.decode.probe` described it.
            strict: Refused here.
            device: ``cpu``, ``cuda`` or ``cuda:N``; where pictures are decoded and resized.

        Raises:
            ResourceError: Asked to be strict.
        """
        not_strict("torchcodec", strict)
        super().__init__(path, info)
        self.device = device
        self._shown: Shown | None = None

    def read(self) -> Iterator[Picture | AudioChunk]:
        """Pictures in presentation order and audio blocks.

        Raises:
            MissingExtra: torchcodec or FFmpeg's shared libraries are not there.
            UnsupportedMedia: The file is not plain.
            ResourceError: The device cannot decode.
            DecodeError: Nothing could be decoded; and from a picture's ``rgb``, damage.
        """
        if self.info.video is not None:
            self._shown = look(self.path, self.info, CPU if self.device == "cpu" else GPU)
        yield from super().read()

    def _pictures(self, box: Any, timeline: Timeline) -> StreamReader:
        assert self._shown is not None  # noqa: S101 - set by read where there is video
        return WantedReader(self, self._shown, box, timeline, _Decoder(self, self._shown))


class _Decoder:
    """torchcodec's decoder of one stream, checked picture by picture."""

    def __init__(self, source: TorchcodecSource, shown: Shown) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        self.path, self.video, self.zero = source.path, source.info.video, source.info.zero
        self.inner = _opened(self.path, self.video.index, source.device)
        if len(self.inner) != len(shown.pts):
            why = f"it counts {len(self.inner)} pictures where {len(shown.pts)} are shown"
            raise CPU.refusal(self.path, why)
        if source.device != "cpu":
            text = "damage inside pictures is not seen when a GPU decodes"
            source.report.note("damage-unseen", text)
        if source.device != "cpu" and bool(self.inner.cpu_fallback):
            text = f"the GPU does not decode {self.video.codec} of this kind; the CPU does"
            source.report.note("cpu-decode", text)

    def rgb(self, index: int, pts: float, width: int, height: int) -> NDArray[np.uint8]:
        return resized(self.picture(index, pts), width, height)

    def finish(self) -> None:
        """Keep open: pictures may yet be asked for."""

    def picture(self, index: int, pts: float) -> Tensor:
        """uint8 [H, W, 3] on the device."""
        try:
            with complaints() as heard:
                frame = self.inner.get_frame_at(index)
        except (RuntimeError, IndexError) as error:
            if out_of_memory(error):
                raise ResourceError(
                    "the GPU has no memory left to decode into",
                    hint="use a smaller --batch, or --decoder pyav",
                ) from error
            raise DecodeError(
                f"torchcodec cannot decode the picture at {pts:.3f} s of `{self.path.name}`",
                hint=_PYAV,
            ) from error
        if heard.count:
            raise DecodeError(
                f"`{self.path.name}` is damaged before {pts:.3f} s, and torchcodec does not show "
                "which pictures",
                hint=_PYAV,
            )
        if abs(frame.pts_seconds - self.zero - pts) > _CLOSE:
            got = frame.pts_seconds - self.zero
            raise DecodeError(
                f"torchcodec gave the picture at {got:.3f} s of `{self.path.name}` for the one "
                f"at {pts:.3f} s",
                hint="use --decoder pyav",
            )
        data: Tensor = frame.data
        if tuple(data.shape[:2]) != (self.video.height, self.video.width):
            raise CPU.refusal(self.path, f"the picture size changes at {pts:.3f} s")
        return data


def versions() -> dict[str, str]:
    """Versions of torchcodec and of the FFmpeg it uses.

    Raises:
        MissingExtra: It is not installed, or finds no FFmpeg.
    """
    try:
        module = import_module("torchcodec")
    except ImportError as error:
        raise MissingExtra(
            "torchcodec is not installed", hint="pip install 'tokpipe[torchcodec]'"
        ) from error
    except (RuntimeError, OSError) as error:
        raise _no_ffmpeg() from error
    ffmpeg = getattr(module, "ffmpeg_major_version", "")
    if ffmpeg is None:
        raise _no_ffmpeg()
    return {"torchcodec": str(getattr(module, "__version__", "")), "ffmpeg": str(ffmpeg)}


def _no_ffmpeg() -> MissingExtra:
    return MissingExtra(
        "torchcodec finds no FFmpeg libraries it can load",
        hint="install FFmpeg's shared libraries (apt-get install ffmpeg, or conda install ffmpeg) "
        "and a torchcodec made for this PyTorch, or use --decoder pyav",
    )


def _opened(path: Path, stream: int, device: str) -> Any:
    try:
        return import_module("torchcodec.decoders").VideoDecoder(
            path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, device=device,
            seek_mode="exact",
        )  # fmt: skip
    except ImportError as error:
        raise MissingExtra(
            "torchcodec is not installed", hint="pip install 'tokpipe[torchcodec]'"
        ) from error
    except (RuntimeError, OSError, ValueError) as error:
        text = str(error)
        # torchcodec loads its library, and with it FFmpeg's, at import or at the first decoder.
        if "libtorchcodec" in text and "load" in text:
            raise _no_ffmpeg() from error
        if device != "cpu":
            raise ResourceError(
                f"torchcodec cannot decode `{path.name}` on {device}: {text.rpartition(', ')[2]}",
                hint="use --device cpu, or --decoder pyav",
            ) from error
        raise CPU.refusal(path, "it cannot open it") from error


def resized(picture: Tensor, width: int, height: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] on its device to uint8 [height, width, 3] as the reference does.

    On the CPU by swscale itself; elsewhere by one matrix an axis, which gives the same but for
    rounding.
    """
    if picture.device.type == "cpu":
        return shrink(picture.numpy(), width, height)
    return resized_by_matrices(picture, width, height)


def resized_by_matrices(picture: Tensor, width: int, height: int) -> NDArray[np.uint8]:
    """The same by two matrix products, on any device."""
    high, wide = picture.shape[:2]
    down = _shares(high, height, str(picture.device))
    across = _shares(wide, width, str(picture.device))
    with torch.inference_mode():
        low = (down @ picture.reshape(high, wide * 3).float()).reshape(height, wide, 3)
        mixed = across @ low
        out: NDArray[np.uint8] = mixed.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return out


@lru_cache(maxsize=8)
def _shares(source: int, target: int, device: str) -> Tensor:
    """Weights float32 [target, source] of one axis: swscale's cubic, as wide as it shrinks."""
    scale = max(1.0, source / target)
    centre = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * source / target - 0.5
    x = (torch.arange(source, dtype=torch.float64) - centre).abs() / scale
    near = (2 - _SHARP) * x**3 - (3 - _SHARP) * x**2 + 1
    far = -_SHARP * (x**3 - 5 * x**2 + 8 * x - 4)
    weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return (weight / weight.sum(1, keepdim=True)).float().to(device)
