"""A tiny random model with its processor on a tokenizer of bytes, and caches of its own rows.

The model gets pictures by its own processor; a cache holds what it makes of them. The weights are
wide, so that every token matters. Runs with transformers 4.57 too.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokpipe
from tokpipe.spec import KIND_KEPT
from tokpipe.tensors import TokenBatch

tf: Any = importlib.import_module("transformers")
NEW = tuple(int(part) for part in tf.__version__.split(".")[:2]) >= (5, 18)
TIMES = (0.5, 1.5, 61.0)
QUESTION = "What is it?"
#: Ids of the tokenizer, from 0 on; bytes follow.
TOKENS = (
    "<pad>", "<s>", "</s>", "<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<start_of_image>",
    "<end_of_image>", "<image_soft_token>", "<|image_pad|>", "<|video_pad|>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
)  # fmt: skip
ID = {token: number for number, token in enumerate(TOKENS)}
VOCAB = len(TOKENS) + 256
_CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
#: Seed of the noise the pictures are made of; their size is odd on purpose.
HEIGHT, WIDTH = 40, 72


def tokenizer(
    image: str = "<image>", video: str = "<video>", old: str = "PreTrained", **named: str
) -> Any:
    """A tokenizer of bytes whose special tokens have the names processors ask for.

    Args:
        old: Kind of tokenizer that a processor of transformers 4 insists on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {**ID, **{sign: len(TOKENS) + number for number, sign in enumerate(signs)}}
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(TOKENS))
    bound = not NEW and old != "PreTrained"
    fast = getattr(tf, f"{old}TokenizerFast" if bound else "PreTrainedTokenizerFast")
    return fast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",  # noqa: S106
        extra_special_tokens={"image_token": image, "video_token": video, **named},
        model_input_names=["input_ids", "attention_mask"],
        **({"add_bos_token": False} if bound else {}),
    )  # fmt: skip


def chat(image: str = "<image>", video: str = "<video>") -> str:
    """A chat template that writes these marks."""
    return _CHAT.replace("IMAGE", image).replace("VIDEO", video)


def pictures(count: int = len(TIMES), seed: int = 0) -> Tensor:
    """Noise uint8 [count, H, W, 3]."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=made)


@dataclass
class Case:
    """A model, and one way its processor takes pictures.

    Attributes:
        kind: ``image`` or ``video``, as messages mark it.
        rows: Own rows of each picture from the processor's output, in the order of the prompt,
            without what the model adds once a video.
        tiles: Tokens are those of crops; ``places`` then says where.
    """

    name: str
    model: Any
    processor: Any
    kind: str
    rows: Callable[[Any, Any], list[Tensor]]
    grid: tuple[int, int]
    tiles: bool = False
    order: Callable[[int], tuple[Tensor, Tensor, Tensor]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def messages(self, count: int) -> list[dict[str, Any]]:
        """What a user of the model itself would write for ``count`` pictures."""
        marks = [{"type": self.kind}] * (1 if self.kind == "video" else count)
        return [{"role": "user", "content": [*marks, {"type": "text", "text": QUESTION}]}]

    def asked(self) -> list[dict[str, Any]]:
        """The same for a cache: one mark."""
        return self.messages(1)

    def own(self, seen: Tensor, times: tuple[float, ...] = TIMES) -> Any:
        """Arguments of the model by its own processor."""
        text = self.processor.apply_chat_template(
            self.messages(len(seen)), add_generation_prompt=True, tokenize=False
        )
        frames = list(seen.permute(0, 3, 1, 2))
        told = {
            "fps": 2.0, "duration": 62.0, "total_num_frames": 124, "height": HEIGHT, "width": WIDTH,
            "frames_indices": [int(2 * time) for time in times], "video_backend": "pyav",
        }  # fmt: skip
        if self.kind == "image":
            images = [f.permute(1, 2, 0).numpy() for f in frames]
            with warnings.catch_warnings():
                # PaliGemma's makes numpy arrays of tensors in a way that numpy warns of.
                warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
                return self.processor(text=[text], images=images, return_tensors="pt", **self.call)
        how: dict[str, Any] = {"video_metadata": [told], "do_sample_frames": False}
        if not NEW and self.name == "video_llava":
            how = {}
        videos = [torch.stack(frames)]
        if not NEW and self.name == "smolvlm":
            return self.processor(
                text=[text], videos=[videos], video_metadata=[[told]], do_sample_frames=False,
                return_tensors="pt", **self.call,
            )  # fmt: skip
        return self.processor(text=[text], videos=videos, return_tensors="pt", **how, **self.call)

    @torch.no_grad()
    def cache(
        self, folder: Path, seen: Tensor, times: tuple[float, ...] = TIMES,
        keep: Tensor | None = None, dtype: torch.dtype = torch.float32, **facts: Any,
    ) -> Path:  # fmt: skip
        """A cache of the model's own rows of pictures, or of those ``keep`` bool [N] alone."""
        rows = self.rows(self, self.own(seen, times))
        assert len(rows) == len(times)
        tokens = self.tokens(rows, times, dtype)
        dropped = 0.0
        if keep is not None:
            dropped = float(tokens.mass[~keep].sum())
            tokens = tokens.take(keep.nonzero()[:, 0])
        told = {**self.about(len(rows[0])), **facts}
        folder.mkdir(parents=True, exist_ok=True)
        made: Path = tokpipe.save_cache(
            folder / "own.tokpipe.safetensors", tokens, encoder=told, dropped=dropped,
            grid=self.grid, force=True, source={
                "name": "film", "duration": 62.0, "size": None, "fingerprint": None,
                "method": None, "container": None, "streams": [{"kind": "video"}],
            },
        )  # fmt: skip
        return made

    def about(self, many: int) -> dict[str, Any]:
        """Facts on the encoder."""
        found: dict[str, Any] = {"stage": "post_projector"}
        if NEW:
            with suppress(tokpipe.TokpipeError):
                found = tokpipe.encoder_facts(self.model)
        found |= {"tiles": self.tiles, "tokens_per_picture": many, "picture": [HEIGHT, WIDTH]}
        return {**found, **self.facts}

    def tokens(
        self, rows: list[Tensor], times: tuple[float, ...], dtype: torch.dtype
    ) -> TokenBatch:
        """Rows with their places, in the order of the file."""
        made = []
        for step, (picture, at) in enumerate(zip(rows, times, strict=True)):
            n = len(picture)
            if self.order is None:
                y, x = torch.arange(n) // self.grid[1], torch.arange(n) % self.grid[1]
                tile, kind = torch.zeros(n, dtype=torch.int32), torch.full((n,), KIND_KEPT)
            else:
                place, tile, kind = self.order(n)
                y, x = place.unbind(1)
            cell = torch.stack([torch.full((n,), step), y, x], 1).int()
            made.append(
                TokenBatch.build(
                    picture.to(dtype), torch.full((n,), at, dtype=torch.float64), cell=cell,
                    tile=tile.int(), kind=kind.to(torch.uint8),
                )
            )  # fmt: skip
        return TokenBatch.cat(made).sorted()


def widened(model: Any) -> Any:
    """The model with wide random weights, in eval mode."""
    drawn = torch.Generator().manual_seed(1)
    kind = model.config.model_type
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=drawn)
            scale = "norm" in name and name.endswith("weight") and "gemma" not in kind
            parameter.copy_(1 + 0.1 * noise if scale else noise * 0.25)
    return model.eval()


def rows_of(cache: Path) -> Any:
    """The tokens of a cache."""
    with tokpipe.open_cache(cache) as opened:
        return opened.tokens(stream="video")["video"].to_tokens()


def template_of(case: Case) -> str:
    """The chat template that counts for a case."""
    if case.name == "smolvlm" and case.kind == "video":
        module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
        return str(module.DEFAULT_CHAT_TEMPLATE)
    return str(case.processor.chat_template)


def alone(own: Any) -> dict[str, Any]:
    """The processor's output as arguments, without what only training takes."""
    return {key: value for key, value in own.items() if key != "labels"}


def shown(case: Case, ids: Tensor, keep: Tensor) -> Tensor:
    """Bool [S]: ids of the whole prompt that are there when ``keep`` bool [N] of the rows are.

    ``keep`` counts in the order of the file; pictures of which nothing is kept are not expected.
    """
    number = {
        "image": getattr(case.model.config, "image_token_id", None)
        or case.model.config.image_token_index
    }
    if case.kind == "video" and case.name not in ("internvl", "smolvlm"):
        config = case.model.config
        number["video"] = getattr(config, "video_token_id", None) or config.video_token_index
    slots = (ids[0] == number.get("video", number["image"])).nonzero()[:, 0]
    n = len(keep) // len(TIMES)
    if case.order is None:
        order = torch.arange(n)
    else:
        place, tile, _ = case.order(n)
        # Rows of a file lie by tile, y, x; those of the prompt as the model has them.
        order = torch.tensor(sorted(range(n), key=lambda i: (int(tile[i]), *place[i].tolist())))
    flags = torch.empty(len(keep), dtype=torch.bool)
    for step in range(len(TIMES)):
        flags[step * n + order] = keep[step * n : (step + 1) * n]
    made = torch.ones(ids.shape[1], dtype=torch.bool)
    made[slots[: len(flags)]] = flags
    return made


def places(case: Case, length: int) -> Tensor:
    """Positions of the whole prompt for a forward pass."""
    return torch.arange(length)[None] + (1 if case.name == "paligemma" else 0)


def logits(model: Any, **inputs: Any) -> Tensor:
    """What a model says of inputs."""
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found
