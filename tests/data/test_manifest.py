import json

import pytest
import torch
from data_kit import paint

from gentok.data.image_files import read_image
from gentok.data.manifest import Manifest

ROWS = [
    {"path": f"pictures/{i:02d}.png", "label": ("cat", "dog")[i % 2], "caption": ("a cat", "dogs!")[i % 2] * (i > 1)} for i in range(20)
]


def manifest(folder, kind="csv", rows=ROWS, columns=None, draw=True):
    for i, row in enumerate(rows):
        if draw and not (folder / row["path"]).exists():
            paint(folder / row["path"], seed=i)
    names = columns or list(rows[0])
    path = folder / f"table.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({k: row[k] for k in names}) for row in rows) + "\n\n")
    else:
        comma = {"csv": ",", "tsv": "\t"}[kind]
        lines = [comma.join(names), *(comma.join(row[k] for k in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as a spreadsheet writes it
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_rows_become_pictures_classes_and_captions(tmp_path, kind):
    data = Manifest(manifest(tmp_path, kind), held_out=0.2, captions="ids")
    parts = dict(data.condition_spec.parts)
    assert data.media_shape == (3, 12, 12) and parts["class"].names == ("cat", "dog") and parts["text"].max_length == 5
    assert len(data.train) == 16 and data.held_out.labels.bincount().tolist() == [2, 2]
    by_name = {str(tmp_path / row["path"]): row for row in ROWS}
    for part in (data.train, data.held_out):
        batch = part.__getitems__(range(len(part)))
        for i, name in enumerate(part.names):
            row = by_name[name]
            assert torch.equal(batch.media[i], read_image(name))
            assert parts["class"].names[batch.condition.parts["class"].ids[i]] == row["label"]
            ids = batch.condition.parts["text"].ids[i]
            assert "".join(parts["text"].alphabet[c] for c in ids.tolist() if c >= 0) == row["caption"]
            assert torch.equal(ids, parts["text"].parse([row["caption"]], "text").ids[0])


def test_captions_come_only_when_asked_for_and_columns_can_be_named(tmp_path):
    plain = Manifest(manifest(tmp_path), held_out=0.2)
    assert [name for name, _ in plain.condition_spec.parts] == ["class"]
    assert Manifest(manifest(tmp_path), held_out=0.2, classes=False).condition_spec.parts == ()
    rows = [{"path": r["path"], "what": r["label"], "words": r["caption"]} for r in ROWS]
    named = Manifest(manifest(tmp_path, "jsonl", rows), held_out=0.2, label_column="what", caption_column="words", captions="ids")
    assert torch.equal(named.train.labels, plain.train.labels) and len(named.condition_spec.parts) == 2


def test_long_captions_are_cut_and_counted(tmp_path, caplog):
    data = Manifest(manifest(tmp_path), held_out=0.2, captions="ids", caption_length=3)
    assert dict(data.condition_spec.parts)["text"].max_length == 3 and "18 of 20 captions" in caplog.text


def test_classes_can_be_given_in_order_and_labels_by_number(tmp_path):
    rows = [{**row, "label": str(i % 2)} for i, row in enumerate(ROWS)]
    path = manifest(tmp_path, rows=rows)
    data = Manifest(path, held_out=0.2, classes=["dog", "cat", "cow"])
    assert dict(data.condition_spec.parts)["class"].names == ("dog", "cat", "cow")
    assert data.train.labels.tolist() == Manifest(path, held_out=0.2).train.labels.tolist()
    with pytest.raises(ValueError, match="has the class '1'.*classes are dog"):
        Manifest(path, held_out=0.2, classes=["dog"])


def test_numbers_are_classes_in_the_order_of_their_values(tmp_path):
    rows = [{**row, "label": ("2", "10")[i % 2]} for i, row in enumerate(ROWS)]
    assert dict(Manifest(manifest(tmp_path, rows=rows), held_out=0.2).condition_spec.parts)["class"].names == ("2", "10")


def test_a_second_manifest_is_held_out(tmp_path):
    data = Manifest(manifest(tmp_path / "a"), held_out=str(manifest(tmp_path / "b", rows=ROWS[:4])))
    assert len(data.train) == 20 and len(data.held_out) == 4
    foreign = manifest(tmp_path / "c", rows=[{**ROWS[0], "label": "cow"}])
    with pytest.raises(ValueError, match="has the class 'cow'; the classes are cat, dog"):
        Manifest(manifest(tmp_path / "a"), held_out=str(foreign))


def test_changed_labels_and_captions_are_other_data(tmp_path):
    """Else the cached tokens of the old ones would be used."""

    def content(rows):
        return Manifest(manifest(tmp_path, rows=rows), held_out=0.2, captions="ids").train.description["content"]

    swapped = {"cat": "dog", "dog": "cat"}
    assert (
        len({content(ROWS), content([{**r, "caption": "x"} for r in ROWS]), content([{**r, "label": swapped[r["label"]]} for r in ROWS])})
        == 3
    )


def test_rows_without_file_or_label_are_skipped_and_listed(tmp_path, caplog):
    rows = [*ROWS, {**ROWS[0], "path": "gone.png"}, {**ROWS[0], "path": "pictures/unlabelled.png", "label": ""}]
    path = manifest(tmp_path, rows=rows)
    (tmp_path / "gone.png").unlink()
    data = Manifest(path, held_out=0.2, max_broken=0.1)
    assert len(data.train) + len(data.held_out) == 20
    assert "2 of 22 images" in caplog.text and "gone.png" in caplog.text and "unlabelled.png" in caplog.text
    with pytest.raises(ValueError, match=r"2 of 22 images cannot be read.*max_broken=0.01.*gone.png"):
        Manifest(path, held_out=0.2)


@pytest.mark.parametrize(
    "columns, options, words",
    [
        (["label", "caption"], {}, ["no column 'path'", "label, caption", "data.path_column"]),
        (["path", "caption"], {"classes": True}, ["no column 'label'", "path, caption", "data.label_column"]),
        (["path", "label"], {"captions": "ids"}, ["no column 'caption'", "path, label", "data.caption_column"]),
        (None, {"path_column": "file"}, ["no column 'file'", "path, label, caption"]),
        (None, {"captions": "words"}, ["captions=words"]),
        (None, {"path_column": "label"}, ["lists no images", "cat"]),
        (None, {"held_out": 0.0}, ["held_out=0.0"]),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_clear_line(tmp_path, columns, options, words):
    with pytest.raises(ValueError) as error:
        Manifest(manifest(tmp_path, columns=columns), **options)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("table.csv", b"path,label\n", "lists no images"),
        ("table.csv", b"", "lists no images"),
        ("table.jsonl", b"", "lists no images"),
        ("table.jsonl", b'{"path": "a.png"}\n{"path": \n', "line 2 of"),
        ("table.jsonl", b"[1]\n", "line 1 of"),
        ("table.csv", b"path\n\xff\xfe.png\n", "UTF-8"),
        ("table.csv", b"path,label\n,cat\n", "line 2 of"),
        ("table.parquet", b"PAR1", "is no manifest"),
        (None, b"", "there is no manifest"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_clear_line(tmp_path, name, content, words):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        Manifest(tmp_path / (name or "table.csv"))
    assert "\n" not in str(error.value)


def test_places_of_every_source_are_annotated_as_places():
    """A stored model may set none of them, whether a constructor names the argument or takes it with its options."""
    from gentok.build import check
    from gentok.errors import ConfigError

    places = {"folder": ["path", "held_out"], "manifest": ["path", "held_out"], "shards": ["shards", "held_out", "index"]}
    for source, names in places.items():
        for component in (f"data/{source}", f"data/sound_{source}"):
            for name in names:
                with pytest.raises(ConfigError, match="names a place"):
                    check({"_target_": component, name: "/etc/passwd"}, given=names, stored=True)
