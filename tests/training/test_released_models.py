"""Released models are adopted, sampled by what fits them, trained further on a folder of images, and resumed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from released_kit import released, some_slow
from resume_kit import different, killed_at, state

from gentok import load
from gentok.adopt import adopt
from gentok.cli import compose
from gentok.rng import RowRNG
from gentok.samplers.base import fitting
from gentok.training.run import train
from gentok.types import Class, Condition

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {
    "var": (
        64,
        """tokenizer=var_vq tokenizer.weights={root}/var.vq.pt tokenizer.width=32 tokenizer.codebook.sides=[1,2,3,4]
        tokenizer.codebook.codebook.vocab_size=64 tokenizer.codebook.codebook.dim=8""",
        "generator=var generator.width=48 generator.depth=2 generator.heads=3",
        ("vq", "gpt"),
        {"NextScaleSampler"},
    ),
    "maskgit": (
        48,
        """tokenizer=maskgit_vq tokenizer.weights={root}/maskgit.vq.pt tokenizer.width=32 tokenizer.multipliers=[1,1,1,1,2]
        tokenizer.codebook.vocab_size=64 tokenizer.codebook.dim=16""",
        "generator=rar generator.width=48 generator.depth=2 generator.heads=3 generator.hidden=96 generator.dropout=0",
        ("vq", "rar"),
        {"AutoregressiveSampler", "Jacobi", "Speculative", "GroupedJacobi", "ZipAR"},
    ),
    "titok": (
        64,
        """tokenizer=titok tokenizer.weights={root}/titok.vqgan.pt tokenizer.tokens=5 tokenizer.width=48 tokenizer.depth=2
        tokenizer.heads=3 tokenizer.vqgan_codes=32 tokenizer.vqgan_dim=16 tokenizer.vqgan_width=32
        tokenizer.vqgan_multipliers=[1,1,1,1,2] tokenizer.codebook.vocab_size=64 tokenizer.codebook.dim=6""",
        "generator=titok generator.width=48 generator.depth=2 generator.heads=3 generator.hidden=96 generator.dropout=0",
        ("vqgan", "bert"),
        {"MaskGIT", "FirstHitting", "Ancestral", "Halton", "EntropyBounded", "ConfidenceThreshold", "Remasking", "Corrector"},
    ),
}
FAMILIES["titok_uvit"] = (
    *FAMILIES["titok"][:2], FAMILIES["titok"][2].replace("=titok", "=titok_uvit").replace("depth=2", "depth=5"), ("vqgan", "uvit"),
    FAMILIES["titok"][4],
)  # fmt: skip
FAMILIES["xar"] = (
    64,
    "tokenizer=mar_kl tokenizer.weights={root}/mar.kl.pt tokenizer.width=32 tokenizer.multipliers=[1,1,2]",
    "generator=xar_released generator.width=48 generator.depth=4 generator.heads=3 generator.dropout=0",
    ("mar.kl", "xar.xar"),
    {"EntitiesSampler"},
)
FAMILIES["mar"] = (
    16,
    FAMILIES["xar"][1],
    """generator=mar generator.width=48 generator.depth=2 generator.heads=3 generator.hidden=96 generator.denoiser_width=32
    generator.denoiser_depth=2 generator.buffer=4 generator.dropout=0""",
    ("mar.kl", "mar.mar"),
    {"MARSampler"},
)
"""By record: side of the images, words of the tokenizer and of the generator, names of their files in it (or RECORD.FILE), and samplers
that draw."""


@pytest.fixture
def photos(tmp_path):
    """Ten images of five classes, each of one colour and a little noise."""
    random = np.random.RandomState(0)
    for i in range(10):
        folder = tmp_path / "photos" / str(i % 5)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 255, (1, 1, 3)) + random.randint(-20, 20, (64, 64, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def pixels(photos, side):
    """The photos, float32 [10, 3, side, side]."""
    images = [np.asarray(Image.open(photos / str(i % 5) / f"{i}.png").resize((side, side))) for i in range(10)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


def adopted(family, root):
    """The bundle of a family's small released files."""
    side, tokenizer, generator, files, _ = FAMILIES[family]
    names = [name if "." in name else f"{family.partition('_')[0]}.{name}" for name in files]
    for name in names:
        torch.save(released(*name.split(".")), root / f"{name}.pt")
    words = [*tokenizer.format(root=root).split(), *generator.split()]
    own = [f"generator.weights={root}/{names[1]}.pt", f"media_shape=[3,{side},{side}]", "classes=5", f"out={root}/bundle"]
    return adopt(compose("adopt", [*words, *own]))


def words(family, task, bundle, photos, root, run):
    """The words of a command that trains a bundle's generator or tokenizer further."""
    side, tokenizer, generator, *_ = FAMILIES[family]
    own = [word for word in tokenizer.split() if not word.startswith("tokenizer.weights=")]
    parts = f"{generator} tokenizer=from_bundle tokenizer.ckpt={bundle} task.views=0" if task == "generator" else " ".join(own)
    return f"""print_config=false trainer.progress_bar=false logger=none trainer=cpu trainer.precision=32-true budget=null task={task}
        {parts} init_from={bundle} data=folder data.path={photos} data.size={side} data.held_out=0.2 steps=6 batch_size=4
        trainer.checkpoint_every=2 optimizer.lr={3e-3 if task == "generator" else 1e-3} schedule.warmup=1 task.pictures=0
        paths.root={root} paths.run={root / run}""".split()


def training(family, task, bundle, photos, root, run, *more):
    return compose("config", [*words(family, task, bundle, photos, root, run), *more])


@pytest.mark.parametrize("family", some_slow(FAMILIES, "var", "maskgit"))
def test_a_released_model_is_adopted_and_sampled_by_what_fits_it(family, tmp_path):
    side, samplers = FAMILIES[family][0], FAMILIES[family][-1]
    bundle = load(adopted(family, tmp_path))
    assert {sampler.__name__ for sampler in fitting(bundle.generator)} >= samplers
    for sampler in fitting(bundle.generator):
        if sampler.__name__ in samplers:
            drawn = bundle.sample(2, 3, sampler=sampler(), guidance=1.5)
            assert drawn.shape == (2, 3, side, side) and torch.equal(drawn, bundle.sample(3, 3, sampler=sampler(), guidance=1.5)[:2])


@pytest.mark.parametrize("family", some_slow(FAMILIES, "var"))
def test_a_released_model_is_trained_further_on_a_folder_of_images(family, photos, tmp_path):
    side, bundle = FAMILIES[family][0], adopted(family, tmp_path)
    trained = train(training(family, "generator", bundle, photos, tmp_path, "run"))
    before, after = (computed(path, "generator", pixels(photos, side)).mean() for path in (bundle, trained / "bundle"))
    assert after < 0.95 * before


@pytest.mark.parametrize("family", some_slow(FAMILIES, "maskgit"))
def test_its_tokenizer_is_trained_further_on_a_folder_of_images(family, photos, tmp_path):
    side, bundle = FAMILIES[family][0], adopted(family, tmp_path)
    trained = train(training(family, "tokenizer", bundle, photos, tmp_path, "run"))
    media = pixels(photos, side)
    before, after = ((model.decode(model.encode(media)) - media).square().mean() for model in (load(bundle), load(trained / "bundle")))
    assert after < 0.95 * before


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generator", "tokenizer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_such_a_training_is_resumed_to_the_bit(family, task, photos, tmp_path):
    bundle = adopted(family, tmp_path)
    straight = train(training(family, task, bundle, photos, tmp_path, "straight"))
    config = training(family, task, bundle, photos, tmp_path, "killed", "resume=auto")
    with killed_at(5):
        train(config)
    assert different(state(train(config)), state(straight)) == []


def computed(path, task, media):
    """What a bundle makes of images: pixels; or a bound of the nats, the loss where there is none. Weights alone say less: biases that a
    norm takes out again follow roundings."""
    model = load(path)
    tokens = model.encode(media)
    if task == "tokenizer":
        return model.decode(tokens)
    condition, rng = Condition({"class": Class(torch.arange(10) % 5)}), RowRNG.of(0, range(10))
    if model.generator.has_nll:
        return model.generator.nll_bound(tokens, condition, rng, 5)
    return torch.stack([model.generator.loss(tokens, condition, rng).loss.detach() for _ in range(3)])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generator", "tokenizer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_train_it_further_as_one_does(family, task, photos, tmp_path):
    bundle = adopted(family, tmp_path)
    train(training(family, task, bundle, photos, tmp_path, "one"))
    command = [sys.executable, str(ROOT / "train.py"), *words(family, task, bundle, photos, tmp_path, "two"), "trainer=ddp_sim"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    media = pixels(photos, FAMILIES[family][0])
    before, one, two = (computed(path, task, media) for path in (bundle, tmp_path / "one" / "bundle", tmp_path / "two" / "bundle"))
    assert (two - one).abs().max() < 0.02 * (one - before).abs().max()
