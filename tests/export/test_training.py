"""A tiny LLaVA learns from caches in Hugging Face's Trainer, its vision tower deleted."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tokpipe
from tokpipe.cache.pack import pack
from tokpipe.encode._weights import part_digest
from tokpipe.errors import CacheError, ModelError, WeightsMismatch
from tokpipe.testing.caches import write_features
from tokpipe.torch import (
    PromptDataset,
    TokenCacheDataset,
    TrainerCollator,
    feed_rows,
    open_dataset,
)

transformers = pytest.importorskip(
    "transformers", minversion="5.18", reason="needs transformers 5.18"
)
pytest.importorskip("accelerate", reason="Trainer needs accelerate")
pytest.importorskip("pyarrow", reason="packing needs pyarrow")

ROOT = Path(__file__).parents[2]
END = ".tokpipe.safetensors"
#: What caches of rows after a projector say of their encoder.
AFTER: dict[str, Any] = {"encoder.video": {"name": "hand", "stage": "post_projector"}}
IMAGE, WIDTH, COUNT = 63, 32, 200
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.timeout(300),
]


def tiny_llava() -> Any:
    """A random model whose language part looks at what the projector gives."""
    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return transformers.LlavaForConditionalGeneration(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset, a model and prompts; the answer to each is told by the item's features alone."""
    folder = tmp_path_factory.mktemp("training")
    for name in ("caches", "after"):
        (folder / name).mkdir()
    lines = []
    for number in range(COUNT):
        answer = number % 2
        told: tuple[tuple[str, dict[str, Any]], ...] = (("caches", {}), ("after", AFTER))
        for name, more in told:
            write_features(
                folder / name / f"i{number:03}{END}", seed=number, video=24 + 6 * (number % 3),
                width=WIDTH, shift=3.0 * answer - 1.5, **more,
            )  # fmt: skip
        labels = [-100] * 4 + [10 + answer]
        lines.append({"key": f"i{number:03}", "input_ids": [1, IMAGE, 5, 6, 10 + answer],
                      "labels": labels})  # fmt: skip
    pack(folder / "caches", folder / "talks-dataset", key="name")
    pack(folder / "after", folder / "talks-after", key="name")
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tiny_llava().save_pretrained(folder / "llava")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def prompts(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]


def test_the_page_runs_and_the_projector_learns(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "consumers" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "training.md", "exec"), names)
    capsys.readouterr()
    assert len(names["small"]["video"]) == 16
    assert names["part"]["video"].at.unique().tolist() == [0.5]
    assert names["state"]["taken"] == [8, 8] and names["again"].epoch == 3
    model, trainer = names["model"], names["trainer"]
    assert not hasattr(model.model, "vision_tower")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 and losses[-1] < 0.3 * losses[0], losses
    grads = {n for n, p in model.named_parameters() if p.requires_grad}
    assert grads and all("multi_modal_projector" in name for name in grads)


def test_rows_through_the_hook_are_what_the_model_would_see(
    place: Path, prompts: list[dict[str, Any]]
) -> None:
    """Rows before the projector, the same rows after it, and plain embeddings give one answer."""
    model = tiny_llava().eval()
    data = PromptDataset(prompts, TokenCacheDataset("talks-dataset", dtype=torch.float32))
    asked: dict[str, Any] = {"placeholder": IMAGE, "pad": 0, "stream": "video"}
    batch = TrainerCollator(**asked, rows=True)(data.__getitems__([0, 1, 2]))
    handle = feed_rows(model, projector=True)
    through = model(**batch)
    through.loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.any()
    handle.remove()
    after = PromptDataset(prompts, TokenCacheDataset("talks-after", dtype=torch.float32))
    made = TrainerCollator(**asked)(after.__getitems__([0, 1, 2]))
    rows = made["mm_encoder_outputs"]["image"].pooler_output
    made["mm_encoder_outputs"]["image"].pooler_output = [
        model.model.multi_modal_projector(r).detach() for r in rows
    ]
    assert torch.equal(model(**made).logits, through.logits)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    flat = torch.cat(made["mm_encoder_outputs"]["image"].pooler_output)
    embeds[batch["input_ids"] == IMAGE] = flat
    plain = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    assert torch.equal(plain.logits, through.logits)


def test_a_trainer_takes_rows_after_the_projector(
    place: Path, prompts: list[dict[str, Any]]
) -> None:
    """Nothing of the vision side is called; the language model learns."""
    model = tiny_llava()
    del model.model.vision_tower, model.model.multi_modal_projector
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(place / "out"), per_device_train_batch_size=8, max_steps=12,
            learning_rate=3e-3, dataloader_num_workers=2, remove_unused_columns=False, report_to=[],
            save_strategy="no", logging_steps=4, disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=PromptDataset(
            prompts, TokenCacheDataset("talks-after", dtype=torch.float32)
        ),
        data_collator=TrainerCollator(placeholder=IMAGE, pad=0),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize(("projector", "who"), [(True, "its projector"), (False, "the model")])
def test_rows_of_another_width_are_refused(tmp_path: Path, projector: bool, who: str) -> None:
    more: dict[str, Any] = {} if projector else AFTER
    caches = TokenCacheDataset(write_features(tmp_path / f"a{END}", width=8, **more))
    batch = TrainerCollator(placeholder=IMAGE, pad=0, rows=True)(
        [PromptDataset([{"index": 0, "input_ids": [1, IMAGE]}], caches)[0]]
    )
    model = tiny_llava()
    feed_rows(model, projector=projector)
    with pytest.raises(CacheError, match=f"rows of width 8, {who} takes 32") as caught:
        model(**batch)
    assert caught.value.code == "export.width"


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_for_a_trainer(place: Path, prompts: list[dict[str, Any]], side: Any) -> None:
    data = PromptDataset(prompts, TokenCacheDataset("talks-after"))
    assert len(data) == COUNT and data.lengths()[:3].tolist() == [28, 34, 40]
    collate = TrainerCollator(placeholder=IMAGE, pad=7, side=side)
    batch = collate([data[0], data[2]])
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert ids.shape == labels.shape == mask.shape == (2, 40)
    assert mask.sum(1).tolist() == [28, 40]
    assert (ids[mask == 0] == 7).all() and (labels[mask == 0] == -100).all()
    assert ((ids == IMAGE).sum(1)).tolist() == [24, 36]
    assert (labels[ids == IMAGE] == -100).all()
    assert labels[labels != -100].tolist() == [10, 10]
    assert mask[0].tolist() == ([1] * 28 + [0] * 12 if side == "right" else [0] * 12 + [1] * 28)
    rows = batch["mm_encoder_outputs"]["image"].pooler_output
    assert [len(r) for r in rows] == [24, 36]


def test_prompts_without_labels_learn_their_text(place: Path) -> None:
    data = PromptDataset(
        [{"index": 1, "input_ids": [1, IMAGE, 5, 2], "more": "kept"}],
        TokenCacheDataset("talks-after"),
    )
    assert data[0]["more"] == "kept"
    batch = TrainerCollator(placeholder=IMAGE, pad=0)([data[0]])
    assert batch["labels"][0].tolist() == [1, *[-100] * 30, 5, 2]


def test_prompts_with_every_placeholder(place: Path) -> None:
    caches = TokenCacheDataset("talks-after")
    collate = TrainerCollator(placeholder=IMAGE, pad=0)
    ready = PromptDataset([{"index": 0, "input_ids": [1, *[IMAGE] * 24, 2]}], caches)
    assert collate([ready[0]])["input_ids"].shape == (1, 26)
    for count in (0, 2, 23):
        wrong = PromptDataset([{"index": 0, "input_ids": [1, *[IMAGE] * count, 2]}], caches)
        with pytest.raises(CacheError, match=f"`i000` has 24 rows, its prompt {count} placeh"):
            collate([wrong[0]])
    with pytest.raises(CacheError, match="3 labels for 2 ids"):
        collate([{**ready[0], "input_ids": [1, IMAGE], "labels": [1, 2, 3]}])
    with pytest.raises(CacheError, match="names no item"):
        PromptDataset([{"input_ids": [1]}], caches)[0]


def test_skipped_items_leave_the_batch(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_features(tmp_path / f"{name}{END}", **AFTER)
    data = open_dataset(tmp_path)
    (tmp_path / f"a{END}").write_bytes(b"nothing")
    caches = TokenCacheDataset(data, on_error="skip")
    prompts = PromptDataset(
        [{"key": key, "input_ids": [1, IMAGE, 2]} for key in ("a", "b")], caches
    )
    collate = TrainerCollator(placeholder=IMAGE, pad=0)
    assert collate(prompts.__getitems__([0, 1]))["input_ids"].shape == (1, 50)
    with pytest.raises(CacheError, match="nothing in the batch"):
        collate([prompts[0]])


def test_models_that_cannot_take_rows() -> None:
    from torch import nn

    class Other(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(ModelError, match="no mm_encoder_outputs"):
        feed_rows(Other())
    model = tiny_llava()
    del model.model.multi_modal_projector
    with pytest.raises(ModelError, match="no multi_modal_projector"):
        feed_rows(model, projector=True)


def test_a_projector_that_joins_rows_is_refused(place: Path, prompts: list[dict[str, Any]]) -> None:
    model = tiny_llava().eval()
    data = PromptDataset(prompts, TokenCacheDataset("talks-after"))
    batch = TrainerCollator(placeholder=IMAGE, pad=0, rows=True)([data[0]])
    feed_rows(model, projector=lambda rows: rows[::2])
    with pytest.raises(ModelError, match="makes 12 rows of 24"):
        model(**batch)


def fed(path: Path, **how: Any) -> dict[str, Any]:
    """A batch of the one item of a cache."""
    data = PromptDataset([{"index": 0, "input_ids": [1, IMAGE]}], TokenCacheDataset(path))
    made: dict[str, Any] = TrainerCollator(placeholder=IMAGE, pad=0, **how)([data[0]])
    return made


def test_rows_of_another_stage_are_refused(tmp_path: Path) -> None:
    """Of the width that both have, before and after the projector."""
    before = write_features(tmp_path / f"before{END}", width=WIDTH)
    after = write_features(tmp_path / f"after{END}", width=WIDTH, **AFTER)
    model = tiny_llava().eval()
    handle = feed_rows(model)
    model(**fed(after, rows=True))
    with pytest.raises(CacheError, match=r"are pre_projector, Llava\w+ takes post") as caught:
        model(**fed(before, rows=True))
    assert caught.value.code == "export.stage" and "projector=True" in str(caught.value.hint)
    handle.remove()
    feed_rows(model, projector=True)
    with pytest.raises(CacheError, match="are post_projector, its projector takes pre"):
        model(**fed(after, rows=True))
    with pytest.raises(CacheError, match="takes post_projector"):
        fed(before)


def test_rows_after_a_projector_of_other_weights_are_refused(tmp_path: Path) -> None:
    """Where the model has its tower; without it nobody can know."""
    model = tiny_llava().eval()
    own: dict[str, Any] = {"encoder.video": tokpipe.encoder_facts(model)}
    other: dict[str, Any] = {
        "encoder.video": {**tokpipe.encoder_facts(model), "weights": "sha256:" + "0" * 64}
    }
    mine = write_features(tmp_path / f"mine{END}", width=WIDTH, **own)
    theirs = write_features(tmp_path / f"theirs{END}", width=WIDTH, **other)
    handle = feed_rows(model)
    model(**fed(mine, rows=True))
    with pytest.raises(WeightsMismatch, match="other weights") as caught:
        model(**fed(theirs, rows=True))
    assert caught.value.code == "export.weights"
    handle.remove()
    fed(mine, model=model)
    with pytest.raises(WeightsMismatch, match="other weights"):
        fed(theirs, model=model)
    assert pickle.loads(pickle.dumps(TrainerCollator(placeholder=IMAGE, pad=0, model=model)))
    fed(theirs, model=model, allow_mismatch=True)
    feed_rows(model, allow_mismatch=True)
    model(**fed(theirs, rows=True))
    bare = tiny_llava().eval()
    del bare.model.vision_tower
    feed_rows(bare)
    bare(**fed(theirs, rows=True))


def test_rows_for_the_projector_must_be_of_the_tower(tmp_path: Path) -> None:
    """Its projector may be another one, and learn meanwhile; its tower may not."""
    model = tiny_llava().eval()
    model.save_pretrained(tmp_path / "model")
    layer = 1  # hidden state -2 of two blocks
    tower = model.model.vision_tower
    part = part_digest(getattr(tower, "vision_model", tower), layer, normed=False)
    facts = {**tokpipe.encoder_facts(model, "pre_projector"), "tower": part, "layer": layer,
             "final_norm": False}  # fmt: skip
    told: dict[str, Any] = {"encoder.video": facts}
    path = write_features(tmp_path / f"mine{END}", width=WIDTH, **told)
    batch = fed(path, rows=True)
    changed = [tiny_llava() for _ in range(2)]
    with torch.no_grad():
        for p in changed[0].model.multi_modal_projector.parameters():
            p.add_(1)
        for p in changed[1].model.vision_tower.parameters():
            p.add_(1)
    for good in (model, changed[0]):
        feed_rows(good, projector=True)
        good(**batch)
        with torch.no_grad():  # a step of training
            next(good.model.multi_modal_projector.parameters()).add_(1)
        good(**batch)
    feed_rows(changed[1], projector=True)
    with pytest.raises(WeightsMismatch, match="other weights"):
        changed[1](**batch)


def test_items_of_a_mixed_dataset_must_all_fit(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_features(tmp_path / "in" / f"a{END}", width=WIDTH, **AFTER)
    write_features(tmp_path / "in" / f"b{END}", width=WIDTH, seed=1)
    pack(tmp_path / "in", tmp_path / "mixed", key="name", mixed=True)
    with pytest.raises(CacheError, match="are pre_projector"):
        fed(tmp_path / "mixed")
