"""Captions as vectors of a frozen text encoder: the same as transformers computes, cached beside the codes, and asked for by a text."""

import json

import pytest
import torch
from data_kit import paint

import gentok
from gentok.cli import compose
from gentok.data.manifest import Manifest
from gentok.data.token_cache import encode_set
from gentok.data.token_dataset import TokenDataset
from gentok.errors import ConfigError
from gentok.evaluate import evaluate
from gentok.nn.text_encoder import TextEncoder
from gentok.sample_files import sample_to_folder
from gentok.training.run import train
from gentok.types import VectorsSpec

transformers = pytest.importorskip("transformers")
WORDS = ("[PAD]", "[UNK]", "[BEGIN]", "[END]", "a", "red", "blue", "square", "disc")
CAPTIONS = ("a red square", "a blue disc", "blue", "")
SMALL = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CLIP = {**SMALL, "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def network(kind):
    if kind == "clip_text_model":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP))
    if kind == "clip":
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        vision |= {"image_size": 16, "patch_size": 8}
        return transformers.CLIPModel(transformers.CLIPConfig(text_config=CLIP, vision_config=vision))
    if kind == "t5":
        return transformers.T5Model(transformers.T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def saved(folder, kind="clip_text_model", seed=0):
    """A small text encoder and its tokenizer, and the encoder itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(seed)
    model = network(kind).eval()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="[BEGIN] $A [END]", special_tokens=[("[BEGIN]", 2), ("[END]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BEGIN]", "eos_token": "[END]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    saved(folder)
    return str(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A manifest of 24 pictures with the captions in turn, and no labels."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(24):
        paint(folder / f"{i:02d}.png", size=(16, 16), seed=i)
        rows.append(json.dumps({"path": f"{i:02d}.png", "caption": CAPTIONS[i % 4]}))
    (folder / "table.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "table.jsonl"


def data(table, encoder, **options):
    return Manifest(table, held_out=0.25, captions="vectors", text_encoder=encoder, caption_length=6, **options)


@pytest.mark.parametrize("kind", ["clip_text_model", "clip", "t5", "bert"])
def test_vectors_are_the_hidden_states_of_the_text_alone(tmp_path, kind):
    model = saved(tmp_path, kind)
    encoder = TextEncoder(tmp_path)
    vectors = encoder(["a red square", "", "disc"], 7)
    assert vectors.x.shape == (3, 7, encoder.width) and vectors.mask.sum(1).tolist() == [5, 0, 3]
    half = {"clip": "text_model", "t5": "encoder"}.get(kind)
    with torch.no_grad():
        alone = (getattr(model, half) if half else model)(input_ids=torch.tensor([[2, 4, 5, 7, 3]])).last_hidden_state[0]
    torch.testing.assert_close(vectors.x[0, :5], alone, atol=1e-5, rtol=1e-5)  # padding is not attended to
    assert not vectors.x[~vectors.mask].any()
    assert torch.equal(encoder(["disc"], 7).x[0], vectors.x[2]) and encoder.lengths(["disc", ""]) == [3, 2]
    assert encoder(["a red square"], 4).mask.sum() == 4  # cut


def test_the_name_tells_weights_apart(tmp_path):
    names = set()
    for seed in (0, 1, 1):
        saved(tmp_path / f"{len(names)}-{seed}", seed=seed)
        names.add(TextEncoder(tmp_path / f"{len(names)}-{seed}").name)
    assert len(names) == 2 and all(name.startswith("clip_text_model-") for name in names)


def test_batches_and_cached_tokens_have_the_captions_vectors(tmp_path, table, encoder):
    train_set = data(table, encoder).train
    ((name, spec),) = train_set.condition_spec.parts
    assert name == "text" and spec == VectorsSpec(16, 6, TextEncoder(encoder).name)
    batch = train_set.__getitems__(range(len(train_set)))
    by_name = {f"{i:02d}.png": CAPTIONS[i % 4] for i in range(24)}
    wanted = TextEncoder(encoder)([by_name[path.rpartition("/")[2]] for path in train_set.names], 6)
    part = batch.condition.parts["text"]
    assert torch.equal(part.x, wanted.x) and torch.equal(part.mask, wanted.mask)
    tokenizer = gentok.load("docs/zoo/cifar10_vq").tokenizer
    cached = TokenDataset(encode_set(tokenizer, train_set, tmp_path / "codes.safetensors", progress=False), tokenizer.spec)
    read = cached.__getitems__(range(len(cached))).condition.parts["text"]
    assert torch.equal(read.x, wanted.x.half()) and torch.equal(read.mask, wanted.mask)


def test_another_encoder_is_another_set(tmp_path, table, encoder):
    saved(tmp_path, seed=1)
    one, other, again = data(table, encoder), data(table, str(tmp_path)), data(table, encoder)
    assert one.train.description["content"] == again.train.description["content"] != other.train.description["content"]
    assert one.condition_spec != other.condition_spec


def test_room_that_no_caption_needs_is_pointed_out(table, encoder, caplog):
    Manifest(table, held_out=0.25, captions="vectors", text_encoder=encoder)
    assert "data.caption_length=5" in caplog.text
    Manifest(table, held_out=0.25, captions="vectors", text_encoder=encoder, caption_length=3)
    assert "12 of 24 captions have more than 3 tokens" in caplog.text


@pytest.mark.parametrize("options, line", [
    ({"captions": "vectors"}, "needs the folder of a frozen text encoder: data.text_encoder=FOLDER"),
    ({"captions": "ids", "text_encoder": "somewhere"}, "set data.captions=vectors"),
    ({"captions": "vectors", "text_encoder": "nowhere"}, "there is no folder nowhere of a text encoder"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_a_line(table, options, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as caught:
        Manifest(table, held_out=0.25, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_encoder_is_refused_in_a_line(tmp_path, table):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no text encoder") as caught:
        data(table, str(tmp_path))
    assert "\n" not in str(caught.value)


def shorten(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def foreign_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "layers.1.mlp.fc1" not in name}
    save_file(kept, weights, metadata={"format": "pt"})


def own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Theirs"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()")


@pytest.mark.parametrize("spoil", [
    shorten, foreign_weights, own_code,
    lambda folder: (folder / "config.json").write_text("{"), lambda folder: (folder / "tokenizer.json").write_text("{}"),
    lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
], ids=["cut", "other weights", "code", "config", "tokenizer", "no tokenizer"])  # fmt: skip
def test_damaged_and_hostile_folders_are_refused_in_a_line(tmp_path, table, spoil):
    saved(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=r"holds no text encoder|the weights in .* lack") as caught:
        data(table, str(tmp_path))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_generator_is_trained_on_texts_and_asked_by_them(tmp_path, table, encoder):
    words = [
        "task=generator", "tokenizer=from_bundle", "tokenizer.ckpt=docs/zoo/cifar10_vq", "generator=autoregressive", "generator.width=16",
        "generator.depth=1", "generator.heads=2", "generator.condition_by=cross", "data=manifest", f"data.path={table}", "data.size=32",
        "data.held_out=0.25", "data.captions=vectors", "data.caption_length=6", f"data.text_encoder={encoder}", "steps=2", "batch_size=6",
        "task.pictures=3", f"paths.root={tmp_path}", f"paths.run={tmp_path / 'run'}", "trainer.progress_bar=false",
    ]  # fmt: skip
    path = str(train(compose("config", words)) / "bundle")
    model = gentok.load(path)
    assert dict(model.condition_spec.parts)["text"].encoder == TextEncoder(encoder).name
    told = ["n=3", "condition=a red square", f"ckpt={path}", f"out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match=r"name that encoder's folder, text_encoder=FOLDER"):
        sample_to_folder(compose("sample", told))
    out = sample_to_folder(compose("sample", [*told, f"text_encoder={encoder}"]))
    assert len(list(out.glob("[0-9]*.png"))) == 3
    with torch.no_grad():  # far from uniform, which two steps are not
        for parameter in model.generator.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    asked = model.sample(3, "a red square", text_encoder=encoder, seed=0)
    given = model.sample(3, TextEncoder(encoder)(["a red square"], 6).x[0, :5], seed=0)
    assert torch.equal(asked, given) and not torch.equal(asked, model.sample(3, seed=0))
    saved(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="this model reads the vectors of clip_text_model-"):
        model.sample(1, "a red square", text_encoder=str(tmp_path / "other"))
    report = evaluate(compose("evaluate", [f"ckpt={path}", "n=8", f"out={tmp_path / 'evaluation'}", "trust=[paths]", "progress=false"]))
    assert report["metrics"]["samples"] == 8
