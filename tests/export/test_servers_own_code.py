"""The servers' own parsers on what is written for them; only where vllm or sglang is installed.

No server is started and no weights are read: what is called is the Python that stands between a
request and the model.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tokpipe.cache.reader import open_cache
from tokpipe.export import exporter_from
from tokpipe.export.sglang import to_sglang
from tokpipe.export.vllm import to_vllm

transformers: Any = pytest.importorskip("transformers", minversion="5.18")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
KEEP = torch.rand(24, generator=torch.Generator().manual_seed(3)) < 0.6
_PARSERS = {
    "qwen2_vl": ("qwen2_vl:Qwen2VLMultiModalDataParser", "qwen2_vl:Qwen2VLMultiModalProcessor"),
    "qwen2_5_vl": (
        "qwen2_vl:Qwen2VLMultiModalDataParser", "qwen2_5_vl:Qwen2_5_VLMultiModalProcessor",
    ),
    "qwen3_vl": ("qwen3_vl:Qwen3VLMultiModalDataParser", "qwen3_vl:Qwen3VLMultiModalProcessor"),
}  # fmt: skip


@pytest.fixture
def made(beside: Callable[[str], Any], tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """Folder of a model, and a cache for it."""
    served, mrope = beside("served_models"), beside("mrope_models")

    def of(kind: str, **how: Any) -> tuple[str, Path]:
        folder = served.save(kind, tmp_path / kind, mrope)
        levels = served.LEVELS.get(kind, 0)
        path = served.cache_of(tmp_path / "f.tokpipe.safetensors", folder, levels=levels, **how)
        return folder, path

    return of


def server(name: str, module: str) -> Any:
    """A module of a server.

    Not ``importorskip`` alone: on a machine without a GPU parts of them fail in other ways.
    """
    pytest.importorskip(name, reason=f"{name} is not installed")
    return importlib.import_module(module)


def vllm_class(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(server("vllm", f"vllm.model_executor.models.{module}"), name)


def vllm_processor(kind: str, folder: str, *, consumer: bool) -> Any:
    """The processor of a kind with just what parsing embeddings needs."""
    parser, processor = (vllm_class(where) for where in _PARSERS[kind])
    config = transformers.AutoConfig.from_pretrained(folder)
    made = object.__new__(processor)
    sizes = SimpleNamespace(get_inputs_embeds_size=lambda: config.get_text_config().hidden_size)
    made.info = SimpleNamespace(
        ctx=SimpleNamespace(model_config=sizes), get_hf_config=lambda: config,
        data_parser=parser(
            config.vision_config.spatial_merge_size, allow_missing_mm_embeddings=consumer
        ),
    )  # fmt: skip
    return made


def vllm_item(processor: Any, data: Any) -> dict[str, Any]:
    """The one item of ``multi_modal_data`` of a modality, as the model is given it."""
    inputs = server("vllm", "vllm.multimodal.inputs")
    (modality,) = data
    parsed = processor.info.data_parser.parse_mm_data(data)[modality]
    batch = transformers.BatchFeature(dict(parsed.get_passthrough_data()))
    fields = processor._get_mm_fields_config(batch, {})
    (item,) = inputs.MultiModalKwargsItems.from_hf_inputs(batch, fields)[modality]
    return {name: element.data for name, element in item.items()}


@pytest.mark.parametrize("form", ["http", "ec"])
@pytest.mark.parametrize("kind", QWEN)
def test_vllm_parses_the_request(
    kind: str, form: str, made: Callable[..., tuple[str, Path]], tmp_path: Path
) -> None:
    tracker = server("vllm", "vllm.renderers.chat_utils.item_tracker")
    media = server("vllm", "vllm.multimodal.media.video")
    hashes = server("vllm", "vllm.multimodal.processing.inputs")
    folder, path = made(kind)
    _, exporter = exporter_from(f"vllm:form={form}")
    with open_cache(path) as opened:
        exporter.write(opened, tmp_path / "out")
        own = to_vllm(opened)
    body = json.loads((tmp_path / "out" / "request.json").read_text(encoding="utf-8"))
    (part,) = body["messages"][0]["content"]
    read = media.VideoEmbeddingMediaIO().load_base64
    given = {k: read("", v) if isinstance(v, str) else v for k, v in part["video_embeds"].items()}
    processor = vllm_processor(kind, folder, consumer=form == "ec")
    data = {"video": tracker._get_embeds_data("video", [given], processor)}
    item = vllm_item(processor, data)
    whole = vllm_item(
        vllm_processor(kind, folder, consumer=False), {"video": own["multi_modal_data"]["video"]}
    )
    assert set(whole) - set(item) == (set() if form == "http" else {"video_embeds"})
    for name, value in item.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(whole[name])), name
    inputs = hashes.ProcessorInputs(
        prompt=[1], mm_data_items=processor.info.data_parser.parse_mm_data(data),
        mm_uuid_items={"video": [part["uuid"]]},
    )  # fmt: skip
    assert inputs.get_mm_hashes("model", "sha256")["video"] == [part["uuid"]]


class Sglang:
    """SGLang's processor of the Qwen kinds with just what ready rows need."""

    def __init__(self, folder: str, ids: dict[str, int]) -> None:
        kinds = server("sglang", "sglang.srt.multimodal.processors.qwen_vl")
        base = server("sglang", "sglang.srt.multimodal.processors.base_processor")
        bare = type(
            "Bare",
            (kinds.QwenVLImageProcessor,),
            {
                "keep_mm_features_on_device": False, "use_cuda_ipc": False,
                "precompute_hash_before_cpu_transfer": False,
                "_mark_cuda_ipc_features_for_deferred_reconstruction": lambda *_: None,
            },
        )  # fmt: skip
        self.made: Any = object.__new__(bare)
        config = transformers.AutoConfig.from_pretrained(folder)
        tokens = base.MultimodalSpecialTokens(
            image_token_id=ids["image"], video_token_id=ids["video"]
        )
        self.made.__dict__.update(
            hf_config=config, model_type=config.model_type, video_config={}, mm_tokens=tokens,
            mm_processor_executor=None, skip_tokenizer_init=False, audio_start_token_id=None,
            vision_start_token_id=ids["vision_bos"], vision_end_token_id=ids["vision_eos"],
            _spatial_merge_size=2, _tokens_per_second=2, ATTR_NAME_TO_MODALITY={},
            FEATURE_NAMES=[], _resolve_processor=lambda *_: (None, None),
        )  # fmt: skip

    def process(self, inputs: dict[str, Any]) -> Any:
        request = SimpleNamespace(video_data=inputs.get("video_data"), audio_data=None, rid="r")
        return asyncio.run(
            self.made._process_mm_data_uncached(
                inputs.get("image_data"), inputs["input_ids"], request
            )
        )


@pytest.mark.parametrize("media", ["video", "image"])
@pytest.mark.parametrize("kind", QWEN)
def test_sglang_takes_rows_and_positions_as_they_are(
    kind: str, media: Any, made: Callable[..., tuple[str, Path]], beside: Callable[[str], Any]
) -> None:
    scheduler = server("sglang", "sglang.srt.managers.mm_schedule")
    folder, path = made(kind, keep=KEEP)
    with open_cache(path) as opened:
        inputs = to_sglang(opened, messages="Why?", media=media)
    (item,) = inputs[f"{media}_data"]
    out = Sglang(folder, beside("mrope_models").ID).process(inputs)
    assert out.input_ids == inputs["input_ids"]
    assert torch.equal(out.mrope_positions, item["mrope_positions"])
    assert torch.equal(out.mrope_position_delta, item["mrope_position_delta"])
    (taken,) = out.mm_items
    assert taken.hash == item["hash"]
    offsets = [taken.offsets]
    whole, half = len(out.input_ids), len(out.input_ids) // 2
    for chunks in ([(0, whole)], [(0, half), (half, whole - half)]):
        rows = [
            scheduler._get_precomputed_embedding([taken], [0, 1], [first], [count], offsets)
            for first, count in chunks
        ]
        assert torch.equal(torch.cat(rows), item["precomputed_embeddings"])
    changed = sum(a != b for a, b in zip(out.padded_input_ids, out.input_ids, strict=True))
    assert changed == len(item["precomputed_embeddings"])
