"""Hugging Face data sets and Parquet files as splits, against the values that were written."""

import numpy as np
import pytest
from PIL import Image

import edgekd
from edgekd.data import column, columns
from edgekd.inputs import Column

N = np.random.default_rng(0)
PIXELS, Y = N.integers(0, 255, (40, 6, 5, 3), dtype=np.uint8), np.arange(40) % 3
X = N.normal(size=(40, 4)).astype(np.float32)


def load(data, split="train"):
    return columns.load(edgekd.Task(name="t", version="1", models={}, data=data, metrics=(edgekd.top1(),)), split)


def same(data, like):
    for split in ("train", "validation", "test"):
        one, two = load(data, split), load(like, split)
        assert one.digest == two.digest and one.ids == two.ids


@pytest.mark.filterwarnings("ignore")  # datasets warns of its own dependencies
def test_a_data_set_has_the_digest_of_its_arrays(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.fromarray(p) for p in PIXELS], "x": X.tolist(), "label": Y.tolist()}
    features = datasets.Features(
        {"image": datasets.Image(), "x": datasets.List(datasets.Value("float32")), "label": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    table = datasets.load_from_disk(tmp_path / "set")
    train, test = table.select(range(30)), table.select(range(30, 40))
    like = edgekd.arrays(X[:30], Y[:30], X[30:], Y[30:])
    pictures = PIXELS.transpose(0, 3, 1, 2)
    seen = edgekd.arrays(pictures[:30], Y[:30], pictures[30:], Y[30:])
    for held in (2**26, 0):
        monkeypatch.setattr(column, "HELD", held)
        monkeypatch.setattr(column, "SETTLED", 0)
        data = edgekd.from_datasets(train, test, inputs=["image"], label="label")
        same(data, seen)
        assert isinstance(data("train").inputs, Column) == (not held)
        same(edgekd.from_datasets(train, test, inputs=["x"], label="label"), like)
    assert data("test").inputs.stamp() is not None
    with pytest.raises(edgekd.UsageError, match="no column `y`") as caught:
        edgekd.from_datasets(train, [1], inputs=["x"], label="y")
    assert "list is no map-style data set" in str(caught.value)


def test_an_image_with_a_palette_has_its_colours():
    from edgekd.data.tables import _picture

    red = Image.new("RGB", (3, 2), (255, 0, 0))
    assert np.array_equal(_picture(red.convert("P")), np.asarray(red).transpose(2, 0, 1))
    clear = red.convert("P")
    clear.info["transparency"] = 0
    assert _picture(clear).shape == (4, 2, 3)


def test_a_parquet_file_has_the_digest_of_its_arrays(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name, rows):
        files = []
        for pixels in PIXELS[rows]:
            Image.fromarray(pixels).save(tmp_path / "one.png")
            files.append({"bytes": (tmp_path / "one.png").read_bytes(), "path": "one.png"})
        small = pa.array(PIXELS[rows, :, 0, 0].tolist(), pa.list_(pa.uint8()))
        table = {"image": files, "x": X[rows].tolist(), "small": small, "label": Y[rows], "text": ["a"] * len(files)}
        parquet.write_table(pa.table(table), tmp_path / name, row_group_size=7)
        return tmp_path / name

    train, test = write("train.parquet", slice(30)), write("test.parquet", slice(30, 40))
    for name, values in (("image", PIXELS.transpose(0, 3, 1, 2)), ("x", X), ("small", PIXELS[:, :, 0, 0])):
        data = edgekd.from_parquet(train, test, inputs=[name], label="label")
        same(data, edgekd.arrays(values[:30], Y[:30], values[30:], Y[30:]))
    both = edgekd.from_parquet(train, test, inputs=["x", "small"], label=None, validation=test)
    given = {"x": X, "small": PIXELS[:, :, 0, 0]}
    cut = lambda rows: {k: v[rows] for k, v in given.items()}
    same(both, edgekd.arrays(cut(slice(30)), None, cut(slice(30, 40)), None, x_validation=cut(slice(30, 40))))
    with pytest.raises(edgekd.UsageError, match="there is no file") as caught:
        edgekd.from_parquet(train, tmp_path / "none", inputs=["z"], label="label")
    assert "no column `z`" in str(caught.value)
    with pytest.raises(edgekd.UsageError, match="text: a value is a str, not numbers"):
        edgekd.from_parquet(train, test, inputs=["text"], label=None)
