"""Rewards on CLIP and BLIP: equal to a plain computation, pair by pair, whatever stands in the batch."""

import os
import pickle
import shutil
import warnings

import pytest
import torch
from torch.nn.functional import normalize

from image_gen.rewards import models
from image_gen.rewards.aesthetic import aesthetic
from image_gen.rewards.clip_score import clip_score, clip_value
from image_gen.rewards.clip_towers import tensor_of
from image_gen.rewards.hps import hps
from image_gen.rewards.image_reward import image_reward, image_reward_value
from image_gen.rewards.pick_score import pick_score, pick_value
from image_gen.rewards.pictures import to_image
from mmrl.errors import UserError

PROMPTS = ("a red cat", "a blue dog on a table", "snow")


@pytest.fixture
def rewards(clip_folder, open_clip_folder, hps_file, head_file, image_reward_file, bert_folder):
    """name -> function(outputs, records)."""
    file, architecture = hps_file
    options = {
        "clip_score": (clip_score, {"path": clip_folder}),
        "clip_score open_clip": (clip_score, {"path": open_clip_folder}),
        "pick_score": (pick_score, {"path": clip_folder}),
        "hps": (hps, {"path": file, "architecture": architecture}),
        "aesthetic": (aesthetic, {"path": clip_folder, "head": head_file}),
        "image_reward": (image_reward, {"path": image_reward_file, "tokenizer": bert_folder}),
    }

    def bind(function, given):
        return lambda outputs, records, **more: function(
            outputs, records, [{}] * len(outputs), device="cpu", **given, **more
        )

    return {name: bind(function, given) for name, (function, given) in options.items()}


NAMES = ("clip_score", "clip_score open_clip", "pick_score", "hps", "aesthetic", "image_reward")


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_is_scored_alone(rewards, records, images, name):
    """Batch = singles; permuting pairs permutes scores; batch size and repeated prompts change nothing."""
    score = rewards[name]
    rows = records(*PROMPTS)
    together = score(images, rows)
    assert len(set(together)) == 3 and all(isinstance(value, float) for value in together)
    assert together == pytest.approx([score([x], [r])[0] for x, r in zip(images, rows)], abs=1e-5)
    assert together == pytest.approx(score(images, rows, batch_size=2), abs=1e-5)
    order = [2, 0, 1]
    permuted = score([images[i] for i in order], [rows[i] for i in order])
    assert permuted == pytest.approx([together[i] for i in order], abs=1e-5)
    group = score([images[0], images[1], images[0], images[2]], records(*(PROMPTS[i] for i in (0, 1, 0, 2))))
    assert group == pytest.approx([together[i] for i in (0, 1, 0, 2)], abs=1e-5)
    assert score([], []) == []


def plain_clip(folder, image, text):
    """Unit embeddings and exp(logit_scale) by transformers' own forward."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        out = model(**processor(text=[text], images=to_image(image), return_tensors="pt"))
    return normalize(out.image_embeds, dim=-1), normalize(out.text_embeds, dim=-1), out.logits_per_image.item()


def test_transformers_clip_equals_its_own_forward(rewards, records, images, clip_folder, head_file):
    rows = records(*PROMPTS)
    for i, image in enumerate(images):
        eye, word, logit = plain_clip(clip_folder, image, PROMPTS[i])
        cosine = float((eye * word).sum())
        assert rewards["clip_score"](images, rows)[i] == pytest.approx(cosine, abs=1e-6)
        assert rewards["pick_score"](images, rows)[i] == pytest.approx(logit / 26, abs=1e-6)
        mixed = rewards["pick_score"](images, rows, divisor=8.0, shift=18.0)[i]
        assert mixed == pytest.approx((logit - 18) / 8, abs=1e-6)
        state = torch.load(head_file, weights_only=True)
        for layer in (0, 2, 4, 6, 7):
            eye = eye @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
        assert rewards["aesthetic"](images, rows)[i] == pytest.approx(float(eye), abs=1e-5)


def test_open_clip_and_hps_equal_open_clips_own_calls(rewards, records, images, open_clip_folder):
    import open_clip

    name = f"local-dir:{open_clip_folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(list(PROMPTS))
    with torch.no_grad():
        eye = normalize(model.eval().encode_image(torch.stack([transform(to_image(x)) for x in images])), dim=-1)
        word = normalize(model.encode_text(tokens), dim=-1)
    plain = (eye * word).sum(-1).tolist()
    assert rewards["clip_score open_clip"](images, records(*PROMPTS)) == pytest.approx(plain, abs=1e-6)
    assert rewards["hps"](images, records(*PROMPTS)) == pytest.approx(plain, abs=1e-6)  # the same weights
    assert rewards["hps"](images, records(*PROMPTS), scale=100.0) == pytest.approx([100 * p for p in plain], abs=1e-4)


def test_worked_example():
    cosine = float(normalize(torch.tensor([3.0, 4.0]), dim=0) @ normalize(torch.tensor([4.0, 3.0]), dim=0))
    assert clip_value(cosine, "cos") == pytest.approx(0.96)
    assert clip_value(cosine, "clipscore") == pytest.approx(2.4)
    assert clip_value(cosine, "torchmetrics") == pytest.approx(96)
    assert [clip_value(-0.5, form) for form in ("cos", "clipscore", "torchmetrics")] == [-0.5, 0, 0]
    assert pick_value(0.96, 100.0, divisor=1.0) == pytest.approx(96)
    assert pick_value(0.96, 100.0) == pytest.approx(3.692308, abs=1e-6)
    assert pick_value(0.22, 100.0, divisor=8.0, shift=18.0) == pytest.approx(0.5)
    assert image_reward_value(0.16717362830052426 + 1.0333394966054072) == pytest.approx(1.0)


def test_both_shapes_of_transformers_answers_are_read():
    class Output:
        pooler_output = torch.ones(1, 2)

    assert torch.equal(tensor_of(Output()), tensor_of(torch.ones(1, 2)))


@pytest.mark.parametrize("name, limit", [("clip_score", 77), ("hps", 20), ("image_reward", 35)])
def test_long_prompts_are_cut_and_told_once(rewards, records, images, name, limit):
    start = " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(limit))
    rows = records(start + " x y z", start + " q r s t", "a")
    with pytest.warns(UserWarning, match=f"2 prompts are longer than {limit} tokens and are cut") as told:
        first = rewards[name]([images[0]] * 3, rows)
    assert len(told) == 1 and first[0] == pytest.approx(first[1], abs=1e-6) != first[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rewards[name]([images[0]] * 3, rows) == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(
    "function, options, words",
    [
        (clip_score, {}, "openai/clip-vit-large-patch14"),
        (pick_score, {}, "yuvalkirstain/PickScore_v1"),
        (hps, {}, "HPS_v2.1_compressed.pt"),
        (aesthetic, {}, "openai/clip-vit-large-patch14"),
        (aesthetic, {"path": "."}, r"linearMSE.pth .*option head"),
        (image_reward, {}, "ImageReward.pt"),
        (clip_score, {"path": "/no/such/folder"}, "'/no/such/folder' does not exist; get"),
        (hps, {"path": "xswu/HPSv2"}, "is not a file on this machine; get"),
    ],
)
def test_missing_weights_say_what_to_get(records, images, function, options, words):
    with pytest.raises(UserError, match=words) as told:
        function([images[0]], records("a"), [{}], **options)
    assert "\n" not in str(told.value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


@pytest.mark.parametrize("name", ["hps", "aesthetic", "image_reward"])
def test_a_weights_file_with_code_is_not_opened(
    records, images, tmp_path, monkeypatch, name, hps_file, clip_folder, bert_folder
):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"layers.0.weight": Bomb()}}, tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"a": Bomb()}, protocol=2))
    for file in ("bad.pt", "raw.pt"):
        given = {
            "hps": lambda f: hps([images[0]], records("a"), [{}], path=f, architecture=hps_file[1]),
            "aesthetic": lambda f: aesthetic([images[0]], records("a"), [{}], path=clip_folder, head=f),
            "image_reward": lambda f: image_reward([images[0]], records("a"), [{}], path=f, tokenizer=bert_folder),
        }[name]
        with pytest.raises(UserError, match="more than tensors"):
            given(str(tmp_path / file))
    assert not (tmp_path / "code_was_run").exists()


def test_weights_that_do_not_fit_are_refused(records, images, tmp_path, clip_folder, head_file, hps_file):
    wrong = torch.load(head_file, weights_only=True)
    torch.save(wrong | {"layers.9.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(UserError, match="does not fit the model.*layers.9"):
        aesthetic([images[0]], records("a"), [{}], path=clip_folder, head=str(tmp_path / "more.pth"))
    torch.save({"layers.0.weight": torch.zeros(1024, 8)}, tmp_path / "less.pth")
    with pytest.raises(UserError, match="does not fit the model"):
        aesthetic([images[0]], records("a"), [{}], path=clip_folder, head=str(tmp_path / "less.pth"))
    with pytest.raises(UserError, match=r"more\.pth"):
        hps([images[0]], records("a"), [{}], path=str(tmp_path / "more.pth"), architecture=hps_file[1])
    with pytest.raises(UserError, match="ImageReward.pt"):
        image_reward([images[0]], records("a"), [{}], path=head_file, tokenizer=clip_folder)


def test_a_folder_with_missing_weights_or_of_another_model_is_refused(records, images, tmp_path, clip_folder):
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="holds a 'bert' model, not 'clip'"):
        clip_score([images[0]], records("a"), [{}], path=str(tmp_path / "bert"))
    shutil.copytree(clip_folder, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*visual_projection"):
        clip_score([images[0]], records("a"), [{}], path=str(tmp_path / "cut"))


@pytest.mark.parametrize(
    "gone, words",
    [
        (("tokenizer.json", "tokenizer_config.json"), "has no vocabulary: its tokenizer files are missing"),
        (("tokenizer.json",), "has no vocabulary"),
        (("processor_config.json",), "name one with the option `processor`"),
    ],
)
def test_a_folder_without_its_processor_needs_another(records, images, tmp_path, clip_folder, gone, words):
    """Released reward models come so; transformers would make a tokenizer that knows no word."""
    shutil.copytree(clip_folder, tmp_path / "bare")
    for name in gone:
        (tmp_path / "bare" / name).unlink()
    given = {"path": str(tmp_path / "bare"), "device": "cpu"}
    with pytest.raises(UserError, match=words):
        pick_score(images, records(*PROMPTS), [{}] * 3, **given)
    whole = pick_score(images, records(*PROMPTS), [{}] * 3, path=clip_folder, device="cpu")
    assert pick_score(images, records(*PROMPTS), [{}] * 3, processor=clip_folder, **given) == whole


def test_models_are_shared_detached_and_leave_the_random_stream_alone(rewards, records, images):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    models.loaded("fresh weights", "cpu", lambda: torch.nn.Linear(4, 4))
    models.forget()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = rewards["clip_score"]([images[0].clone().requires_grad_()], records("a red cat"))
    assert torch.equal(torch.rand(3), wanted)
    assert cast == rewards["clip_score"]([images[0]], records("a red cat"))  # float32 under autocast too
    rewards["pick_score"](images, records(*PROMPTS))
    rewards["aesthetic"](images, records(*PROMPTS))
    assert len(models._HELD) == 2  # one CLIP for the three, one head
    assert all(not p.requires_grad for held in models._HELD.values() for p in held.model.parameters())
    assert not any(held.model.training for held in models._HELD.values())


def test_weights_that_cannot_be_loaded_are_tried_once():
    """A batch that fails is scored again row by row."""
    tries = []

    def build():
        tries.append(1)
        raise UserError("the hub does not answer")

    for _ in range(3):
        with pytest.raises(UserError, match="the hub does not answer"):
            models.loaded("key", "cpu", build)
    assert len(tries) == 1


def test_one_open_clip_option_for_transformers_only(records, images, open_clip_folder):
    with pytest.raises(UserError, match="`processor` is for transformers folders"):
        clip_score([images[0]], records("a"), [{}], path=open_clip_folder, processor=open_clip_folder, device="cpu")


def test_devices_are_checked(rewards, records, images, clip_folder):
    for device, words in (("tpu", "device 'tpu'"), ("cuda:99", "no device 'cuda:99'"), ("mps", "device 'mps'")):
        with pytest.raises(UserError, match=words):
            clip_score([images[0]], records("a"), [{}], path=clip_folder, device=device)
    on = clip_score([images[0]], records("a"), [{}], path=clip_folder, device="cpu", offload=True)
    assert on == rewards["clip_score"]([images[0]], records("a"))
