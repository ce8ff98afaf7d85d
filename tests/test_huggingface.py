"""Models of Hugging Face folders of random weights, as teacher and student."""

import json
import os
import shutil
import sys
import tomllib

import numpy as np
import onnxruntime
import pytest
import tiny
import torch
from architectures import _file, _made
from click.testing import CliRunner

import edgekd
from edgekd.cli import cli
from edgekd.errors import EnvironmentUnfit, UsageError
from edgekd.models import saved
from edgekd.stages.distill import Distill
from edgekd.stages.export import Export
from edgekd.stages.given import Given
from edgekd.stages.quantize import Quantize
from edgekd.store import fingerprint

transformers = pytest.importorskip("transformers")
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32, "num_labels": 3}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def vit(labels=3):
    config = transformers.ViTConfig(**SMALL | {"num_labels": labels}, image_size=10, patch_size=5, num_channels=1)
    return transformers.ViTForImageClassification(config)


def resnet():
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def bert(kind="SequenceClassification"):
    config = transformers.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=16)
    return getattr(transformers, f"BertFor{kind}")(config)


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16, num_labels=3
    )
    return transformers.DistilBertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=3, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


def wav2vec2():
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(8, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8, feat_extract_norm="layer",
        apply_spec_augment=False, layerdrop=0.0,
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config)


def written(folder, make, seed=0):
    torch.manual_seed(seed)
    make().save_pretrained(folder)
    return folder


def pixels(g, n):
    return {"pixel_values": torch.randn(n, 3, 16, 16, generator=g)}


def tokens(g, n):
    lengths = torch.randint(4, 9, (n, 1), generator=g)
    mask = (torch.arange(8) < lengths).long()
    return {"input_ids": torch.randint(5, len(WORDS), (n, 8), generator=g) * mask, "attention_mask": mask}


def sounds(g, n):
    return {"input_values": torch.randn(n, 160, generator=g)}


KINDS = {
    "resnet": (resnet, pixels),
    "bert": (bert, tokens),
    "tokens": (lambda: bert("TokenClassification"), tokens),
    "distilbert": (distilbert, tokens),
    "gpt2": (gpt2, tokens),
    "wav2vec2": (wav2vec2, sounds),
}


def task_of(folder, inputs, **more):
    g, parts = torch.Generator().manual_seed(0), []
    each = more.pop("each", ())
    for rows in (40, 8):
        parts += [inputs(g, rows), torch.randint(0, 3, (rows, *each), generator=g)]
    told = {"outputs": {"logits": edgekd.classes(3, axis=2)}} if each else {"classes": 3}
    models = {"teacher": edgekd.hf(folder / "teacher"), "student": edgekd.hf(f"hf:{folder / 'student'}")}
    return edgekd.Task(
        "hf", "1", models, edgekd.arrays(*parts), (edgekd.top1(),), inputs=tuple(parts[0]), **told | more
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_as_teacher_and_student(kind, tmp_path):
    make, inputs = KINDS[kind]
    written(tmp_path / "teacher", make), written(tmp_path / "student", make, 1)
    task = task_of(tmp_path, inputs, **({"each": (8,)} if kind == "tokens" else {}))
    teacher, student = (_made(Given(model=name), task, tmp_path / f"{name}.made") for name in ("teacher", "student"))
    g = torch.Generator().manual_seed(2)
    rows = inputs(g, 4)
    loaded = type(make()).from_pretrained(tmp_path / "teacher", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(saved.load(teacher, task)(rows), loaded(**rows).logits)
    distilled = _made(Distill(epochs=1, batch=16, lr=1e-4), task, tmp_path / "distilled", student, (teacher,))
    int8 = _made(Quantize(mode="ptq"), task, tmp_path / "int8", distilled)
    found = _file(task, distilled, _made(Export(), task, tmp_path / "exported", int8))
    print(kind, found)
    assert found["db"] > 15 and found["int8"][0] > 0


# ---------------------------------------------------------------- a whole run

RECIPE = """
task    = "hftask:task"
targets = ["host"]
threads = 1
control = false

[model.teacher]
model = "hf:vit"

[[stage]]
use    = "distill"
epochs = 1

[[stage]]
use  = "quantize"
mode = "ptq"

[gate.any]
file_bytes = "max 100 kB"
"""
TASK = """
import dataclasses, tiny
own = {"student": tiny.task.models["student"]}
task = dataclasses.replace(tiny.task, name="hf", inputs=("pixel_values",), models=own)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    written(tmp_path / "vit", vit)
    (tmp_path / "vit" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# license: none\n")
    (tmp_path / "hftask.py").write_text(TASK)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    yield tmp_path
    sys.modules.pop("hftask", None)


def invoke(*words):
    return CliRunner().invoke(cli, list(words))


def test_a_teacher_of_a_recipe_through_to_int8(place):
    found = invoke("compress", "recipe.toml", "--out", "run")
    assert found.exit_code == 0, found.output
    result = json.loads((place / "run" / "result.json").read_text())
    (origin,) = (step["origin"] for step in result["steps"] if "origin" in step)
    assert origin["licence"] == "apache-2.0" and origin["architecture"] == "ViTForImageClassification"
    assert origin["files"]["model.safetensors"] == edgekd.files.sha256(place / "vit" / "model.safetensors")
    made = {candidate["id"]: place / "run" / candidate["file"] for candidate in result["candidates"]}
    x = tiny.x[240:]
    ours = onnxruntime.InferenceSession(made["teacher"]).run(None, {"pixel_values": x})[0]
    loaded = transformers.ViTForImageClassification.from_pretrained(place / "vit").eval()
    with torch.no_grad():
        np.testing.assert_allclose(ours, loaded(torch.from_numpy(x)).logits.numpy(), atol=1e-4)
    assert "quantize" in made and tomllib.loads((place / "run" / "recipe.toml").read_text())["model"]["teacher"] == {
        "model": "hf:../vit"
    }

    # another place: the same steps, all of them finished
    (place / "elsewhere").mkdir()
    shutil.move(place / "vit", place / "elsewhere" / "other")
    (place / "recipe.toml").write_text(RECIPE.replace("hf:vit", "hf:elsewhere/other"))
    plan = invoke("compress", "recipe.toml", "--dry-run")
    assert plan.exit_code == 0 and f"{len(result['steps'])} steps, 0 to do" in plan.output, plan.output


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p: shutil.rmtree(p / "vit"), "vit: there is no such folder"),
        (lambda p: (p / "vit/config.json").unlink(), "has no config.json"),
        (lambda p: (p / "vit/config.json").write_text("{"), "config.json: is not valid JSON"),
        (
            lambda p: os.rename(p / "vit/model.safetensors", p / "vit/pytorch_model.bin"),
            "pytorch_model.bin only: loading",
        ),
        (lambda p: (p / "vit/model.safetensors").unlink(), "has no weights"),
        (lambda p: (p / "vit/model.safetensors").write_bytes(b"x" * 20), "can't be loaded"),
        (lambda p: written(p / "vit", lambda: vit(5)), "models['teacher']: gives [B, 5] for 3 classes"),
        (lambda p: written(p / "vit", lambda: vit().vit), "has no weights for pooler.dense.bias"),
        (lambda p: (p / "recipe.toml").write_text(RECIPE.replace("hf:", "")), "model.teacher: model: is 'vit'"),
    ],
)
def test_what_is_wrong_is_said_before_any_training(place, wrong, said):
    wrong(place)
    found = invoke("compress", "recipe.toml", "--dry-run").exception
    assert isinstance(found, UsageError) and said in str(found), found
    assert len(found.problems) == (2 if "[B, 5]" in said else 1)  # and that it doesn't fit the student's


def test_code_of_a_folder_is_not_run(place):
    config = json.loads((place / "vit" / "config.json").read_text())
    config |= {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"}}
    (place / "vit" / "config.json").write_text(json.dumps(config))
    (place / "vit" / "own.py").write_text("raise SystemExit(9)")
    with pytest.raises(UsageError, match="names the class 'OwnModel', (.|\\n)*the folder's own code is never run"):
        edgekd.hf(place / "vit")


def test_without_the_extra(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentUnfit, match=r"edgekd\S*\[hf\]"):
        edgekd.hf(place / "vit")
    assert isinstance(invoke("compress", "recipe.toml", "--dry-run").exception, EnvironmentUnfit)


def test_a_name_of_the_hub_without_a_network(monkeypatch):
    with pytest.raises(UsageError, match="40 digits of a commit"):
        edgekd.hf("hf:google/vit-base")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentUnfit, match="can't be fetched from the hub"):
        edgekd.hf(f"google/vit-base@{'0' * 40}")


def test_keys_hold_weights_and_config_and_no_path(tmp_path):
    one = written(tmp_path / "a", vit)
    digest = lambda folder: fingerprint.code_and_libraries({"teacher": edgekd.hf(folder)})[0]
    known = digest(one)
    shutil.copytree(one, tmp_path / "b")
    model = edgekd.hf(tmp_path / "b")
    model(), model.labels
    assert digest(tmp_path / "b") == known == fingerprint.code_and_libraries({"teacher": model})[0]
    assert digest(written(tmp_path / "c", vit, 1)) != known
    config = json.loads((one / "config.json").read_text()) | {"layer_norm_eps": 0.1}
    (one / "config.json").write_text(json.dumps(config))
    assert digest(one) != known


def test_weights_outside_the_folder_are_refused(tmp_path):
    """Keys hold digests of the folder's files: what lies elsewhere would not be in them."""
    folder = written(tmp_path / "bert", bert)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    shutil.copy(tmp_path / "elsewhere.safetensors", folder / "part.safetensors")
    tensors = dict.fromkeys(bert().state_dict(), "part.safetensors")
    index = folder / "model.safetensors.index.json"
    table = {"metadata": {}, "weight_map": tensors}
    index.write_text(json.dumps(table))
    assert index.name in edgekd.hf(folder).digests and edgekd.hf(folder)() is not None
    table["weight_map"]["classifier.bias"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"has no \.\./elsewhere\.safetensors"):
        edgekd.hf(folder)
    index.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "sub/other.safetensors"}))
    with pytest.raises(UsageError, match=r"has no sub/other\.safetensors"):
        edgekd.hf(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../base"}')
    with pytest.raises(UsageError, match="is an adapter"):
        edgekd.hf(folder)


def test_a_new_head_is_trained(tmp_path):
    written(tmp_path / "vit", lambda: vit(5))
    torch.manual_seed(0)
    model = edgekd.hf(tmp_path / "vit", classes=3)()
    assert model(torch.zeros(2, 1, 10, 10)).shape == (2, 3)


# ---------------------------------------------------------------- texts and images


def test_texts_become_inputs(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = written(tmp_path / "bert", bert)
    with pytest.raises(UsageError, match="has no tokenizer"):
        edgekd.hf(folder).tokenize(["a b"], 8)
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    model = edgekd.hf(folder)
    found = model.tokenize(["a b", "c d e"], 4)
    assert found["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    ragged = model.tokenize(["a b", "c d e"])["input_ids"]
    assert [row.tolist() for row in ragged] == [[5, 6], [7, 8, 9]]

    # lengths are the mask
    module = model().eval()
    ids, lengths = torch.from_numpy(found["input_ids"]), torch.tensor([2, 3])
    mask = torch.from_numpy(found["attention_mask"])
    with torch.no_grad():
        masked = module({"input_ids": ids, "attention_mask": mask})
        assert torch.equal(module({"input_ids": ids, "lengths": lengths}), masked)
        with pytest.raises(ValueError, match="takes no input 'other'"):
            module({"input_ids": ids, "other": mask})


def test_images_become_inputs(tmp_path):
    folder = written(tmp_path / "vit", vit)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    with pytest.raises(UsageError, match="has no preprocessor_config"):
        edgekd.hf(folder).images(pixels)
    facts = {"size": {"height": 12, "width": 16}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    model = edgekd.hf(folder)
    want = (pixels / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    np.testing.assert_allclose(model.images(pixels), want.transpose(0, 3, 1, 2), atol=1e-5)
    assert model.preprocess.resize == (12, 16) and model.preprocess.deviation == (0.2, 0.3, 0.4)
    assert model.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and model.licence == ""
