"""Models in and out: what is saved loads in transformers as it stands, and every wrong folder says what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.vlm.families.registry import FAMILIES
from foveate.vlm.folder import TINY_FOLDER, LoadError, read_settings, resolve
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, freeze_groups, load, save, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.video import VideoError, frame_indices, read_clip

PICTURE = Picture.of(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
QUESTION = (Message.user(PICTURE, "What letter is on the red triangle?"),)


def logits(vlm: VLM) -> torch.Tensor:
    """``[1, T, V]`` of the model's own forward on our segment."""
    segment = vlm.renderer.prompt(QUESTION)
    ids = torch.from_numpy(segment.ids_T)[None]
    with torch.no_grad():
        out = vlm.model(
            input_ids=ids,
            pixel_values=torch.cat([vlm.renderer.patches(span.item) for span in segment.visuals]),
            image_grid_thw=torch.tensor([span.item.grid_thw for span in segment.visuals]),
            position_ids=torch.from_numpy(segment.positions_3T)[:, None],
            use_cache=False,
        )
    made: torch.Tensor = out.logits
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Qwen2.5-VL; tests copy it before they break it."""
    target = tmp_path_factory.mktemp("models") / "model"
    save(tiny_random("qwen2.5-vl"), target)
    return target


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# ---- models from nothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tiny_models_are_quick_repeatable_and_leave_the_random_state_alone(model_type: str) -> None:
    tiny_random(model_type)  # imports
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    start = time.process_time()
    first, again, other = tiny_random(model_type), tiny_random(model_type), tiny_random(model_type, seed=1)
    assert (time.process_time() - start) / 3 < 1.0
    assert torch.equal(torch.rand(1), expected)
    torch.testing.assert_close(logits(first), logits(again), rtol=0, atol=0)
    assert (logits(first) - logits(other)).abs().max() > 0.1
    assert first.head_weight.shape == (512, 64)
    assert first.dtype == torch.float32
    assert first.family.model_type == first.model.config.model_type == model_type


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_wrong_position_shows_in_the_logits_of_a_tiny_model(model_type: str) -> None:
    """The default weights are wide enough for tests to notice: swapping height and width of one picture moves the logits."""
    vlm = tiny_random(model_type)
    segment = vlm.renderer.prompt(QUESTION)
    right = logits(vlm)
    segment.positions_3T[1:] = segment.positions_3T[[2, 1]].copy()  # the prompt is cached: the next call sees this
    assert (logits(vlm) - right).abs().max() > 1e-2


# ---- saving and loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_saved_model_loads_in_transformers_and_here(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    made = tiny_random(model_type, max_pixels=40 * 32 * 32)
    save(made, tmp_path / "model")
    ours = load(tmp_path / "model")
    assert ours.renderer.image == made.renderer.image
    torch.testing.assert_close(logits(ours), logits(made), rtol=0, atol=0)

    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What letter is on the red triangle?"}]}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[PICTURE.rgb()], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == made.renderer.prompt(QUESTION).ids_T.tolist()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, logits(made), rtol=0, atol=1e-4)
    assert theirs.generation_config.eos_token_id == list(made.renderer.stop_ids)


def test_a_loaded_model_is_saved_with_the_budget_and_template_in_use(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    shouting = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}!"
    first = load(folder, max_pixels=12 * 28 * 28, chat_template=shouting)
    first.model.lm_head.weight.data += 1
    save(first, tmp_path / "a")
    second = load(tmp_path / "a")
    assert second.renderer.image == first.renderer.image
    assert second.renderer.budget.max_pixels == 12 * 28 * 28
    assert second.renderer.chat_template == shouting
    assert torch.equal(second.head_weight, first.head_weight)
    processor = AutoProcessor.from_pretrained(tmp_path / "a")
    assert processor.image_processor.size["longest_edge"] == 12 * 28 * 28
    assert processor.apply_chat_template([{"role": "user", "content": "hey"}]) == "hey<|im_end|>!"
    save(second, tmp_path / "a")  # onto itself
    assert load(tmp_path / "a").renderer.image == first.renderer.image


def test_saving_is_atomic_and_never_overwrites_what_is_not_a_model(tmp_path: Path) -> None:
    vlm = tiny_random("qwen3-vl")
    save(vlm, tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())

    class Full:
        def save_pretrained(self, target: Path) -> None:
            (target / "model.safetensors").write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(dataclasses.replace(vlm, model=Full()), tmp_path / "model")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before
    load(tmp_path / "model")

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("dear reader")
    with pytest.raises(LoadError, match="not empty and not a model folder"):
        save(vlm, tmp_path / "thesis")


def test_dtype_device_and_freezing(folder: Path) -> None:
    vlm = load(folder, dtype="bfloat16", device="cpu", freeze=("vision", "projector"))
    assert (vlm.dtype, vlm.device.type) == (torch.bfloat16, "cpu")
    free = {vlm.family.group_of(name) for name, parameter in vlm.model.named_parameters() if parameter.requires_grad}
    assert free == {"language"}
    with pytest.raises(LoadError, match=r"no parameter group head; there are language, projector, vision"):
        freeze_groups(vlm, ("head",))
    with pytest.raises(LoadError, match=r"int4.*float32, bfloat16"):
        load(folder, dtype="int4")


def test_the_attention_of_language_model_and_tower_is_ours(folder: Path) -> None:
    for vlm in (load(folder), tiny_random("qwen3-vl")):
        assert vlm.model.config.text_config._attn_implementation == "foveate"
        assert vlm.model.config.vision_config._attn_implementation == "foveate"
    plain = load(folder, attention="sdpa")
    assert plain.model.config.vision_config._attn_implementation == "sdpa"


@pytest.mark.skipif(not (TINY_FOLDER / "config.json").is_file(), reason="the embedded model is not there yet")
def test_the_embedded_model_loads_by_name() -> None:
    assert load("tiny").family.name == "qwen3-vl"


# ---- wrong folders ----------------------------------------------------------------------------------------------------------


def test_names_that_are_no_folder() -> None:
    with pytest.raises(LoadError, match=r"/nowhere/model: no such folder.*config.json"):
        load("/nowhere/model")
    with pytest.raises(LoadError, match="no such folder, and not a Hugging Face name"):
        load("Qwen3-VL-4B")
    with pytest.raises(LoadError, match=r"Qwen/Qwen-none: .*Hub cannot be reached.*local folder"):
        resolve("Qwen/Qwen-none")  # tests run with HF_HUB_OFFLINE=1


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}')
    with pytest.raises(LoadError, match=r"base model cannot be found: Qwen/Qwen3-VL-4B-Instruct"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(LoadError, match=r"'llava'.*qwen2-vl \(qwen2_vl\).*qwen3\.5"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(LoadError, match=r"config.json: not valid JSON \(line 1"):
        load(tmp_path)


def test_folders_whose_parts_do_not_fit(copy: Path) -> None:
    edit(copy / "processor_config.json", lambda data: data["image_processor"].update(patch_size=16))
    with pytest.raises(LoadError, match=r"patch_size 16, config\.json has patch_size 14"):
        load(copy)
    edit(copy / "processor_config.json", lambda data: data["image_processor"].update(patch_size=14))
    edit(copy / "config.json", lambda data: data["text_config"].update(vocab_size=400))
    with pytest.raises(LoadError, match=r"tokenizer has ids up to \d+ but the embedding only 400 rows"):
        load(copy)
    edit(copy / "config.json", lambda data: data["text_config"].update(vocab_size=512))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"no tokenizer.json"):
        load(copy)


def test_a_tokenizer_without_vision_tokens_and_missing_weights(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "lm_head" not in name}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(LoadError, match=r"1 weights are missing, such as lm_head.weight"):
        load(copy)

    def without_vision(data: dict[str, Any]) -> None:
        data["added_tokens"] = [token for token in data["added_tokens"] if "pad|>" not in token["content"]]

    edit(copy / "tokenizer.json", without_vision)
    settings = copy / "tokenizer_config.json"
    edit(settings, lambda data: data.pop("added_tokens_decoder", None))
    with pytest.raises(LoadError, match=r"copy: the tokenizer lacks <\|image_pad\|>, <\|video_pad\|>"):
        load(copy)


# ---- processor files --------------------------------------------------------------------------------------------------------


def test_settings_of_older_and_newer_processor_files(tmp_path: Path) -> None:
    """Older files say min_pixels and max_pixels and have none for video; newer ones say size, all in one file."""
    family = FAMILIES["qwen2_5_vl"]
    assert read_settings(tmp_path, family) == family.settings()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}))
    older = read_settings(tmp_path, family)
    assert (older.budget.min_pixels, older.budget.max_pixels) == (3136, 12845056)
    assert older.video.budget == older.budget
    newer = {
        "image_processor": {
            "size": {"shortest_edge": 4096, "longest_edge": 8192},
            "image_mean": [0.5, 0.5, 0.5],
            "merge_size": 4,
        },
        "video_processor": {"size": {"shortest_edge": 1, "longest_edge": 2}, "fps": 4},
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    made = read_settings(tmp_path, family, max_pixels=5000)
    assert (made.budget.min_pixels, made.budget.max_pixels, made.merge_size, made.mean) == (4096, 5000, 4, (0.5, 0.5, 0.5))
    assert (made.video.budget.max_pixels, made.video.fps) == (2, 4.0)
    with pytest.raises(LoadError, match="give both min_pixels and max_pixels"):
        read_settings(tmp_path, family, max_pixels=100)


# ---- video files ------------------------------------------------------------------------------------------------------------


def write_video(path: Path, num_frames: int, fps: int) -> None:
    """Grey frames, frame n of brightness 6 n."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 6 * n, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_frames_are_evenly_spread_and_timed(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", num_frames=40, fps=10)
    for reader in ("av", "decord"):
        if reader == "decord":
            pytest.importorskip("decord")
        clip = read_clip(tmp_path / "v.mp4", fps=2.0, reader=reader)  # type: ignore[arg-type]
        assert clip.times_s == (0.0, 0.6, 1.1, 1.7, 2.2, 2.8, 3.3, 3.9)
        brightness = [float(np.array(frame.rgb()).mean()) for frame in clip.frames]
        assert np.abs(np.array(brightness) - 60 * np.array(clip.times_s)).max() < 5
    assert len(read_clip(tmp_path / "v.mp4", fps=30, max_frames=6).frames) == 6
    assert frame_indices(3, 10.0, 2.0, 768) == [0, 1, 2]


def test_videos_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text.mp4: not a readable video.*H.264"):
        read_clip(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=r"gone.mp4: no such file"):
        read_clip(tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match="'ffmpeg': expected av or decord"):
        read_clip(tmp_path / "text.mp4", reader="ffmpeg")  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="must be positive"):
        read_clip(tmp_path / "text.mp4", fps=0)


def test_the_pixel_budget_is_smart_resize() -> None:
    from qwen_vl_utils.vision_process import smart_resize

    from foveate.vlm.images import PixelBudget

    budget, rng = PixelBudget(56 * 56, 1280 * 28 * 28), np.random.default_rng(0)
    for _ in range(500):
        width, height = (int(side) for side in rng.integers(28, 4000, 2))
        if max(width, height) / min(width, height) < 100:
            want = smart_resize(height, width, 28, budget.min_pixels, budget.max_pixels)
            assert budget.resized(width, height, 28) == want[::-1], (width, height)


def test_decoded_files_are_bounded_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.vlm import images

    monkeypatch.setattr(images, "_DECODED_BYTES", 3 * 100 * 100 * 2)
    images._decoded_images.clear()
    for number in range(4):
        Image.new("RGB", (100, 100), (number, 0, 0)).save(tmp_path / f"{number}.png")
    opened = [images.Picture.open(tmp_path / f"{number}.png") for number in range(4)]
    assert len(images._decoded_images) == 2
    assert [picture.rgb().getpixel((0, 0)) for picture in opened] == [(number, 0, 0) for number in range(4)]
    assert len(images._decoded_images) == 2
