"""What a data set names is read only inside its folder, by every reader, and only as what it claims to be."""

import base64
import io
import json
import os
import zipfile

import datasets
import fsspec
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, LargeList, List, Nifti, Value, Video, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.cli import main
from tgo_trl.commands.convert.config import ConvertConfig
from tgo_trl.commands.convert.run import convert, convert_dataset
from tgo_trl.commands.inspect.config import InspectConfig
from tgo_trl.commands.inspect.run import inspect
from tgo_trl.commands.score.config import ScoreConfig
from tgo_trl.commands.score.run import score, score_dataset
from tgo_trl.data.rows import BadRowError
from tgo_trl.media.embedding import ColumnError, check_embedded, embed_files, stored_table
from tgo_trl.media.images import encoded_bytes, image_size, load_image
from tgo_trl.media.origin import OWN, DataFile, find_origin, named_origin
from tgo_trl.media.videos import load_video, video_bytes

from .test_videos import film
from .tiny import picture
from .tiny.stable_diffusion import build

pytestmark = pytest.mark.usefixtures("undrawn")

SECRET = "PRIVATE-12345"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(seed, **options):
    file = io.BytesIO()
    picture(seed).save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture
def data(tmp_path):
    """A folder of a data set, beside a folder that is nobody's business."""
    home, data = tmp_path / "home", tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    home.mkdir()
    (home / "secret.txt").write_text(SECRET)
    (home / "secret.png").write_bytes(png(9) + SECRET.encode())
    for name in ("a.png", "b.png", "sub/c.png"):
        (data / name).write_bytes(png(ord(name[-5])))
    for name, folder in (("home/secret.zip", home), ("data/images.zip", data)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(folder / ("secret.png" if folder == home else "a.png"), "a.png")
    (data / "link.png").symlink_to(home / "secret.png")
    (data / "linked").symlink_to(home)
    (data / "loop.png").symlink_to(data / "loop.png")
    (data / "inside.png").symlink_to(data / "sub" / "c.png")
    os.mkfifo(data / "pipe.png")
    (data / "text.png").write_text(SECRET)
    (data / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    (data / "film.png").write_bytes(film(2))
    (data / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    (data / "empty.png").write_bytes(b"")
    with (data / "huge.png").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no place on the disk
    return data


OUTSIDE = {
    "absolute": "{home}/secret.png",
    "relative": "../home/secret.png",
    "deep": "sub/../../home/secret.png",
    "link": "link.png",
    "folder link": "linked/secret.png",
    "device": "/dev/zero",
    "process": "/proc/self/environ",
    "zip": "zip://a.png::{home}/secret.zip",
    "zip by link": "zip://a.png::{data}/linked/secret.zip",
}
REFUSED = {
    **dict.fromkeys(OUTSIDE, "leads outside the data set's folder; move the file there, or set `image_dir`"),
    "file url": r"no kind of URL that is read here \(http",
    "capital url": "no kind of URL",
    "local url": "no kind of URL",
    "chain": r"no file in an archive \(zip",
    "http": "is a URL, .*set `allow_urls`",
    "hub": "is a URL, .*set `allow_urls`",
    "zip by url": "is a URL, .*set `allow_urls`",
    "null": "null byte",
    "folder": "leads to no regular file",
    "itself": "leads to no regular file",
    "pipe": "leads to no regular file",
    "huge": "has 3,221,225,472 bytes; up to 2 GiB",
    "loop": "cannot be read",
    "percent": "FileNotFoundError",
    "tilde": "FileNotFoundError",
    "backslash": "FileNotFoundError",
    "windows": "FileNotFoundError",
    "long": "has 1,000,000 characters, as no file system has",
    "base64": r"no path but base64 text \(.* characters, .*b64decode\(value\)",
    "data uri": r"no path but data: URI text .*b64decode\(value.partition",
}
PATHS = {
    **OUTSIDE,
    "file url": "file://{home}/secret.png",
    "capital url": "FILE://{home}/secret.png",
    "local url": "local://{home}/secret.png",
    "chain": "simplecache::file://{home}/secret.png",
    "http": "http://127.0.0.1:9/secret.png",
    "hub": "hf://datasets/me/private/secret.png",
    "zip by url": "zip://a.png::https://127.0.0.1:9/secret.zip",
    "null": "a.png\0.png",
    "folder": "sub",
    "itself": "",
    "pipe": "pipe.png",
    "huge": "huge.png",
    "loop": "loop.png",
    "percent": "%2e%2e/home/secret.png",
    "tilde": "~/secret.png",
    "backslash": "..\\home\\secret.png",
    "windows": "C:\\Users\\me\\secret.png",
    "long": "a" * 1_000_000,
    "base64": base64.b64encode(png(0)).decode() * 1000,
    "data uri": f"data:image/png;base64,{base64.b64encode(png(0)).decode()}",
}


def hostile(name, data):
    return PATHS[name].replace("{home}", str(data.parent / "home")).replace("{data}", str(data))


@pytest.mark.parametrize("name", [name for name in PATHS if name != "chain"])
@pytest.mark.parametrize("read", [load_image, image_size, encoded_bytes, video_bytes, lambda v: load_video(v, 1, 1)])
def test_a_path_is_refused_by_every_reader(data, name, read):
    origin = named_origin(str(data))
    for cell in (hostile(name, data), {"bytes": None, "path": hostile(name, data)}, [hostile(name, data)]):
        value = origin.locate(cell)
        if isinstance(cell, list) and read not in (video_bytes,) and "lambda" not in str(read):
            value = value[0]
        with pytest.raises(ValueError, match=REFUSED[name]) as refused:
            read(value)
        assert len(str(refused.value)) < 500
        assert SECRET not in str(refused.value)


def test_a_chain_is_refused_however_it_is_written(data):
    for path in (hostile("chain", data), f"simplecache://x::file://{data}/a.png", f"dir://a::{data}/a.png"):
        with pytest.raises(ValueError, match=r"no kind of URL|no file in an archive|FileNotFoundError"):
            load_image(named_origin(str(data)).locate(path))


WRONG = {
    "text.png": "this is text",
    "page.png": "this is an HTML page",
    "film.png": "this is a video",
    "pointer.png": "this is a Git LFS pointer, whose file was not fetched",
    "empty.png": "this is a file without content",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_image_is_named_and_not_shown(data, name):
    value = named_origin(str(data)).locate(name)
    for read in (load_image, image_size, encoded_bytes):
        with pytest.raises(ValueError, match=WRONG[name]) as refused:
            read(value)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["text.png", "page.png", "a.png", "empty.png"])
def test_a_file_that_is_no_video_is_named(data, name):
    # FFmpeg draws any text as a video if the name ends in `.txt`, and follows what playlists name.
    (data / "film.txt").write_text(SECRET * 100)
    (data / "film.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{data}/film.png\n#EXT-X-ENDLIST\n")
    for path in (name, "film.txt", "film.m3u8"):
        with pytest.raises(ValueError, match=r"the video cannot be read .*: this is (text|an|a file)"):
            load_video(named_origin(str(data)).locate(path), 1, 1)


def test_files_inside_are_read_however_they_are_named(data):
    origin = named_origin(str(data))
    expected = (data / "a.png").read_bytes()
    for path in ("a.png", "./a.png", "sub/../a.png", str(data / "a.png"), f"zip://a.png::{data}/images.zip"):
        assert encoded_bytes(origin.locate(path)) == expected
    assert encoded_bytes(origin.locate("inside.png")) == (data / "sub" / "c.png").read_bytes()
    assert load_video(origin.locate("film.png"), 1, 24)[0].size == (16, 16)


def test_a_folder_that_is_a_link_is_read(data, tmp_path):
    (tmp_path / "shortcut").symlink_to(data)
    (data / "rows.jsonl").write_text("{}")
    (tmp_path / "rows.jsonl").symlink_to(data / "rows.jsonl")
    for name in ("shortcut", "shortcut/rows.jsonl"):
        origin = named_origin(str(tmp_path / name))
        for path in ("a.png", str(data / "a.png"), str(tmp_path / "shortcut" / "a.png")):
            assert image_size(origin.locate(path)) == (16, 16)
        with pytest.raises(ValueError, match="leads outside"):
            image_size(origin.locate("link.png"))
    # A file that is linked to: absolute paths lead to where it lies.
    assert image_size(named_origin(str(tmp_path / "rows.jsonl")).locate(str(data / "a.png"))) == (16, 16)


def test_the_hub_cache_holds_links(tmp_path, monkeypatch):
    repository = tmp_path / "datasets--me--set"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "train").mkdir(parents=True)
    (repository / "blobs" / "0123").write_bytes(png(0))
    linked = repository / "snapshots" / "abc" / "train" / "a.png"
    linked.symlink_to("../../../blobs/0123")
    other = tmp_path / "datasets--me--other" / "a.png"
    other.parent.mkdir()
    other.write_bytes(png(1))
    monkeypatch.setattr("tgo_trl.media.origin.HF_HUB_CACHE", str(tmp_path))
    for name in ("me/set", str(repository / "snapshots" / "abc")):
        origin = named_origin(name)
        assert encoded_bytes(origin.locate(str(linked))) == png(0)
        for path in (str(other), "a.png"):  # of another data set, and of the current directory
            with pytest.raises(ValueError, match=r"leads outside|FileNotFoundError"):
                encoded_bytes(origin.locate(path))


def test_urls_of_the_data_set_itself_are_its_files(monkeypatch):
    opened = []
    monkeypatch.setattr("tgo_trl.media.origin.xopen", lambda url, mode: opened.append(url) or io.BytesIO(png(0)))
    origin = named_origin("me/set")
    own = ["hf://datasets/me/set@abc/a.png", "zip://a.png::hf://datasets/me/set@abc/images.zip"]
    for url in own:
        assert image_size(origin.locate(url)) == (16, 16)
    assert opened == own
    for url in ("hf://datasets/me/set2@abc/a.png", "hf://datasets/me/set@abc/../../x/a.png",
                "hf://datasets/me/set@abc/%2e%2e/%2e%2e/x/a.png", "https://127.0.0.1/a.png"):  # fmt: skip
        with pytest.raises(ValueError, match="allow_urls"):
            image_size(origin.locate(url))
        assert image_size(named_origin("me/set", allow_urls=True).locate(url)) == (16, 16)
    with pytest.raises(ValueError, match="no kind of URL"):
        image_size(named_origin("me/set", allow_urls=True).locate("file:///etc/hostname"))


def test_image_dir_is_another_root(data, tmp_path):
    origin = named_origin(str(data), str(tmp_path / "home"))
    for path in ("secret.png", str(data / "a.png"), str(data / "link.png")):
        assert image_size(origin.locate(path)) == (16, 16)
    with pytest.raises(ValueError, match=r"`image_dir` is '.*nowhere', which is no folder"):
        named_origin(str(data), str(tmp_path / "nowhere"))


# ---- Objects ----


def test_what_was_made_in_python_may_name_any_file_and_what_was_loaded_may_not_copy_it(data, tmp_path):
    made = Dataset.from_dict({"prompt": ["a"], "image": [str(data / "a.png")], "rating": [1]})
    made.to_json(tmp_path / "rows.jsonl")
    loaded = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    assert convert_dataset(made, "ratings")["score"][:] == [1.0]
    for stream in (loaded, loaded.to_iterable_dataset(), loaded.map(lambda row: row)):
        with pytest.raises(BadRowError, match=r"leads outside .* set `image_dir`"):
            convert_dataset(stream, "ratings")
    assert convert_dataset(loaded, "ratings", image_dir=str(data))["score"][:] == [1.0]
    with pytest.raises(BadRowError, match="leads outside"):
        convert_dataset(made, "ratings", image_dir=str(tmp_path / "home"))
    for rows in (made, loaded):  # nothing is copied
        assert score_dataset(rows, lambda prompts, images: [2.0])["score"][:] == [2.0]
    with pytest.raises(BadRowError, match="leads outside"):
        score_dataset(made, lambda prompts, images: [2.0], image_dir=str(tmp_path / "home"))
    with pytest.raises(BadRowError, match="allow_urls"):
        score_dataset(made.map(lambda row: {"image": "https://127.0.0.1/a.png"}), lambda prompts, images: [2.0])


def test_values_that_code_passes_are_its_own(data):
    with fsspec.open("memory://own/a.png", "wb") as file:
        file.write(png(0))
    assert load_image("memory://own/a.png").size == (16, 16)
    assert load_image(data / "link.png").size == (16, 16)
    assert find_origin(Dataset.from_dict({"a": [1]})).roots is OWN.roots is None


# ---- Commands ----


def rows_file(data, path, kind):
    """Three rows, of which the second names `path`."""
    rows = [{"prompt": "a cat", "image": name, "score": float(i), "rating": i, "old": 0.0}
            for i, name in enumerate(("a.png", path, "b.png"))]  # fmt: skip
    if kind == "jsonl":
        (data / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return str(data / "rows.jsonl")
    features = Features({"prompt": Value("string"), "score": Value("float64"), "rating": Value("int64"),
                         "old": Value("float64"), "image": Value("string")})  # fmt: skip
    dataset = Dataset.from_list(rows, features=features)
    dataset = dataset.cast(Features({**features, "image": ImageFeature()})) if kind == "parquet" else dataset
    file = data / f"rows.{kind}"
    dataset.to_csv(file) if kind == "csv" else pq.write_table(dataset.data.table, file)
    return str(file)


def run(command, source, tmp_path, **settings):
    output = str(tmp_path / "out")
    if command == "convert":
        return convert(ConvertConfig(source, output, layout="ratings", disable_tqdm=True, **settings))
    if command == "score":
        config = ScoreConfig(source, output, ["r"], score_columns="new", disable_tqdm=True, **settings)
        return score(config, rewards={"r": lambda prompts, images: [1.0] * len(images)})
    settings.pop("on_bad_row", None)
    return inspect(InspectConfig(source, output, disable_tqdm=True, **settings))


@pytest.mark.parametrize("command", ["convert", "score", "inspect"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["absolute", "relative", "link", "http"])
def test_commands_refuse_what_a_row_names_outside(data, tmp_path, command, kind, streaming, name):
    source = rows_file(data, hostile(name, data), kind)
    if command == "inspect":
        report = run(command, source, tmp_path, dataset_streaming=streaming)
        assert report.problems == {"bad image": 1}
        assert report.first_reasons["bad image"].startswith("row 1: ")
    else:
        with pytest.raises(BadRowError, match=r"^Row 1, .*(leads outside the data set's folder|is a URL)"):
            run(command, source, tmp_path, dataset_streaming=streaming)
        folder = run(command, source, tmp_path, dataset_streaming=streaming, on_bad_row="skip")
        assert load_dataset(str(folder), split="train").num_rows == 2
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes()


@pytest.mark.parametrize("command", ["convert", "score", "inspect"])
def test_commands_read_what_is_inside(data, tmp_path, command):
    for kind, path in (("jsonl", "sub/c.png"), ("parquet", str(data / "inside.png")), ("csv", "inside.png")):
        run(command, rows_file(data, path, kind), tmp_path / kind)
    run(command, rows_file(data, "secret.png", "jsonl"), tmp_path / "dir", image_dir=str(tmp_path / "home"),
        on_bad_row="skip")  # fmt: skip


def test_the_train_command_reads_beside_the_data_set_and_not_elsewhere(data, tmp_path, capsys):
    build().save_pretrained(tmp_path / "pipeline")
    arguments = ["train", "--model_name_or_path", str(tmp_path / "pipeline"), "--max_steps", "1", "--resolution", "16",
                 "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--report_to", "none", "--bf16", "false",
                 "--encoding_cache_dir", str(tmp_path / "encodings"), "--disable_tqdm", "true"]  # fmt: skip
    assert main([*arguments, "--dataset_name", rows_file(data, "link.png", "jsonl")]) == 1
    assert "Row 1, column 'image': the path 'link.png' leads outside" in capsys.readouterr().err
    streaming = [*arguments, "--dataset_streaming", "true", "--dataset_name", rows_file(data, "link.png", "jsonl")]
    assert main(streaming) == 1
    assert "Row 1, column 'image': the path 'link.png' leads outside" in capsys.readouterr().err
    assert main([*arguments, "--dataset_name", rows_file(data, "sub/c.png", "jsonl")]) == 0


def test_the_trainer_takes_objects_and_image_dir(data, tmp_path):
    settings = {"max_steps": 1, "resolution": 16, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    paths = [str(data / "a.png"), str(data / "b.png")]
    made = Dataset.from_dict({"prompt": ["x", "y"], "image": paths, "score": [0.0, 1.0]})
    made = made.cast_column("image", ImageFeature())
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes((data / f"{name}.png").read_bytes())
    (folder / "metadata.csv").write_text("file_name,prompt,score\na.png,x,0.0\nb.png,y,1.0\n")
    loaded = load_dataset("imagefolder", data_dir=str(folder), split="train")
    config = TGOConfig(str(tmp_path / "run"), encoding_cache_dir=str(tmp_path / "encodings"), **settings)
    for rows in (made, loaded):
        assert len(TGOTrainer(build(), config, rows).train_dataset) == 2
    config.image_dir = str(tmp_path / "home")
    with pytest.raises(BadRowError, match=r"Row 0, column 'image': .* leads outside"):
        TGOTrainer(build(), config, made)
    config.image_dir = None
    with pytest.raises(BadRowError, match=r"Row 0, column 'image': .* leads to no regular file"):
        TGOTrainer(build(), config, made.map(lambda row: {"image": str(data / "pipe.png")}))


# ---- Copies ----


FILE, OK = {"bytes": None, "path": "../home/secret.png"}, {"bytes": png(0), "path": "/home/me/a.png"}
NESTED = {
    "another column": (ImageFeature(), FILE, OK),
    "list": (List(ImageFeature()), [OK, FILE], [OK, OK]),
    "large list": (LargeList(ImageFeature()), [FILE], [OK]),
    "struct": ({"inner": ImageFeature(), "n": Value("int64")}, {"inner": FILE, "n": 1}, {"inner": OK, "n": 1}),
    "list of structs": (List({"inner": List(ImageFeature())}), [{"inner": [FILE]}], [{"inner": [OK]}]),
    "video": (Video(), FILE, {"bytes": film(2), "path": None}),
    "audio": (Audio(), FILE, {"bytes": b"RIFF\0\0\0\0WAVE", "path": "a.wav"}),
}


def two_columns(kind, cell):
    features = Features({"prompt": Value("string"), "image": ImageFeature(), "extra": NESTED[kind][0]})
    row = {"prompt": "a", "image": {"bytes": png(1), "path": None}, "extra": cell}
    return row, features


@pytest.mark.parametrize("kind", NESTED)
def test_whatever_column_names_a_file_it_is_checked_before_it_is_copied(data, tmp_path, kind, monkeypatch):
    row, features = two_columns(kind, NESTED[kind][1])
    with pytest.raises(ColumnError, match="leads outside") as refused:
        embed_files(row, features, named_origin(str(data)))
    assert refused.value.column == "extra"
    with pytest.raises(ValueError, match="The column 'extra' names files that were not read"):
        check_embedded(stored_table([row], features))  # the last door before the disk
    embedded = embed_files(two_columns(kind, NESTED[kind][2])[0], features, named_origin(str(data)))
    monkeypatch.chdir(data)
    table = stored_table([embedded, {"prompt": "b"}], features)
    check_embedded(table)
    assert "/home/me" not in str(table.to_pylist())
    # through a file on the disk and the command
    pq.write_table(stored_table([row], features), data / "rows.parquet")
    with pytest.raises(BadRowError, match=r"Row 0, column 'extra': .*leads outside"):
        run("score", str(data / "rows.parquet"), tmp_path)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_score_copies_every_column_that_is_right(data, tmp_path):
    inside = {"bytes": None, "path": "sub/c.png"}
    features = Features({"prompt": Value("string"), "image": ImageFeature(), "extra": List({"inner": ImageFeature()})})
    row = {"prompt": "a", "image": {"bytes": None, "path": "a.png"}, "extra": [{"inner": inside}]}
    pq.write_table(stored_table([row], features), data / "rows.parquet")
    folder = run("score", str(data / "rows.parquet"), tmp_path)
    [stored] = pq.ParquetFile(next(folder.rglob("*.parquet"))).read().to_pylist()
    assert stored["image"] == {"bytes": (data / "a.png").read_bytes(), "path": "a.png"}
    assert stored["extra"] == [{"inner": {"bytes": (data / "sub" / "c.png").read_bytes(), "path": "c.png"}}]


@pytest.mark.parametrize("name", ["text.png", "page.png", "film.png", "empty.png"])
def test_bytes_of_another_medium_are_not_copied(data, name):
    row, features = two_columns("another column", {"bytes": (data / name).read_bytes(), "path": None})
    with pytest.raises(ColumnError, match=r"the image cannot be read \(UnidentifiedImageError: this is"):
        embed_files(row, features, named_origin(str(data)))
    for feature in (Video(), Audio()):
        if name != "film.png" or isinstance(feature, Audio):
            row, features = {"extra": {"bytes": None, "path": name}}, Features({"extra": feature})
            with pytest.raises(ColumnError, match="cannot be read: this is"):
                embed_files(row, features, named_origin(str(data)))


def test_files_of_features_that_nobody_reads_are_not_copied(data):
    row, features = {"scan": {"bytes": None, "path": "a.png"}}, Features({"scan": Nifti()})
    with pytest.raises(ColumnError, match="of a column of `Nifti`, whose files are not copied; drop it"):
        embed_files(row, features, named_origin(str(data)))
    assert embed_files({"scan": {"bytes": b"x", "path": None}}, features, OWN)["scan"]["bytes"] == b"x"


def test_bytes_are_kept_where_a_file_of_their_name_lies_here(data, monkeypatch):
    # `datasets` drops the bytes of a cell whose path is a file, and reads that file when it writes the table.
    monkeypatch.chdir(data)
    features = Features({"image": ImageFeature(), "frames": List(ImageFeature())})
    cell = {"bytes": png(7), "path": "a.png"}
    assert Dataset.from_list([{"image": cell}], features=Features({"image": ImageFeature()})).data[0][0].as_py() == {
        "bytes": None, "path": "a.png",
    }  # fmt: skip
    [row] = stored_table([{"image": cell, "frames": [cell]}], features).to_pylist()
    assert row == {"image": cell, "frames": [cell]}


def test_pictures_are_stored_as_datasets_stores_them():
    features = Features({"image": ImageFeature(), "frames": List(ImageFeature()), "n": Value("int64")})
    rows = [{"image": picture(0), "frames": [picture(1)], "n": 1}, {"image": None, "frames": None, "n": None}]
    columns = {name: [row[name] for row in rows] for name in features}
    expected = Dataset.from_dict(columns, features=features).data.table
    assert stored_table(rows, features).equals(expected)
    assert stored_table(rows, features).schema.equals(expected.schema, check_metadata=True)


def test_archives_and_folders_are_read_by_name(data, tmp_path):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    with zipfile.ZipFile(zipped / "images.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.write(data / name, name)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.png").write_bytes((data / "a.png").read_bytes())
    for folder in (zipped, plain):
        for streaming in (False, True):
            rows = load_dataset(str(folder), split="train", streaming=streaming)
            for row in rows.cast_column("image", ImageFeature(decode=False)):
                value = named_origin(str(folder)).locate(row["image"])
                assert isinstance(value, DataFile)
                assert image_size(value) == (16, 16)


def test_decoded_images_pass(data):
    image = Image.open(data / "a.png")
    assert named_origin(str(data)).locate(image) is image
    assert named_origin(str(data)).locate([[1, 2], [3, 4]]) == [[1, 2], [3, 4]]
    stored = {"bytes": b"x", "path": "/etc/passwd"}
    assert named_origin(str(data)).locate(stored) == stored
    for value in (7, {"bytes": None, "path": 7}, {"path": b"a.png"}, {}):
        with pytest.raises(ValueError, match="an image must be a PIL image, a path"):
            load_image(named_origin(str(data)).locate(value))
