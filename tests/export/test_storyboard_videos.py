"""Lists of frames for Qwen kinds and HF processors: times come out right in the real classes."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.export import Written, exporter_from

pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")

TIMES = [1.0, 13.333333, 13.7]
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
#: A chat template with the places of media and nothing else.
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}VIDEO{% elif part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="session")
def boards(beside: Callable[[str], ModuleType]) -> Any:
    return beside("board_caches")


@pytest.fixture
def made(boards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Written]:
    """``made(api)`` writes the messages; paths in them are from the folder that is then current."""
    path = boards.write_board(tmp_path / "c.tokpipe.safetensors", TIMES, duration=20.0)

    def write(api: str) -> Written:
        with open_cache(path) as cache:
            written: Written = exporter_from(f"storyboard:api={api}", prompt="What?")[1].write(
                cache, tmp_path / "out"
            )
        monkeypatch.chdir(tmp_path / "out")
        return written

    return write


def request(name: str) -> Any:
    return json.loads(Path(f"messages.{name}.json").read_text(encoding="utf-8"))


def letters(*special: str) -> Any:
    """A tokenizer of single letters, so that any text comes back as it went in."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    other = "<unk>"
    vocab = {letter: i for i, letter in enumerate([other, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=other))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    kind: Any = PreTrainedTokenizerFast
    fast = kind(tokenizer_object=tokenizer, unk_token=other, pad_token=other, eos_token=other)
    fast.add_tokens(list(special), special_tokens=True)
    return fast


def qwen(name: str) -> Any:
    """A processor of the real classes."""
    import transformers

    library: Any = transformers
    template = TEMPLATE
    for word, pad in (("VIDEO", "<|video_pad|>"), ("IMAGE", "<|image_pad|>")):
        template = template.replace(word, f"<|vision_start|>{pad}<|vision_end|>")
    video = getattr(
        library, "Qwen3VLVideoProcessor" if name == "Qwen3VL" else "Qwen2VLVideoProcessor"
    )
    return getattr(library, f"{name}Processor")(
        image_processor=library.Qwen2VLImageProcessor(), tokenizer=letters(*SPECIAL),
        video_processor=video(cap_pixels_per_frame=True), chat_template=template,
    )  # fmt: skip


def applied(processor: Any, asked: dict[str, Any]) -> tuple[Any, str]:
    """What the processor makes of a request, and its text."""
    out = processor.apply_chat_template(
        asked["messages"], tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs=asked.get("processor_kwargs", {}),
    )  # fmt: skip
    return out, processor.tokenizer.decode(out["input_ids"][0])


def test_qwen3_vl_tells_the_true_time_of_each_picture(made: Callable[[str], Written]) -> None:
    made("qwen")
    out, text = applied(qwen("Qwen3VL"), request("qwen_processor"))
    assert re.findall(r"<([\d.]+) seconds>", text) == ["1.0", "13.3", "13.7"]
    assert out["video_grid_thw"][:, 0].tolist() == [3]
    assert text.endswith("What?")


def test_pictures_that_are_not_doubled_would_share_a_patch(made: Callable[[str], Written]) -> None:
    """The rule's reason: 1.0 and 13.3 s become one patch at 7.2 s."""
    made("hf")
    _, text = applied(qwen("Qwen3VL"), request("hf_video"))
    assert re.findall(r"<([\d.]+) seconds>", text) == ["7.2", "13.7"]


def test_qwen2_5_vl_gets_the_mean_distance(made: Callable[[str], Written]) -> None:
    made("qwen")
    out, text = applied(qwen("Qwen2_5_VL"), request("qwen_processor"))
    assert out["video_grid_thw"][:, 0].tolist() == [3]
    assert float(out["second_per_grid_ts"][0]) == pytest.approx(20 / 3, abs=1e-4)
    assert "[00:01.0] [00:13.3] [00:13.7]" in text


def test_frame_numbers_give_the_times_to_a_millisecond(made: Callable[[str], Written]) -> None:
    from transformers.video_utils import VideoMetadata

    made("all")
    for name, times in (
        ("qwen_processor", [t for t in TIMES for _ in range(2)]),
        ("hf_video", TIMES),
    ):
        asked = request(name)
        metadata = VideoMetadata(**asked["processor_kwargs"]["video_metadata"][0])
        assert metadata.timestamps == pytest.approx(times, abs=6e-4)
        assert metadata.duration == 20.0 and metadata.total_num_frames == 20_000
        assert (metadata.width, metadata.height) == (84, 56)
        files = asked["messages"][0]["content"][0]["video"]
        assert len(files) == len(times) and all(Path(file).is_file() for file in files)


def test_frame_list_is_even_and_its_text_has_the_times(made: Callable[[str], Written]) -> None:
    written = made("qwen")
    video, times, question = request("qwen")["messages"][0]["content"]
    assert video["video"][::2] == video["video"][1::2] and len(video["video"]) == 6
    assert video["sample_fps"] == pytest.approx(6 / 19)
    assert "[00:01.0] [00:13.3] [00:13.7]" in times["text"] and question["text"] == "What?"
    # Even spacing would put the second picture at 7.33 s, six seconds before its time.
    assert "up to 6.0 s beside the true times" in " ".join(written.notes)


def test_frame_list_as_qwen_vl_utils_reads_it(made: Callable[[str], Written]) -> None:
    utils = pytest.importorskip("qwen_vl_utils")
    made("qwen")
    images, (video,), _ = utils.process_vision_info(
        request("qwen")["messages"], return_video_kwargs=True, return_video_metadata=True
    )
    pixels, metadata = video
    assert images is None and len(pixels) == 6
    assert all((pixels[i] == pixels[i + 1]).all() for i in (0, 2, 4))
    assert metadata["frames_indices"] == list(range(6))
    assert metadata["fps"] == pytest.approx(6 / 19)


def test_pictures_one_by_one_in_a_template(made: Callable[[str], Written]) -> None:
    made("hf")
    out, text = applied(qwen("Qwen2_5_VL"), request("hf"))
    assert len(out["image_grid_thw"]) == 3
    found = re.sub(r"(<\|image_pad\|>)+", "#", text)
    places = [found.index(mark) for mark in ("[00:01.0]", "[00:13.3]", "[00:13.7]", "What?")]
    assert places == sorted(places)
    assert [found[a:b].count("#") for a, b in pairwise(places)] == [1, 1, 1]


def test_smolvlm_tells_the_true_seconds(made: Callable[[str], Written]) -> None:
    pytest.importorskip("num2words")
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    made("hf")
    kind: Any = SmolVLMProcessor
    size: Any = {"longest_edge": 64}
    processor = kind(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer=letters("<fake_token_around_image>", "<image>", "<global-img>", "<video>",
                          "<end_of_utterance>"),
        video_processor=SmolVLMVideoProcessor(size=size, max_image_size=size),
        image_seq_len=4, chat_template=TEMPLATE.replace("VIDEO", "<video>"),
    )  # fmt: skip
    _, text = applied(processor, request("hf_video"))
    assert re.findall(r"Frame from (\d\d:\d\d):", text) == ["00:01", "00:13", "00:13"]
