"""The commands of `gentok`: what each does, five commands to copy, and the groups of conf/ that matter to it. Imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """A command of `gentok`.

    Attributes:
        summary: what it does, in one line.
        examples: arguments to copy, with what they do.
        function: "module:function" that runs it on sys.argv.
        config: the configuration in conf/ that it composes, without .yaml; "" where it composes none.
        groups: the groups of conf/ whose choices its help lists.
        keys: what a command without a configuration takes: {argument: what it is}.
    """

    summary: str
    examples: tuple[tuple[str, str], ...]
    function: str
    config: str = ""
    groups: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()

    def run(self, name: str, arguments: list[str]) -> None:
        """Runs it as if `arguments` had been typed behind it; imports what it needs."""
        sys.argv = [name, *arguments]
        module, _, function = self.function.partition(":")
        getattr(importlib.import_module(module), function)()


COMMANDS = {
    "train": Command(
        "trains a tokenizer (media to tokens) or a generator (of tokens)",
        (
            ("experiment=mnist5k/vq budget=4min", "digits to tokens and back"),
            ("experiment=mnist5k/ar tokenizer.ckpt=mnist5k_vq budget=6min", "a generator over these tokens"),
            ("data=folder data.path=PHOTOS data.size=64 codebook=vq budget=30min", "your own images"),
            ("experiment=imagenet256/xar_b describe=true", "sizes, FLOPs and memory; trains nothing"),
            ("-m experiment=mnist5k/vq seed=0,1 optimizer.lr=1e-3,3e-3 steps=500", "every combination, one summary"),
        ),
        config="config",
        function="gentok.cli.main:train",
        groups=(
            "experiment", "task", "data", "tokenizer", "codebook", "generator", "sampler", "losses", "discriminator", "balancer",
            "consistency", "optimizer", "schedule", "trainer", "logger", "debug", "cluster",
        ),
    ),
    "sample": Command(
        "makes new media, or completes given ones, with a trained generator",
        (
            ("ckpt=mnist5k_ar n=16 condition=7 guidance=1.5 seed=0 out=sevens", "sixteen sevens"),
            ("ckpt=mnist5k_masked n=16 condition=7 sampler=maskgit sampler.steps=12", "with another sampler"),
            ("ckpt=mnist5k_masked n=16 known=sevens/0000.png keep=left-half", "the right half anew"),
            ("ckpt=spoken_digits_ar_delay condition='three six four'", "text to speech"),
            ("ckpt=RUN/checkpoints/last.ckpt n=4", "from a run that still trains"),
            ("ckpt=RUN/bundle n=50000 format=npz trainer=ddp", "a file for an evaluation, drawn on all GPUs"),
        ),
        config="sample",
        function="gentok.cli.main:sample",
        groups=("sampler", "watermark", "trainer"),
    ),
    "evaluate": Command(
        "measures a tokenizer's reconstructions or a generator's samples",
        (
            ("ckpt=mnist5k_vq", "quality of reconstructions, use of the codebook"),
            ("ckpt=mnist5k_ar n=1000", "quality and variety of samples"),
            ("ckpt=mnist5k_masked protocol=nll region=left-half", "bits per token of a region given the rest"),
            ("ckpt=BUNDLE data=folder data.path=FOLDER", "on other data than it was trained on"),
            ("suite=audio_tokenizers data=spoken_digits 'ckpts=[BUNDLE,BUNDLE]'", "several tokenizers in one table"),
        ),
        config="evaluate",
        function="gentok.evaluate:main",
        groups=("data", "sampler", "trainer"),
    ),
    "report": Command(
        "writes one self-contained HTML page of a training run, or of several side by side",
        (
            ("RUN", "RUN/report.html"), ("RUN RUN2 out=FILE.html", "curves of both in each chart, figures in columns"),
            ("outputs/sweeps/SWEEP", "all runs of a sweep, with a table of what was varied"),
        ),
        function="gentok.report.__main__:main",
        keys=(
            ("RUN ...", "folders of runs or sweeps, also of those that still train"),
            ("out=FILE", "of the page; RUN/report.html by default"),
        ),
    ),
    "serve": Command(
        "answers over HTTP: samples, completions, encoding, decoding; requests that wait are drawn together",
        (
            ("ckpt=mnist5k_ar", "on http://127.0.0.1:8000; /docs lists the addresses"),
            ("ckpt=mnist5k_ar sampler=jacobi guidance=1.5 port=9000", "what is taken where a request names none"),
            ("ckpt=BUNDLE device=cuda batch_size=256 max_waiting=2000", "on a GPU"),
            ("ckpt=BUNDLE watermark=exp key=FILE", "all that is drawn carries a key's watermark"),
        ),
        config="serve",
        function="gentok.serving.server:main",
        groups=("sampler", "watermark"),
    ),
    "codec": Command(
        "compresses sound files to a tokenizer's codes, and decompresses them",
        (
            ("compress IN.wav OUT.gtk ckpt=BUNDLE", "all levels"),
            ("compress IN.wav OUT.gtk ckpt=BUNDLE levels=4", "fewer bits"),
            ("decompress OUT.gtk BACK.wav ckpt=BUNDLE", "back to sound"),
            ("resynthesize SOUNDS OUT ckpt=BUNDLE", "a folder through the codec, as Codec-SUPERB and VERSA compare them"),
        ),
        function="gentok.codec:main",
        config="codec",
    ),
    "watermark": Command(
        "says whether images, sounds or codes carry the watermark of a key, with p-values",
        (
            ("detect ckpt=mnist5k_ar key=FILE sevens/0000.png", "one image, encoded again"),
            ("detect ckpt=mnist5k_ar key=FILE sevens", "all images (of a model of sounds: sounds) in a folder"),
            ("detect ckpt=mnist5k_ar key=FILE sevens/codes.safetensors", "codes as sample.py wrote them"),
            ("detect ckpt=mnist5k_ar key=FILE sevens watermark=cluster out=FOUND.json", "another kind, and a JSON file"),
        ),
        function="gentok.watermark:main",
        config="watermark_detect",
        groups=("watermark",),
    ),
    "adopt": Command(
        "turns pretrained tokenizers and generators of others into bundles",
        (
            ("tokenizer=diffusers_vq tokenizer.path=FOLDER 'media_shape=[3,256,256]' out=BUNDLE", "a VQ model of diffusers"),
            ("tokenizer=janus_vq tokenizer.path=FOLDER 'media_shape=[3,384,384]' out=BUNDLE", "the tokenizer of Janus"),
            ("tokenizer=encodec_24khz tokenizer.weights=FILE 'media_shape=[1,24000]' out=BUNDLE", "released weights of EnCodec"),
            ("tokenizer=llamagen_vq tokenizer.weights=FILE 'media_shape=[3,256,256]' out=BUNDLE", "LlamaGen's VQ-16"),
            ("tokenizer=from_bundle tokenizer.ckpt=BUNDLE generator=llamagen generator.weights=FILE out=BOTH", "and LlamaGen-B"),
            ("tokenizer=from_bundle tokenizer.ckpt=BUNDLE generator=var generator.weights=FILE out=BOTH", "VAR-d16, over var_vq"),
            ("tokenizer=titok tokenizer.weights=FILE 'media_shape=[3,256,256]' out=BUNDLE", "TiTok-L-32"),
        ),
        config="adopt",
        function="gentok.adopt:main",
        groups=("tokenizer", "generator"),
    ),
    "push": Command(
        "uploads a model to the Hugging Face Hub, with a model card",
        (
            ("ckpt=RUN/bundle repo=OWNER/NAME license=apache-2.0", "then anyone has gentok.load('hf://OWNER/NAME')"),
            ("ckpt=RUN/bundle repo=OWNER/NAME private=true revision=v2", "for you alone, on a branch"),
            ("ckpt=RUN/bundle repo=OWNER/NAME report=FOLDER/reconstruction.json", "with the figures of `gentok evaluate`"),
            ("ckpt=RUN/bundle folder=FOLDER", "writes what would be uploaded, to look at first"),
        ),
        config="push",
        function="gentok.push:main",
    ),
    "export": Command(
        "writes a tokenizer's encoder and decoder as ONNX, or for torch.export.load",
        (
            ("ckpt=mnist5k_vq out=FOLDER", "encoder.onnx (media to codes) and decoder.onnx (codes to media)"),
            ("ckpt=RUN/bundle out=FOLDER parts=[decoder]", "one of the two"),
            ("ckpt=hf://OWNER/NAME out=FOLDER format=torch_export", "for torch.export.load, without gentok"),
        ),
        config="export",
        function="gentok.export:main",
    ),
    "codes": Command(
        "encodes a data set, and writes its codes for other programs",
        (
            ("ckpt=mnist5k_vq data=mnist5k out=FOLDER", "train.npz and held_out.npz"),
            ("ckpt=RUN/bundle data=folder data.path=PHOTOS data.size=64 out=FOLDER format=parquet", "a row per picture"),
            ("ckpt=RUN/bundle data=sound_folder data.path=SOUNDS out=FOLDER format=shards", "webdataset shards"),
        ),
        config="codes",
        function="gentok.codes:main",
        groups=("data",),
    ),
    "certify": Command(
        "compares what a sampler draws with its model's distribution, for a sampler and a model of your own",
        (("MY.py", "a file with draw(n, seed), log_p(ids), VOCAB and POSITIONS"), ("MY.py n=100000", "smaller differences are seen")),
        function="gentok.certification:main",
        keys=(("MY.py", "the file; it is run"), ("n=SAMPLES", "20,000 by default"), ("seed=NUMBER", "given to draw; 0 by default")),
    ),
    "check": Command(
        "compares what a device computes of a model with the CPU, operation by operation",
        (("BUNDLE device=mps", "names what differs, is missing or falls back to the CPU"), ("mnist5k_ar device=cuda", "on a GPU")),
        function="gentok.device_check:main",
        keys=(
            ("CKPT", "a bundle or a training checkpoint"), ("device=NAME", "cpu, cuda, cuda:N, mps; auto by default"),
            ("trust=[PACKAGE]", "packages of your own whose components may be built"), ("samplers=false", "leaves the samplers out"),
        ),
    ),
    "benchmark": Command(
        "measures speed against named peers in the same run, or plans what a large run needs",
        (
            ("", "everything"), ("only=codebook,sample rounds=5", "some items"), ("only=train threads=1", "with one thread"),
            ("plan=imagenet256/xar_h gpus=64", "memory, traffic and data of a run on 64 GPUs, by formulas"),
        ),
        function="gentok.benchmark:main",
        keys=(
            ("only=ITEMS", "codebook, train, tokenizers, shards, sample, decode, speculation, first_hitting, codec"),
            ("rounds=N", "rounds of each item, of which the medians are reported"),
            ("threads=N", "threads of torch"),
            ("out=FOLDER", "where benchmark.json goes"),
            ("plan=EXPERIMENT", "or several; with gpus=, precision=, steps_per_second=, views=, hours=, and keys of the experiment"),
        ),
    ),
    "demo": Command(
        "real digits -> tokenizer -> generator -> new digits, in a quarter of an hour on two cores",
        (("", "into outputs/demo"), ("out=FOLDER tokenizer=4min generator=6min", "other times")),
        function="gentok.demo:main",
        keys=(
            ("out=FOLDER", "where models and images go"),
            ("tokenizer=TIME", "of training the tokenizer, such as 2min"),
            ("generator=TIME", "of training the generator"),
        ),
    ),
    "sweep": Command(
        "makes the summary table of a sweep anew",
        (("SWEEP", "also of a sweep that still runs or was stopped"),),
        function="gentok.sweep:main",
        keys=(("SWEEP", "the folder of a sweep (`gentok train -m ...`)"),),
    ),
    "classifier": Command(
        "trains the classifier that reads classes in generated images",
        (("data=cifar10 data.shards=SHARDS out=FILE.safetensors", "of photographs, with another key for every setting"),),
        config="eval_classifier",
        function="gentok.eval_classifier:main",
        groups=("data",),
    ),
}
