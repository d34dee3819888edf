"""wav2vec 2.0, HuBERT and WavLM as torchaudio builds them: architecture, weights, tokens.

The only file of encoders that imports torchaudio.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from tokpipe.encode._sound.lengths import WAV2VEC2_CONVS, conv_tokens
from tokpipe.encode._sound.tower import SAMPLE_RATE, catching, even_times
from tokpipe.encode._tower import Outline
from tokpipe.encode._weights import load_state, whole_numbers
from tokpipe.errors import MissingExtra, ModelError, WeightsMismatch, WeightsMissing

if TYPE_CHECKING:
    from tokpipe.encode._attend import Seen
    from tokpipe.encode.torchaudio_bundles import TorchaudioBundles

RANDOM = "random"
#: File of a weights folder that describes another architecture than a bundle's.
CARD = "torchaudio_model.json"
#: 30 s: every token sees its whole chunk, so the length is a choice.
CHUNK = 30 * SAMPLE_RATE
_FACTORIES = {"Wav2Vec2": "wav2vec2_model", "WavLM": "wavlm_model"}


def torchaudio() -> Any:
    """The torchaudio package.

    Raises:
        MissingExtra: It is not installed, or does not fit the installed torch.
    """
    try:
        found = importlib.import_module("torchaudio")
        importlib.import_module("torchaudio.pipelines")
    except (ImportError, OSError) as error:
        raise MissingExtra(
            f"torchaudio-bundles needs torchaudio: {error}", hint="pip install 'tokpipe[audio]'"
        ) from error
    return found


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is built, and how sound enters it.

    Attributes:
        kind: ``Wav2Vec2`` (HuBERT too) or ``WavLM``.
        params: Arguments of torchaudio's factory of that kind.
        normalize: Sound is shifted and scaled to mean 0 and variance 1 first.
        rate: Hertz.
    """

    kind: str
    params: Mapping[str, Any]
    normalize: bool
    rate: int = SAMPLE_RATE

    @property
    def convs(self) -> tuple[tuple[int, int], ...]:
        """Kernel and stride of each convolution."""
        layers = self.params["extractor_conv_layer_config"]
        if layers is None:
            return WAV2VEC2_CONVS
        return tuple((int(kernel), int(stride)) for _, kernel, stride in layers)


def architecture(settings: TorchaudioBundles) -> Architecture:
    """That of a weights folder with a card, else of the bundle named.

    Raises:
        ModelError: No such bundle, or a card that says too little.
    """
    card = Path(settings.weights) / CARD
    if settings.weights not in ("", RANDOM) and card.is_file():
        return _from_card(card)
    bundle = _bundle(settings.model)
    return Architecture(
        bundle._model_type, bundle._params, bundle._normalize_waveform, int(bundle.sample_rate)
    )


def _from_card(card: Path) -> Architecture:
    try:
        read = json.loads(card.read_text(encoding="utf-8"))
        made = Architecture(read["kind"], read["params"], bool(read["normalize"]))
        if made.kind not in _FACTORIES or not made.convs:
            raise ValueError(f"kind is `{made.kind}`")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"`{card.name}` describes no model: {error!r}",
            hint='it holds {"kind": "Wav2Vec2" or "WavLM", "normalize": true or false, "params": '
            "the arguments of torchaudio.models.wav2vec2_model or wavlm_model}",
        ) from error
    return made


def _bundle(name: str) -> Any:
    pipelines = torchaudio().pipelines
    found = getattr(pipelines, name, None)
    if getattr(found, "_model_type", None) not in _FACTORIES:
        known = [n for n in dir(pipelines) if hasattr(getattr(pipelines, n), "_model_type")]
        raise ModelError(
            f"torchaudio has no bundle `{name}` of the wav2vec 2.0 family",
            hint="choose one of " + ", ".join(known),
        )
    return found


class TorchaudioSound:
    """A family of ``tower``: the encoder without its head."""

    layers = "encoder.transformer.layers"
    precise: tuple[str, ...] = ()
    chunk = CHUNK

    def __init__(self, settings: TorchaudioBundles) -> None:
        """Read the architecture.

        Raises:
            ModelError: It has no such layer, or takes sound of another rate.
        """
        self.settings = settings
        self.architecture = architecture(settings)
        blocks = int(self.architecture.params["encoder_num_layers"])
        if settings.layer > blocks:
            raise ModelError(
                f"`{settings.model}` has {blocks} blocks, layer {settings.layer} is none of them",
                hint=f"choose a layer of 0 to {blocks}, or -1 for the encoder's own output",
            )
        if self.architecture.rate != SAMPLE_RATE:
            raise ModelError(
                f"`{settings.model}` takes {self.architecture.rate} Hz",
                hint=f"choose a bundle of {SAMPLE_RATE} Hz",
            )

    @property
    def _shortest(self) -> int:
        """Samples that give one token."""
        need = 1
        for kernel, stride in reversed(self.architecture.convs):
            need = (need - 1) * stride + kernel
        return need

    @property
    def _step(self) -> int:
        return math.prod(stride for _, stride in self.architecture.convs)

    @property
    def hooked(self) -> bool:
        """See ``Sound``."""
        return self.settings.layer >= 0

    def outline(self) -> Outline:
        """See ``Sound``."""
        facts = {
            "family": self.architecture.kind, "stage": "pre_projector",
            "layer": self.settings.layer, "library": f"torchaudio {torchaudio().__version__}",
            "normalize": self.architecture.normalize, "chunk_exact": False, "window_samples": CHUNK,
        }  # fmt: skip
        width = int(self.architecture.params["encoder_embed_dim"])
        return Outline(dim=width, rate=SAMPLE_RATE, about=facts)

    def times(self, samples: int) -> Tensor:
        """See ``Sound``; a chunk too short for one token is filled up to it."""
        tokens = max(1, conv_tokens(samples, self.architecture.convs)) if samples else 0
        return even_times(samples, tokens, self._step)

    def build(self) -> tuple[Any, Any]:
        """See ``Sound``."""
        models = torchaudio().models
        factory = getattr(models, _FACTORIES[self.architecture.kind])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                model = factory(**self.architecture.params)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ModelError(
                    f"torchaudio cannot build `{self.settings.weights or self.settings.model}`: "
                    f"{error}",
                    hint=f"check `params` in {CARD}",
                ) from error
        if self.settings.weights != RANDOM:
            self._fill(model)
        model.aux = None
        return model.requires_grad_(False).eval(), None

    def _fill(self, model: Any) -> None:
        settings = self.settings
        what = settings.weights or settings.model
        state = self._stored() if settings.weights else self._fetched()
        wrong = whole_numbers(state, model.state_dict())
        if wrong is not None:
            raise WeightsMismatch(
                f"`{wrong}` of `{what}` holds whole numbers, not floats",
                hint="quantised checkpoints do not work here; name the one they were made from",
            )
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).strip().splitlines()]
            raise WeightsMismatch(
                f"the weights of `{what}` do not fit: {lines[min(1, len(lines) - 1)][:200]}",
                hint="name the bundle the checkpoint was made with, or put "
                f"{CARD} beside it in a folder",
            ) from error

    def _stored(self) -> dict[str, Tensor]:
        path = Path(self.settings.weights)
        if path.is_dir():
            found = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.pt*"))]
            if len(found) != 1:
                raise WeightsMissing(
                    f"`{path.name}` holds {len(found)} checkpoints, not one",
                    hint="name the file itself, or leave one .safetensors or .pt file there",
                )
            path = found[0]
        return load_state(path)

    def _fetched(self) -> dict[str, Tensor]:
        """The bundle's own weights, from torch.hub's cache or the network."""
        bundle = _bundle(self.settings.model)
        try:
            state = bundle._get_state_dict({"weights_only": True, "progress": False})
        except OSError as error:
            raise WeightsMissing(
                f"the weights of `{self.settings.model}` are not cached and cannot be fetched: "
                f"{error}",
                hint="fetch them once while online, or name a state dict with weights=PATH",
            ) from error
        fetched: dict[str, Tensor] = dict(state)
        return fetched

    def features(self, wave: Tensor) -> Tensor:
        """See ``Sound``; float32 [1, L], normalised as the bundle says."""
        if self.architecture.normalize:
            wave = layer_norm(wave, wave.shape)
        return pad(wave, (0, max(0, self._shortest - wave.shape[0])))[None]

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """See ``Sound``."""
        if self.settings.layer < 0:
            own: Tensor = tower(features)[0][0]
            return own
        with catching(tower.get_submodule(self.layers), self.settings.layer) as caught:
            tower(features)
        return caught[0][0]

    def attending(self, tower: Any) -> nn.Module:
        """See ``Sound``: the last block that runs; the outline offers no columns of it."""
        module: nn.Module = tower.get_submodule(self.layers)[-1].attention
        return module

    def columns(
        self, module: nn.Module, seen: Seen, samples: int, wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """See ``Sound``: none."""
        return {}
