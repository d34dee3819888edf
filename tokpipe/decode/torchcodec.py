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
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from tokpipe.decode._ffmpeg_log import complaints
from tokpipe.decode._plain import Shown, look, refusal
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
_PYAV = "use --decoder pyav, which goes on past damage"


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
        if strict:
            raise ResourceError(
                "torchcodec does not tell of damage that its decoder conceals, so --strict "
                "cannot be kept",
                hint="use --decoder pyav with --strict",
            )
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
            self._shown = look(self.path, self.info, self.device.partition(":")[0])
        yield from super().read()

    def _pictures(self, box: Any, timeline: Timeline) -> StreamReader:
        assert self._shown is not None  # noqa: S101 - set by read where there is video
        return _PictureReader(self, self._shown, box, timeline)


class _PictureReader:
    """Places packets as the reference does and hands out pictures once theirs went by."""

    def __init__(self, source: TorchcodecSource, shown: Shown, box: Any, line: Timeline) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        stream = box.streams[source.info.video.index]
        self.source, self.shown, self.line = source, shown, line
        self.packets = line.stream(stream.time_base)
        self.decoder = _Decoder(source, shown)
        self.seen = self.given = 0

    def push(self, packet: Any) -> Iterator[TorchcodecPicture]:
        report = self.source.report
        if packet.is_discard:
            report.note("edit-list", "pictures outside the edit list are not shown")
            return
        span = (packet.duration or 0) * self.packets.tick
        self.packets.place_packet(packet.pts, packet.dts, span)
        self.seen += 1
        if self.given < min(self.seen, len(self.shown.pts)):
            yield self._next()

    def finish(self) -> Iterator[TorchcodecPicture]:
        while self.given < len(self.shown.pts):
            yield self._next()

    def _next(self) -> TorchcodecPicture:
        i, report = self.given, self.source.report
        self.given += 1
        seconds = self.line.seconds
        pts, duration = int(self.shown.pts[i]), int(self.shown.duration[i])
        report.frames += 1
        report.video_end = max(report.video_end, seconds(pts + duration))
        return TorchcodecPicture(seconds(pts), seconds(duration), i, self.decoder)


@dataclass(slots=True)
class TorchcodecPicture:
    """One picture that is decoded when its pixels are asked for.

    Attributes:
        pts, duration: Seconds on the media's clock.
        index: Rank of the pts in the stream.
    """

    pts: float
    duration: float
    index: int
    decoder: _Decoder
    usable: bool = True
    corrupt: bool = False

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], upright and resized by AREA, on the device until then.

        Raises:
            DecodeError: The picture cannot be decoded, or another came out.
        """
        return area(self.decoder.picture(self.index, self.pts), width, height)


class _Decoder:
    """torchcodec's decoder of one stream, checked picture by picture."""

    def __init__(self, source: TorchcodecSource, shown: Shown) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        self.path, self.video, self.zero = source.path, source.info.video, source.info.zero
        self.inner = _opened(self.path, self.video.index, source.device)
        if len(self.inner) != len(shown.pts):
            why = f"it counts {len(self.inner)} pictures where {len(shown.pts)} are shown"
            raise refusal(self.path, why)
        if source.device != "cpu":
            text = "damage inside pictures is not seen when a GPU decodes"
            source.report.note("damage-unseen", text)
        if source.device != "cpu" and bool(self.inner.cpu_fallback):
            text = f"the GPU does not decode {self.video.codec} of this kind; the CPU does"
            source.report.note("cpu-decode", text)

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
            raise refusal(self.path, f"the picture size changes at {pts:.3f} s")
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
        raise refusal(path, "it cannot open it") from error


def area(picture: Tensor, width: int, height: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] on its device to uint8 [height, width, 3] as swscale's AREA does.

    On the CPU by swscale itself; elsewhere by one matrix an axis, which gives the same but for
    rounding: every new pixel is the mean of the surface it covers, and linear where enlarged.
    """
    if picture.device.type == "cpu":
        frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
        out: Any = VideoReformatter().reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.AREA,
            threads=1,
        )  # fmt: skip
        small: NDArray[np.uint8] = out.to_ndarray()
        return small
    return area_by_matrices(picture, width, height)


def area_by_matrices(picture: Tensor, width: int, height: int) -> NDArray[np.uint8]:
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
    """Weights float32 [target, source] of one axis."""
    if target >= source:
        centre = ((torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5).clamp(
            0, source - 1
        )
        far = (torch.arange(source, dtype=torch.float64) - centre[:, None]).abs()
        return (1 - far).clamp(min=0).float().to(device)
    edge = torch.arange(target + 1, dtype=torch.float64)[:, None] * source / target
    left = torch.arange(source, dtype=torch.float64)
    covered = (torch.minimum(edge[1:], left + 1) - torch.maximum(edge[:-1], left)).clamp(min=0)
    return (covered / covered.sum(1, keepdim=True)).float().to(device)
