"""The report of sweeps, directions, code maps, spectrograms and enlarged pictures."""

import base64
import html
import json
import re
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import CHROMIUM, Structure, make_run

from gentok.data.code_maps import CELL, code_maps
from gentok.report.__main__ import main, write_report
from gentok.report.measures import better, charts
from gentok.report.run_folder import read_run, runs_of
from gentok.types import ABSENT, UNKNOWN, Frames, Pyramid, Raster, Tokens, TokenSpec


def make_sweep(folder):
    """Three jobs, of which the last one never began."""
    for i, width in enumerate((8, 16)):
        make_run(folder / str(i), steps=400 * (i + 1))
        words = ["experiment=a/b", f"tokenizer.width={width}"]
        (folder / str(i) / "job.json").write_text(json.dumps({"overrides": words, "state": "done"}))
    (folder / "2").mkdir()
    (folder / "2" / "job.json").write_text(json.dumps({"overrides": [], "state": "failed"}))
    return folder


def test_a_sweep_is_all_of_its_runs_with_a_table_of_what_was_varied(tmp_path):
    sweep, alone = make_sweep(tmp_path / "sweep"), make_run(tmp_path / "alone")
    assert runs_of(sweep) == [sweep / "0", sweep / "1"] and runs_of(alone) == [alone]
    main([str(sweep), str(alone), f"out={tmp_path / 'x.html'}"])
    text = (tmp_path / "x.html").read_text()
    Structure(text)
    table = re.search(r'id="sweep".*?</table>', text, re.S)[0]
    assert "<th scope=\"col\">tokenizer.width</th>" in table and "experiment" not in table and "PSNR, dB, higher is better" in table
    rows = re.findall(r"</i>([^<]*)</th>\s*((?:<td>.*?</td>)+)", table)
    assert [name for name, _ in rows] == ["sweep/0", "sweep/1", "alone"]
    cells = [re.findall("<td>(.*?)</td>", row) for _, row in rows]
    assert [row[0] for row in cells] == ["8", "16", "–"] and [row[1] for row in cells] == ["17.98", "<b>25.98</b>", "17.98"]
    assert "id=\"sweep\"" not in write_report(alone).read_text()


DIRECTIONS = {"psnr": "higher", "codebook/usage": "higher", "images_per_second": "higher", "loss": "lower", "bits_per_token": "lower",
              "mel_distance": "lower", "codebook/dead": "lower", "lr": "", "gradient_norm": "", "adversarial/patch_weight": ""}  # fmt: skip


@pytest.mark.parametrize("measure, direction", DIRECTIONS.items())
def test_a_chart_says_which_direction_is_better(measure, direction):
    assert better(measure) == direction


def test_charts_of_a_run_say_so_below_them(tmp_path):
    hints = {chart.title: chart.hint for made in charts([read_run(make_run(tmp_path / "run", 3))]).values() for chart in made}
    assert hints["PSNR, dB"] == "higher is better" and hints["Learning rate"] == ""
    assert hints["Codebook usage, %"].startswith("higher is better, held-out items")


def test_sounds_have_their_spectrogram_beside_the_player(tmp_path):
    import soundfile

    run = make_run(tmp_path / "run")
    folder = run / "sounds" / "samples_0000400"
    folder.mkdir(parents=True)
    tone = np.sin(np.arange(16_000) * 0.3)
    soundfile.write(folder / "00_tone.wav", tone, 16_000)
    (shown,) = read_run(run).sounds["samples"]
    (tmp_path / "seen.png").write_bytes(base64.b64decode(shown.seen.split(",")[1]))
    image = np.array(Image.open(tmp_path / "seen.png").convert("L")).astype(float)
    rows = image.mean(1)
    assert image.shape[0] == 80 and rows.argmax() not in (0, 79) and rows.max() > 3 * np.median(rows) + 10, "a tone is a line"
    text = write_report(run).read_text()
    assert text.index(shown.seen) < text.index("<audio") and 'alt="spectrogram of 00 tone"' in text


def colours(image):
    """The colour of every cell, as rows of tuples."""
    return [[tuple(cell) for cell in row] for row in image[:, ::CELL, ::CELL].permute(1, 2, 0).tolist()]


def test_maps_have_a_colour_per_id_in_the_places_of_the_cells():
    spec = TokenSpec((600, 600), Raster(2, 3))
    codes = torch.tensor([[[0, 1, 2, 3, 1, UNKNOWN], [7, 7, 7, ABSENT, 7, 8]]])
    (rows,) = [colours(one) for one in code_maps(Tokens(codes, spec))]
    assert len(rows) == 2 and len(rows[0]) == 3 + 1 + 3  # two levels with a gap
    assert rows[0][1] == rows[1][1] and len({*rows[0][:3], rows[1][0]}) == 4 and rows[1][2] == (0, 0, 0)
    assert rows[0][3] == (1, 1, 1) == rows[1][4] and rows[0][4] == rows[0][5] == rows[1][5] != rows[1][6]
    sound = code_maps(Tokens(torch.arange(12).view(1, 2, 6), TokenSpec((16, 16), Frames(50.0, 6), modality="audio")))
    assert sound.shape == (1, 3, 2 * CELL, 6 * CELL)
    scales = code_maps(Tokens(torch.arange(5).view(1, 1, 5), TokenSpec((16,), Pyramid((1, 2)))))
    assert scales.shape == (1, 3, 2 * CELL, (1 + 1 + 2) * CELL) and colours(scales[0])[1][0] == (1, 1, 1)
    every = code_maps(Tokens(torch.arange(512).view(1, 1, 512), TokenSpec((512,), Raster(16, 32))))[0]
    assert every.min() >= -1 and every.max() <= 1 and len({cell for row in colours(every) for cell in row}) > 500


ENLARGE = """<script>
const picture = document.querySelector(".pictures img");
picture.click();
const opened = document.querySelector("dialog"), shown = opened.querySelector("img");
const out = { open: opened.open, same: shown.src === picture.src, wider: shown.getBoundingClientRect().width > 2 * picture.naturalWidth };
opened.click();
out.closed = !opened.open;
document.body.setAttribute("data-probe", JSON.stringify(out));
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install -y chromium")
def test_a_click_enlarges_a_picture(tmp_path):
    out = write_report(make_run(tmp_path / "run"))
    out.write_text(out.read_text().replace("</body>", ENLARGE))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1280,900", "--virtual-time-budget=2000", "--dump-dom", out.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    seen = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', done.stdout)[1]))
    assert seen == {"open": True, "same": True, "wider": True, "closed": True}
