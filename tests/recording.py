"""What this tree computes, as a file of hashes and figures, and whether another tree still computes the same, bit for bit.

    python tests/recording.py write FILE.json [only=GLOB]      # only: the items of these names, such as 'train/mnist5k/*'
    python tests/recording.py compare FILE.json [only=GLOB]    # a line per difference; exit status 1 if there is one

A refactoring must not change what is computed: record before it, compare after each of its steps. `write` with `only` renews these items in
a file that is there. Floats differ between machines and versions of torch, so a record is good for one machine and is not kept in the
repository; tests/golden is for all machines.

Items are recorded through what users see (train.py, sample.py, `python -m gentok.evaluate`, the files of bundles), so that this script runs
unchanged while names inside the package change. The one hook, `watched`, is into Lightning. Every item has a process of its own with one
thread, two at a time; everything is tiny, and nothing outside of the repository is read. About ten minutes on two cores.

    train/*      every experiment: first and last weights, all that is logged in 20 steps, the bundle; of generators also samples
    part/*       the same for choices that no experiment makes (recording.yaml)
    describe/*   sizes of the large experiments
    zoo/*        codes and media of the bundles in docs/zoo; of generators also samples, by every sampler that fits
    evaluate/*   figures of these bundles on few items
    codec/*      the size of a compressed file, and what comes out of it
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import re
import runpy
import shlex
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
CLOCKED = re.compile(r"_per_second$|data_wait|seconds_of_sampling|real_time_factor")
"""Figures that depend on how fast the machine is."""


# --------------------------------------------------------------------------------------------------- hashes, fixed media


def joined(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def tensor_hash(tensor: Any) -> str:
    """Of the type, shape and bytes of a tensor."""
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return joined([str(tensor.dtype), str(tuple(tensor.shape)), hashlib.sha256(data).hexdigest()])


def state_hashes(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Of a state dict: its tensors in the order of their names. Where names alone are changed, `values` stays."""
    hashes = {key: tensor_hash(value) for key, value in sorted(state.items()) if hasattr(value, "shape")}
    parts = {"tensors": len(hashes), "names": joined(hashes), "values": joined(sorted(hashes.values()))}
    return {name: joined(hashes.values()), **{f"{name}, {part}": value for part, value in parts.items()}}


def fixed_media(shape: tuple[int, ...], n: int = 4) -> Any:
    """float32 [n, *shape] in [-1, 1]: noise in blocks of 4 pixels or samples. Made of integers, so the same on every machine."""
    import torch

    blocks = [shape[0], *(-(-size // 4) for size in shape[1:])]
    media = torch.randint(0, 256, (n, *blocks), generator=torch.Generator().manual_seed(0))
    for axis, size in enumerate(shape[1:], 2):
        media = media.repeat_interleave(4, axis).narrow(axis, 0, size)
    return media / 127.5 - 1


def write_files(folder: Path) -> None:
    """Pictures and sounds of noise in the forms that conf/data reads: a folder, a table, shards; and what samples go on from."""
    import soundfile
    from PIL import Image

    def png(media: Any, path: Path) -> None:
        Image.fromarray(((media + 1) * 127.5).round().byte().permute(1, 2, 0).squeeze(2).numpy()).save(path)

    def wav(media: Any, path: Path) -> None:
        soundfile.write(path, 0.3 * media[0].numpy(), 16000, subtype="PCM_16")

    folder.mkdir()
    png(fixed_media((1, 32, 32), 1)[0], folder / "known.png")
    wav(fixed_media((1, 8000), 1)[0], folder / "known.wav")
    sets = {"pictures": (png, "png", fixed_media((3, 32, 32), 48)), "sounds": (wav, "wav", fixed_media((1, 6000), 24))}
    for name, (save, suffix, media) in sets.items():
        paths = [Path(name) / f"class{i % 10}" / f"{i:02d}.{suffix}" for i in range(len(media))]
        for item, path in zip(media, paths):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            save(item, folder / path)
        rows = [f"{path},{path.parent.name}" for path in paths]
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        shard(folder / f"{name}.tar", [path for i, path in enumerate(paths) if i % 3])
        shard(folder / f"{name}_held_out.tar", paths[::3])


def shard(file: Path, paths: Iterable[Path]) -> None:
    """A webdataset shard of files beside it, with the digit at the end of their folder's name as class."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for path in paths:
            for member, data in ((path.name, (file.parent / path).read_bytes()), (f"{path.stem}.cls", path.parent.name[-1].encode())):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))


# ---------------------------------------------------------------------------------------------------------- what is run


class Refused(Exception):
    """A command has ended with a line for the person at the keyboard."""


def command(program: str, words: str) -> str:
    """What a program of the repository (train.py, or a module) prints, run in this process. Raises Refused."""
    out, errors = io.StringIO(), io.StringIO()
    sys.argv = [program, *shlex.split(words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise Refused((errors.getvalue().strip().splitlines() or [f"exit status {end.code}"])[-1]) from None
    return out.getvalue()


@contextlib.contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Whatever Lightning trains meanwhile leaves the hashes of its first and its last weights (the raw ones) in `found`."""
    from lightning.pytorch import Callback, Trainer

    class Watch(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            found.update(state_hashes("initial weights", module.state_dict()))

        def on_train_end(self, trainer: Any, module: Any) -> None:
            found.update(state_hashes("final weights", module.state_dict()))

    def watching(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        self.callbacks.append(Watch())
        return fit(self, *args, **kwargs)

    fit, Trainer.fit = Trainer.fit, watching
    try:
        yield
    finally:
        Trainer.fit = fit


def train(words: str) -> dict[str, Any]:
    """A run into the folder `run`; of a generator also samples."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    with watched(found):
        command("train.py", f"{TABLE['tiny']} {words}")
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in rows[0]:
        if not CLOCKED.search(name):
            found[f"log {name}"] = [row[name] for row in rows if row[name]]
    for path in sorted(Path("run/bundle").glob("*/model.safetensors")):
        found.update(state_hashes(f"bundle {path.parent.name}", load_file(path)))
    generator = Path("run/bundle/generator").is_dir()
    return {**found, **samples("run/bundle", 2, TABLE["rare"], {"auto": ""})} if generator else found


def experiment(name: str) -> dict[str, Any]:
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    words = [f"experiment={name}", TABLE["data"][name.partition("/")[0]], TABLE["more"].get(name, "")]
    if "/tokenizer: from_bundle" in text:
        ckpt = next(path for pattern, path in TABLE["tokenizers"].items() if fnmatch(name, pattern))
        if (ROOT / "conf" / "experiment" / f"{ckpt}.yaml").is_file():
            experiment(ckpt)
            Path("run").rename("tokenizer")
            ckpt = "tokenizer/bundle"
        words.append(f"tokenizer.ckpt={ckpt} task.pictures=0")  # samples are recorded anyway
    elif "/tokenizer: speech_text" in text:  # over the bundle of another experiment
        experiment("spoken_digits/semantic")
        Path("run").rename("speech")
        words.append("tokenizer.speech.ckpt=speech/bundle")
    return train(" ".join(words))


def samples(ckpt: str, n: int, samplers: Iterable[str], further: Mapping[str, str]) -> dict[str, Any]:
    """Tokens that sample.py draws, by each sampler that fits. further: name -> words of one more call, which must succeed."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for name, words in {**{name: f"sampler={name}" for name in samplers}, **further}.items():
        try:
            command("sample.py", f"ckpt={ckpt} n={n} seed=0 out=samples {words}")
        except Refused:
            if name in further:
                raise
            found[f"samples, {name}"] = "refused"
            continue
        stored = load_file(next(Path("samples").glob("*.safetensors")))
        found[f"samples, {name}"] = joined(f"{key} {tensor_hash(stored[key])}" for key in sorted(stored))
        found[f"samples, {name}, calls"] = json.loads(Path("samples/samples.json").read_text())["calls_per_sample"]
    return found


def describe(name: str) -> dict[str, Any]:
    *table, report = command("train.py", f"experiment={name} describe=true trainer.accelerator=cpu").splitlines()
    return {**dict(re.split(r"\s{2,}", line.strip()) for line in table), "json": report}


def zoo(ckpt: str, sound: bool) -> dict[str, Any]:
    import gentok

    bundle = gentok.load(ckpt)
    media = 0.3 * fixed_media((1, 16000)) if sound else fixed_media(tuple(bundle.spec.media_shape))
    tokens = bundle.tokenizer.encode(media)
    found = {
        "codes": tensor_hash(tokens.codes if bundle.spec.levels else tokens.values),
        "decoded": tensor_hash(bundle.tokenizer.decode(tokens).float()),
    }
    if bundle.generator is None:
        return found
    every = sorted(path.stem for path in (ROOT / "conf" / "sampler").glob("*.yaml"))
    further = TABLE["samples"]["of sounds" if sound else "of pictures"]
    return {**found, "sampled media": tensor_hash(bundle.sample(n=4, seed=0)), **samples(ckpt, 4, every, further)}


def evaluate(ckpt: str, protocol: str, data: str) -> dict[str, Any]:
    command("gentok.evaluate", f"ckpt={ckpt} protocol={protocol} {TABLE['evaluate']} {data}")
    metrics = flat(json.loads(Path(f"figures/{protocol}.json").read_text())["metrics"])
    return {name: value for name, value in metrics.items() if not CLOCKED.search(name)}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found.update(flat(value, f"{above}{name}, ") if isinstance(value, Mapping) else {f"{above}{name}": value})
    return found


def codec(ckpt: str) -> dict[str, Any]:
    command("gentok.codec", f"compress files/known.wav sound.gtk ckpt={ckpt} levels=4 progress=false")
    command("gentok.codec", f"decompress sound.gtk back.wav ckpt={ckpt} progress=false")
    data = Path("sound.gtk").read_bytes()
    codes = data[8 + int.from_bytes(data[4:8], "little") :]  # behind the header
    return {"codes": joined([codes.hex()]), "bytes": len(codes), "decompressed": joined([Path("back.wav").read_bytes().hex()])}


def all_items() -> dict[str, Callable[[], dict[str, Any]]]:
    """name -> what computes its fields, in a folder of its own that holds nothing but docs/ and files/."""
    conf, found = ROOT / "conf" / "experiment", {}
    for group in (*TABLE["data"], "imagenet256"):
        for path in sorted((conf / group).glob("*.yaml")):
            kind, function = ("train", experiment) if group in TABLE["data"] else ("describe", describe)
            found[f"{kind}/{group}/{path.stem}"] = partial(function, f"{group}/{path.stem}")
    for name, words in TABLE["parts"].items():
        found[f"part/{name}"] = partial(train, Template(words).substitute(TABLE["beginnings"]))
    for path in sorted((ROOT / "docs" / "zoo").glob("*/bundle.json")):
        name, document = path.parent.name, json.loads(path.read_text())
        ckpt, spec, generator = f"docs/zoo/{name}", document["tokenizer"]["spec"], document["kind"] == "generator"
        sound = spec["modality"] == "audio"
        found[f"zoo/{name}"] = partial(zoo, ckpt, sound)
        group = next((group for group in TABLE["data"] if name.startswith(group)), "spoken_digits")  # any sound will do
        data = f"data={group} {TABLE['data'][group]}" if group != "mnist5k" else ""
        data += " data.digits=3 data.crop=null" if sound else ""
        probed = spec["vocab_sizes"] and not sound
        for protocol in ("generation", "nll") if generator else ("reconstruction", "probe") if probed else ("reconstruction",):
            found[f"evaluate/{name}/{protocol}"] = partial(evaluate, ckpt, protocol, data)
    found["codec/spoken_digits_codec"] = partial(codec, "docs/zoo/spoken_digits_codec")
    return found


# -------------------------------------------------------------------------------------------------------- write, compare


def check_tree() -> None:
    """Raises ImportError where another tree than this one would be recorded."""
    import gentok

    if not Path(gentok.__file__).is_relative_to(ROOT):
        raise ImportError(f"gentok comes from {gentok.__file__}, not from {ROOT}")


def record_one(name: str, work: Path) -> tuple[str, dict[str, Any], float]:
    """(name, fields, seconds); of an item that failed, the reason as the field `error`."""
    import torch

    began, folder = time.perf_counter(), work / name.replace("/", "_")
    torch.set_num_threads(1)
    folder.mkdir()
    os.chdir(folder)
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "files").symlink_to(work / "files")
    try:
        check_tree()
        fields = all_items()[name]()
    except Exception as error:
        traceback.print_exc()
        fields = {"error": f"{type(error).__name__}: {error}"}
    return name, fields, time.perf_counter() - began


def record(only: str) -> dict[str, dict[str, Any]]:
    """The items whose name fits the pattern `only`."""
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    sys.path.insert(0, str(ROOT))  # this tree, whichever is installed; processes take the path over
    names, found = [name for name in all_items() if fnmatch(name, only)], {}

    def done(result: tuple[str, dict[str, Any], float]) -> None:
        found[result[0]] = result[1]
        print(f"{len(found):3} of {len(names)}  {result[0]}  {result[2]:.0f} s", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        write_files(work / "files")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lightning.pytorch", "hydra", "safetensors.torch"])  # what takes seconds, once
        with context.Pool(2, maxtasksperchild=1) as pool:
            jobs = [pool.apply_async(record_one, (name, work), callback=done) for name in names]
            return {name: job.get()[1] for name, job in zip(names, jobs)}


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each field that differs, of lists for the first entry; also for an item or field that one side lacks."""
    lines, absent = [], "missing"
    for item in sorted({*was, *now}):
        if item not in was or item not in now:
            lines.append(f"{item}: was {'recorded' if item in was else absent}, is {'recorded' if item in now else absent}")
            continue
        for name in sorted({*was[item], *now[item]}):
            where, (one, other) = name, (side[item].get(name, absent) for side in (was, now))
            if one == other:
                continue
            if isinstance(one, list) and isinstance(other, list):
                at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
                where, one, other = f"{name}[{at}]", *(dict(enumerate(side)).get(at, absent) for side in (one, other))
            lines.append(f"{item}: {where}: was {one}, is {other}")
    return lines


def main(action: str, path: str, only: str = "only=*") -> int:
    """The exit status: 1 where something differs, or could not be recorded."""
    import torch

    file, only = Path(path).resolve(), only.removeprefix("only=")
    if action == "compare" and not file.is_file():
        raise SystemExit(f"there is no record at {file}")
    before = json.loads(file.read_text()) if file.is_file() else {"items": {}}
    items, about = record(only), {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    failed = sum("error" in fields for fields in items.values())
    if action == "write":
        file.write_text(json.dumps({**about, "items": {**before["items"], **items}}, indent=1, sort_keys=True) + "\n")
        print(f"{len(items)} items written to {file}, {failed} failed")
        return int(failed > 0)
    for name, value in about.items():
        if before[name] != value:
            print(f"note: recorded with {name} {before[name]}, this is {value}")
    lines = differences({name: fields for name, fields in before["items"].items() if fnmatch(name, only)}, items)
    print("\n".join([*lines, f"{len(items)} items, {len(lines)} differences"]))
    return int(bool(lines) or failed > 0)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4 or sys.argv[1] not in ("write", "compare"):
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
