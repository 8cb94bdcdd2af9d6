"""The report of a run is one page that stands alone, whatever the folder holds."""

import base64
import csv
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from gentok.report.__main__ import main, write_report
from gentok.report.chart import MOST, Curve, chart, number, smooth, thin
from gentok.report.measures import charts, title
from gentok.report.run_folder import read_run
from gentok.report.run_media import IMAGES, SOUNDS
from gentok.types import Raster, TokenSpec

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "img", "br"}


def make_run(folder: Path, levels: int = 1, steps: int = 400, finished: bool = True, hostile: str = "") -> Path:
    """A run's folder as training leaves it, without the training."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "bundle" / "tokenizer").mkdir(parents=True)
    target = "tokenizer:\n  _target_: gentok.tokenizers.vqgan.VQGAN\n  width: 8\n  codebook:\n    _target_: gentok.codebooks.vq.VQ\n"
    (folder / "config.yaml").write_text(f"name: digits{hostile}\nsteps: {steps}\nbudget: null\ntask:\n  name: tokenizer\n{target}")
    use = [f"codebook/{side}_{m}" + (f"_{k}" if levels > 1 else "") for side in ("train", "held_out") for m in ("usage", "perplexity")
           for k in range(levels)]  # fmt: skip
    columns = ["step", "epoch", "loss", "lr", "images_per_second", "train/l2", "psnr", *use]
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for step in range(9, steps, 10):
            loss = "nan" if step == 19 else math.exp(-step / 60) + 0.01 * (step % 3)
            row = {"step": step, "epoch": 0, "loss": loss, "lr": 1e-3, "images_per_second": 300, "train/l2": 0.5}
            writer.writerow(row | {name: min(1.0, step / steps + 0.1) for name in use if "train" in name})
            if step % 100 == 99:
                writer.writerow({"step": step, "psnr": 10 + step / 50} | {name: step / steps for name in use if "held_out" in name})
                Image.new("L", (66, 32), step % 255).save(folder / "pictures" / f"reconstructions_{step + 1:07d}.png")
        file.write("" if finished else "4")  # a row that is being written
    if finished:
        words = {"step": steps, "seconds": 75.0, "command": f"python train.py x={hostile}", "metrics": {"psnr": 18.0}}
        (folder / "metrics.json").write_text(json.dumps(words))
        save_file({"encoder.w": np.zeros((3, 5), "float32")}, folder / "bundle" / "tokenizer" / "model.safetensors")
    return folder


class Structure(HTMLParser):
    """Collects what the tests ask for, and that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.urls, self.ids, self.refs, self.headings, self.images = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.urls += [given[k] for k in ("src", "href", "xlink:href", "action", "poster", "srcset") if k in given]
        self.ids += [given["id"]] if "id" in given else []
        self.refs += given.get("aria-labelledby", "").split()
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(given)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, tag


@pytest.mark.parametrize("levels, finished", [(1, True), (8, True), (1, False)])
def test_the_page_stands_alone_and_is_well_formed(tmp_path, levels, finished):
    text = write_report(make_run(tmp_path / "run", levels, finished=finished)).read_text()
    page = Structure(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text, re.I), "a link to somewhere else"
    assert all(u.startswith(("data:", "#")) for u in page.urls) and len(page.images) == 4
    assert all(i["alt"] and int(i["width"]) for i in page.images)
    assert len(set(page.ids)) == len(page.ids) and {u[1:] for u in page.urls if u[0] == "#"} | set(page.refs) <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert page.headings[0] == 1 and all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:]))
    assert text.count("<svg") == text.count("<desc") > 5 and (">finished<" in text) == finished
    assert "default-src 'none'" in text


def test_the_image_in_the_page_is_the_image_of_the_run(tmp_path):
    run = make_run(tmp_path / "run")
    urls = [i["src"] for i in Structure(write_report(run).read_text()).images]
    files = sorted((run / "pictures").iterdir(), reverse=True)
    assert [base64.b64decode(u.split(",", 1)[1]) for u in urls] == [f.read_bytes() for f in files]


def test_images_are_capped_in_number_and_size(tmp_path):
    run = make_run(tmp_path / "run", steps=3000)
    Image.effect_noise((3000, 2000), 90).save(run / "pictures" / "samples_0000001.png")
    found = read_run(run)
    assert [p.step for p in found.images["reconstructions"]][:: IMAGES - 1] == [100, 3000]
    assert [p.step for p in read_run(run, share=1 / 8).images["reconstructions"]] == [3000], "of many runs, the last"
    assert len(found.images["reconstructions"]) == IMAGES and found.image_counts["reconstructions"] == 30
    (large,) = found.images["samples"]
    assert large.width / large.height == 1.5 and 400 <= large.width <= 1200 and len(large.url) < 150_000


def test_what_the_log_says_is_what_is_drawn(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert run.series["psnr"] == [(s, 10 + (s - 1) / 50) for s in (100, 200, 300, 400)]
    assert run.held_out == {"psnr", "codebook/held_out_usage", "codebook/held_out_perplexity"}
    assert 20 not in dict(run.series["loss"]) and "loss: 1 value was not finite and left out" in run.notes
    assert run.sizes == {"tokenizer.encoder": 15} and run.steps == 400
    drawn = chart("PSNR", [Curve("held out", run.series["psnr"])])
    data = json.loads(drawn.data)
    assert [p[2:] for p in data[0]["points"]] == [["100", "11.98"], ["200", "13.98"], ["300", "15.98"], ["400", "17.98"]]
    heights = [p[1] for p in data[0]["points"]]
    assert heights == sorted(heights, reverse=True), "what grows goes up"


def test_thinning_keeps_the_extremes_and_the_ends():
    points = [(i, math.sin(i / 700)) for i in range(20_000)] + [(20_000, 9.0), (20_001, -9.0)]
    kept = thin(points)
    assert len(kept) <= MOST + 2 and kept[0] == points[0] and kept[-1] == points[-1] and (20_000, 9.0) in kept
    assert thin(points[:MOST]) == points[:MOST]


CURVES = [[(0, 0.0)], [(5, 3.0)], [(1, 1e-9), (2, 1e9)], [(1, -5.0), (2, -5.0)], [(1, 1.0), (2, 1.0 + 1e-12)]]


@pytest.mark.parametrize("points", CURVES)
@pytest.mark.parametrize("how", [{}, {"zero": True}, {"may_log": True}])
def test_every_curve_can_be_drawn(points, how):
    drawn = chart("x", [Curve("x", points)], **how)
    (curve,) = json.loads(drawn.data)
    numbers = [p[:2] for p in curve["points"]] + re.findall(r'(?:\bd="|[ML]) *([\d.]+) ([\d.]+)', drawn.svg)
    assert len(curve["points"]) == len(points) and all(-1 <= float(x) <= 481 and -1 <= float(y) <= 221 for x, y in numbers)
    assert not re.search(r"nan|inf", drawn.svg)
    ticks = [label for label, last in re.findall(r'text-anchor: (?:middle|end)[^>]*>([^<]*)<()', drawn.svg) if "steps" not in label]
    assert len(ticks) >= 4, "both axes have ticks"


def test_a_drawing_is_the_same_every_time_and_coloured_by_the_page():
    drawn = [chart("x", [Curve("x", [(1, 2.0), (5, 3.0)], "var(--held-out)")], name="a").svg for _ in range(2)]
    assert drawn[0] == drawn[1] and "stroke: var(--held-out)" in drawn[0]
    assert not re.search(r"stroke: #|fill: #", drawn[0]), "a colour that does not follow the page"


def test_a_noisy_curve_is_drawn_with_its_running_mean():
    points = [(i, float(i % 2)) for i in range(200)]
    assert all(abs(value - 0.5) < 0.2 for _, value in smooth(points)[5:-5]) and [s for s, _ in smooth(points)] == list(range(200))
    assert ["mean" in chart("x", [Curve("x", points, noisy=noisy)]).svg for noisy in (True, False)] == [True, False]


def test_the_levels_and_the_sides_of_a_measure_share_a_chart(tmp_path):
    run = read_run(make_run(tmp_path / "run", levels=3))
    points = [(1, 1.0), (9, 2.0)]
    names = ("train/nll", *(f"train/nll_level{k}" for k in range(3)), "train/flow", "held_out/flow", "train/l1", "train/l2")
    run.series |= dict.fromkeys(names, points)
    run.held_out.add("held_out/flow")
    drawn = {section: {chart.title: [curve.label for curve in chart.curves] for chart in made} for section, made in charts([run]).items()}
    levels = ["level 0", "level 1", "level 2"]
    assert drawn["curves"] == {
        "Loss": ["train"], "PSNR, dB": ["held out"], "Flow": ["train", "held out"], "L1": ["train"], "L2": ["train"],
        "NLL, nats per token": ["all levels", *levels], "Learning rate": ["train"],
    }  # fmt: skip
    assert drawn["codebook"] == {"Codebook usage, %": levels, "Codebook perplexity": levels}
    assert drawn["throughput"] == {"Images per second": ["train"]}


def test_runs_side_by_side_share_charts_and_figures_stand_in_columns(tmp_path):
    runs = [make_run(tmp_path / name, levels, steps) for name, levels, steps in (("a", 1, 400), ("b/a", 1, 800), ("c", 3, 400))]
    main([*map(str, [*runs, runs[0]]), f"out={tmp_path / 'x.html'}"])
    text = (tmp_path / "x.html").read_text()
    page, shown = Structure(text), {"a": "400 of 400", "b/a": "800 of 800", "c": "400 of 400"}
    row = re.search(r'<tr><th scope="row">Steps</th>(.*?)</tr>', text)[1]
    assert re.findall("<td>(.*?)</td>", row) == list(shown.values())
    assert re.search(r'<tr><th scope="row">steps</th><td>400</td><td>800</td><td>400</td>', text), "what differs in the configuration"
    assert "<summary>1 setting</summary>" in text
    assert "paths" not in text and len(page.images) == 9 and len(text) < 3_000_000
    drawn = {one.title: one for made in charts([read_run(run, name) for run, name in zip(runs, shown)]).values() for one in made}
    labels = {title: [curve.label for curve in one.curves] for title, one in drawn.items()}
    assert labels["PSNR, dB"] == labels["Loss"] == list(shown), "of one side, runs are told apart by name alone"
    assert labels["Codebook usage, %"] == ["a", "b/a", "c, level 0", "c, level 1", "c, level 2"], "held-out items"
    assert [curve.last for curve in drawn["PSNR, dB"].curves] == pytest.approx([17.98, 25.98, 17.98])
    assert drawn["Codebook usage, %"].curves[0].last == pytest.approx(100 * 399 / 400)
    for made in drawn.values():
        assert len({curve.color for curve in made.curves}) == len(made.curves)
        assert all(f"{curve.label} <b>" in text for curve in made.curves), "a curve without its name"


def test_sides_of_several_runs_are_shades_of_their_colours(tmp_path):
    drawn = charts([read_run(make_run(tmp_path / name), name) for name in "ab"])["codebook"][0]
    assert [curve.label for curve in drawn.curves] == ["a, train", "a, held out", "b, train", "b, held out"]


RANGES = [(0, 3e-5), (1.2e-9, 3.4e-9), (17.02, 17.021), (8.0001, 8.0013), (5.5449, 5.5503), (0.4, 0.8), (-41.04, -38), (1e6, 3.2e6),
          (1, 1e12), (0.001, 0.9), (1e-9, 1e9), (2e-14, 3e-3), (1204.1, 1204.9), (-1e-7, 1e-7), (0.02, 0.6), (1, 999)]  # fmt: skip


@pytest.mark.parametrize("may_log", [False, True])
@pytest.mark.parametrize("low, high", RANGES)
@pytest.mark.parametrize("steps", [40, 1_250_000])
def test_ticks_are_plain_numbers_that_differ_and_do_not_overlap(low, high, steps, may_log):
    svg = chart("x", [Curve("x", [(steps // 3, low), (steps, high)])], may_log=may_log).svg
    style = r'<text style="[^"]*?font-size: ([\d.]+)px[^"]*?text-anchor: (middle|end)[^"]*"'
    labels = re.findall(style + r' x="([\d.-]+)" y="([\d.-]+)"[^>]*>([^<]*)<', svg)
    assert len(labels) > 6
    boxes = []
    for size, anchor, x, y, text in labels:
        size, x, y = float(size), float(x), float(y)
        width = 0.62 * size * len(text)
        left = x - width if anchor == "end" else x - width / 2
        boxes.append((left, left + width, y - 0.75 * size, y + 0.05 * size))
        assert left > -8, f"{text} begins outside of the card"
    ticks = [text for _, _, _, _, text in labels if "steps" not in text]
    assert all(re.fullmatch(r"\u2212?[\d,]+(\.\d+)?", text) or (may_log and "×10" in text) for text in ticks), ticks
    values = [text for _, anchor, _, _, text in labels if anchor == "end" and "steps" not in text]
    assert len(set(values)) == len(values) >= 3, values
    for i, a in enumerate(boxes):
        assert not any(a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3] for b in boxes[:i]), labels


TITLES = {
    "codebook/usage": "Codebook usage, %", "codebook/perplexity": "Codebook perplexity", "psnr": "PSNR, dB", "si_sdr_db": "SI-SDR, dB",
    "bits_per_token": "Bits per token", "adversarial/patch_weight": "Adversarial, patch weight", "l1": "L1",
}  # fmt: skip


@pytest.mark.parametrize("measure, text", TITLES.items())
def test_titles_are_words(measure, text):
    assert title(measure) == text


def test_sounds_of_the_last_step_can_be_played(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (100, 400):
        folder = run / "sounds" / f"samples_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "00_sample.wav").write_bytes(b"RIFF%d" % step)
    text = write_report(run).read_text()
    page = Structure(text)
    assert text.count("<audio") == 1 and f"data:audio/wav;base64,{base64.b64encode(b'RIFF400').decode()}" in page.urls


def test_long_sounds_are_cut_and_many_left_out_and_both_is_said(tmp_path):
    import soundfile

    run, wave = make_run(tmp_path / "run"), np.random.default_rng(0).uniform(-0.5, 0.5, (30 * 16_000, 2))
    folder = run / "sounds" / "reconstructions_0000400"
    folder.mkdir(parents=True)
    for i in range(SOUNDS + 2):
        soundfile.write(folder / f"{i:02d}_sample.wav", wave, 16_000, "FLOAT")
    text = write_report(run).read_text()
    urls = [url for url in Structure(text).urls if url.startswith("data:audio/wav")]
    part, rate = soundfile.read(io.BytesIO(base64.b64decode(urls[0].split(",")[1])))
    assert len(urls) == SOUNDS and rate == 16_000 and len(text) < 3_000_000
    np.testing.assert_allclose(part, wave[: len(part)], atol=1e-4)
    assert f"00 sample, the first {len(part) / rate:.1f} s of 30.0 s" in text and len(part) > 8000
    assert f"2 of {SOUNDS + 2} sounds left out" in text


def test_what_was_skipped_is_a_table(tmp_path):
    run = make_run(tmp_path / "run")
    words = json.loads((run / "metrics.json").read_text())
    skipped = {"train": {"count": 70, "of": 900, "files": ["a/<b>.png", "c.png"]}}
    (run / "metrics.json").write_text(json.dumps({**words, "skipped": skipped}))
    assert read_run(run).result["skipped"] == skipped
    text = write_report(run).read_text()
    assert "70 of 900 items of train could not be read, the first 2 of them" in text
    assert re.findall(r"<tr><td><code>(.*?)</code></td>", text) == ["a/&lt;b&gt;.png", "c.png"]


NUMBERS = {0.0362884: "0.03629", 21.708: "21.71", 1204.0: "1,204", 0.0: "0", 2e-5: "0.00002", -1.5e6: "\u22121,500,000", 96.3: "96.3",
           1.124e-9: "1.12×10⁻⁹", 3e12: "3×10¹²", 999.996: "1,000"}  # fmt: skip


@pytest.mark.parametrize("value, text", NUMBERS.items())
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_text_from_a_run_is_escaped(tmp_path):
    text = write_report(make_run(tmp_path / "run", hostile="<script>alert(1)</script>")).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_damaged_files_are_noted_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("metrics.json", "bundle/bundle.json", "bundle/tokenizer/model.safetensors", "pictures/reconstructions_0000100.png"):
        (run / name).write_text("{ broken")
    (run / "config.yaml").write_text("a: [")
    text = write_report(run).read_text()
    assert text.count("could not be read") == 5 and text.count("<img") == 3 and ">Loss<" in text


WRONG = [{"step": "x"}, {"seconds": "long"}, {"seconds": [1]}, {"skipped": [1]}, {"skipped": {"train": 3}}, {"skipped": {"train": {}}}]


@pytest.mark.parametrize("words", WRONG, ids=str)
def test_values_of_another_type_are_noted_and_the_rest_is_shown(tmp_path, words):
    run = make_run(tmp_path / "run")
    (run / "metrics.json").write_text(json.dumps(words))
    (run / "config.yaml").write_text("name: null\nsteps: many\ntask: 3\ntokenizer: vq\ndata: [1]\n")
    text = write_report(run).read_text()
    assert text.count("metrics.json could not be read") == 1 and ">Loss<" in text and "many" in text


@pytest.mark.parametrize("levels, words", [(1, "16 positions x 1 level of 32"), (8, "16 positions x 8 levels of 32")])
def test_levels_are_counted_in_the_right_number(tmp_path, levels, words):
    run = make_run(tmp_path / "run", levels)
    spec = TokenSpec((32,) * levels, Raster(4, 4), media_shape=(1, 16, 16)).to_dict()
    (run / "bundle" / "bundle.json").write_text(json.dumps({"tokenizer": {"spec": spec}}))
    text = write_report(run).read_text()
    assert words in text and "(s)" not in text.split("<script>")[0]


def test_a_folder_with_a_configuration_alone_is_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("name: new\n")
    assert "unfinished" in write_report(tmp_path).read_text()


def test_a_wrong_path_is_a_one_line_error(tmp_path):
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("")
    for words, wanted in [
        ([str(tmp_path / "nothing")], "there is no run"),
        ([str(tmp_path / "runs")], str(tmp_path / "runs" / "a")),
        ([], "gentok report RUN"),
        ([str(tmp_path / "runs" / "a"), str(tmp_path / "other")], "other"),
        ([str(tmp_path / "runs" / "a"), "out=x", "out=y"], "gentok report RUN"),
        ([str(tmp_path / "runs" / "a"), f"out={tmp_path / 'file' / 'x.html'}"], "out=FILE"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert wanted in str(stopped.value) and "\n" not in str(stopped.value)


PROBE = """<script>
const svg = document.querySelector("svg"), box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + 20 }));
const out = { curves: [...document.querySelectorAll("g[id*=-curve-] path")].filter((p) => p.getBBox().width > 0).length,
  charts: document.querySelectorAll("figure.chart").length,
  inside: (() => { const t = document.querySelector(".tip").getBoundingClientRect();
    return t.top >= box.top && t.bottom <= box.bottom && t.left >= 0 && t.right <= window.innerWidth; })(),
  tip: document.querySelector(".tip").textContent, shown: !document.querySelector(".tip").hidden,
  images: [...document.images].every((i) => i.complete && i.naturalWidth > 0),
  wide: document.documentElement.scrollWidth <= window.innerWidth,
  requests: performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length };
document.body.setAttribute("data-probe", JSON.stringify(out));
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install -y chromium")
@pytest.mark.parametrize("levels, width, others", [(1, 1280, 0), (8, 500, 0), (1, 1280, 2)])
def test_a_browser_draws_it_without_a_complaint(tmp_path, levels, width, others):
    beside = [make_run(tmp_path / f"other_{i}", levels) for i in range(others)]
    out = write_report(make_run(tmp_path / "run", levels), tmp_path / "page.html", beside)
    out.write_text(out.read_text().replace("</body>", PROBE))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, out.as_uri()], capture_output=True, text=True, timeout=1200)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    probe = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert probe, "the page's script did not run to its end"
    seen = json.loads(html.unescape(probe[1]))
    assert seen["curves"] >= seen["charts"] >= 5
    assert seen["shown"] and seen["inside"] and "step" in seen["tip"] and ("other_1" if others else "train") in seen["tip"]
    assert seen["images"] and seen["wide"] and seen["requests"] == 0
