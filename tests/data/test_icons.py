"""data=icons: words and outlines of SVG files; what is broken, too long or of another kind is listed and stops nothing."""

import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "drawings"))
from icon_kit import BROKEN, GOOD, folder, svg

from gentok.data.icons import Icons, ids_of, words
from gentok.drawings.outlines import from_ids
from gentok.drawings.svg import read_svg


def texts(data, batch):
    return [dict(data.condition_spec.parts)["text"].text(row) for row in batch.condition.parts["text"].ids.tolist()]


def test_an_item_has_its_words_its_outline_and_its_picture(tmp_path):
    data = Icons(folder(tmp_path / "icons"), held_out=0.2, size=32)
    assert len(data.train) + len(data.held_out) == 3 * len(GOOD) and data.media_shape == (1, 32, 32)
    batch = data.train.__getitems__(range(len(data.train)))
    assert batch.media.shape == (len(data.train), 1, 32, 32) and bool((batch.media.abs() <= 1).all())
    names = [words(name) for name in data.train.names]
    assert texts(data, batch) == names and "arrow left 1" in names + [words(name) for name in data.held_out.names]
    for name, row in zip(data.train.names, batch.condition.parts["outline"].ids.tolist()):
        assert from_ids(row) == read_svg(name)
    sent = pickle.loads(pickle.dumps(data.train))  # to a loader's worker
    assert torch.equal(sent.__getitems__([3, 1]).media, batch.media[[3, 1]])
    again = Icons(tmp_path / "icons", held_out=0.2, size=32)
    assert again.train.names == data.train.names and again.train.description == data.train.description
    other = Icons(tmp_path / "icons", held_out=0.2, size=32, split_seed=1)
    assert set(other.held_out.names) != set(data.held_out.names)


def test_words_are_symbols_and_those_of_held_out_icons_alone_are_left_out(tmp_path):
    for folder_name, names in (("train", ["arrow-left", "arrow_right", "x"]), ("other", ["arrow-back", "Left.x"])):
        (tmp_path / folder_name).mkdir()
        for name in names:
            (tmp_path / folder_name / f"{name}.svg").write_text(svg(GOOD["home"]))
    data = Icons(tmp_path / "train", held_out=str(tmp_path / "other"))
    spec = dict(data.condition_spec.parts)["text"]
    assert spec.alphabet == ("arrow", "left", "right", "x") and spec.of_words and spec.max_length == 2
    assert texts(data, data.held_out.__getitems__([0, 1])) == ["left x", "arrow"]
    assert spec.text(spec.parse(["right arrow"], "text").ids[0].tolist()) == "right arrow" and spec.parse([None], "text").ids.max() < 0
    with pytest.raises(ValueError, match=r"never saw: \['arow'\]; it knows 4 words, such as arrow"):
        spec.parse(["arow left"], "condition.text")
    for path in (tmp_path / "train").glob("arrow*"):
        path.unlink()
    data = Icons(tmp_path / "train", held_out=str(tmp_path / "other"))
    assert texts(data, data.held_out.__getitems__([0, 1])) == ["x", ""], "also where all words have one letter"


def test_broken_files_are_listed_with_a_line_each_and_stop_nothing(tmp_path, caplog):
    data = Icons(folder(tmp_path / "icons", broken=True), held_out=0.2)
    skipped = data.train.skipped
    assert skipped["count"] == len(BROKEN) and len(data.train) + len(data.held_out) == 3 * len(GOOD)
    assert {name.rpartition("/")[2] for name in skipped["reasons"]} == {f"{name}.svg" for name in BROKEN}
    assert all(reason and "\n" not in reason for reason in skipped["reasons"].values())
    assert f"{len(BROKEN)} of {len(BROKEN) + 3 * len(GOOD)} icons" in caplog.text and "cannot be read and are skipped" in caplog.text
    with pytest.raises(ValueError, match="more than the share data.max_broken=0.1"):
        Icons(tmp_path / "icons", max_broken=0.1)
    for name in GOOD:
        for path in (tmp_path / "icons").glob(f"{name}*"):
            path.unlink()
    with pytest.raises(ValueError, match=f"none of the {len(BROKEN)} icons can be read"):
        Icons(tmp_path / "icons")


def test_long_icons_are_left_out_and_listed(tmp_path, caplog):
    data = Icons(folder(tmp_path / "icons"), held_out=0.2, longest=24)
    kept = [ids_of(outline) for part in (data.train, data.held_out) for outline in part.outlines]
    assert max(kept) <= 24 and len(kept) < 3 * len(GOOD)
    assert "have more than data.longest=24 ids and are left out" in caplog.text
    assert any("of more than 24 ids" in reason for reason in data.train.skipped["left_out"]["reasons"].values())
    with pytest.raises(ValueError, match="all icons .* set a larger one"):
        Icons(tmp_path / "icons", longest=3)


def test_a_zip_file_is_the_folder_in_it(tmp_path):
    root = folder(tmp_path / "icons", broken=True)
    (root / "README.txt").write_text("words")
    with zipfile.ZipFile(tmp_path / "icons.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.iterdir()):
            file.write(path, f"set/{path.name}")
    data = Icons(tmp_path / "icons.zip", held_out=0.2)
    assert data.train.skipped["count"] == len(BROKEN)
    assert data.train.skipped["left_out"]["reasons"] == {"set/README.txt": "ending in .txt"}
    plain = Icons(root, held_out=0.2)
    outlines = {words(n): o for d in (plain.train, plain.held_out) for n, o in zip(d.names, d.outlines)}
    assert {words(n.rpartition(":")[2]): o for d in (data.train, data.held_out) for n, o in zip(d.names, d.outlines)} == outlines
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as file:
        file.writestr("a.txt", "x")
    with pytest.raises(FileNotFoundError, match="holds no icons"):
        Icons(tmp_path / "none.zip")
    with pytest.raises(ValueError, match="no zip file, the other place is one"):
        Icons(tmp_path / "icons.zip", held_out=str(root))


def test_a_second_folder_is_held_out_and_sub_folders_are_classes_where_they_are_asked_for(tmp_path):
    folder(tmp_path / "icons" / "one"), folder(tmp_path / "icons" / "two", 1), folder(tmp_path / "other", 1)
    data = Icons(tmp_path / "icons", held_out=str(tmp_path / "other"))
    assert len(data.train) == 4 * len(GOOD) and len(data.held_out) == len(GOOD)
    data = Icons(tmp_path / "icons", held_out=0.2, classes=True)
    assert dict(data.condition_spec.parts)["class"].names == ("one", "two")
    assert torch.equal(data.train.__getitems__([0, 1]).condition.parts["class"].ids, torch.tensor([0, 0]))


def test_without_the_package_a_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr("gentok.data.icons.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install mkdocs-material, or name a folder or zip file"):
        Icons()
