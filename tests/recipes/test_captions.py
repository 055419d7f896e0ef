"""Captioned pictures: nothing is on two sides, held-out categories stay out, and a file of them can be made of packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.images import load_picture
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import split_of
from recipes.data import captioned_images, captions, clip_art, judge_data
from tests.support import ROOT
from tests.support.captions import COLOURS, SHAPES, captioned, drawn

PACKAGES = ("tuxpaint-stamps-default", "iso-flags-png-320x240", "iso-codes", "openclipart-png", "openclipart-svg")
CHOICE = {"format": "choice", "template": "glance", "labels": ["A", "B"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return captioned(tmp_path_factory.mktemp("captioned"))


def right(item: Item) -> str:
    return item.group.candidates[item.gold_G.index(1.0)]


def shown(item: Item) -> str:
    (image,) = item.group.prompt[0].images
    return str(image.image)


# -- items ------------------------------------------------------------------------------------------------------------


def test_an_item_shows_a_picture_with_its_own_caption_and_others_of_its_side(file: str):
    seen = set()
    for split in ("train", "dev", "test"):
        task = judge_data.TaskConfig(source="captions", path=file, judge=CHOICE, distractors="any")
        for item in judge_data.items(task, split):
            assert sorted(item.gold_G) == [0.0, 1.0]
            colour, shape = Path(shown(item)).stem.split("-")
            assert right(item) == f"A {colour} {shape}."
            assert {split_of(text) for text in item.group.candidates} == {split}
            seen.add(right(item))
    assert len(seen) == len(COLOURS) * len(SHAPES)


def test_near_distractors_are_of_the_pictures_category_and_others_come_when_these_run_out(file: str):
    near = judge_data.TaskConfig(source="captions", path=file, size=2)
    for item in judge_data.items(near, "train"):
        assert len({text.split()[-1] for text in item.group.candidates}) == 1
    many = judge_data.TaskConfig(source="captions", path=file, size=14)
    for item in judge_data.items(many, "train"):
        kinds = [text.split()[-1] for text in item.group.candidates]
        assert len(set(item.group.candidates)) == 14
        assert kinds.count(right(item).split()[-1]) > 5, "all of its own category, and some more"
    with pytest.raises(InputError, match="give no item of 40 captions"):
        judge_data.items(judge_data.TaskConfig(source="captions", path=file, size=40), "train")


def test_training_shows_a_picture_as_often_as_asked_with_other_captions_and_testing_once(file: str):
    task = judge_data.TaskConfig(source="captions", path=file, count=100, distractors="any")
    train = judge_data.items(task, "train")
    assert len(train) == 100
    assert len({shown(item) for item in train}) < 50
    assert len({frozenset(item.group.candidates) for item in train}) > 80
    test = judge_data.items(task, "test")
    assert len({shown(item) for item in test}) == len(test)
    assert judge_data.items(task, "train") == train, "the same in every process"


def test_categories_are_chosen_and_held_out_ones_cannot_be_trained_on(file: str):
    held = judge_data.TaskConfig(source="captions", path=file, categories=["bar"], held_out="source", size=2)
    assert {right(item).split()[-1] for item in judge_data.items(held, "test")} == {"bar."}
    assert len(judge_data.items(held, "test")) == len(COLOURS)
    rest = judge_data.TaskConfig(source="captions", path=file, not_categories=["bar"])
    assert {right(item).split()[-1] for item in judge_data.items(rest, "train")} == {"circle.", "square."}
    judge_data.check_tasks({"held": held, "rest": rest})
    judge_data.check_tasks(
        {"held": held, "one": judge_data.TaskConfig(source="captions", path=file, categories=["circle"])}
    )
    for leaky in ({}, {"not_categories": ["circle"]}, {"categories": ["circle", "bar"]}):
        with pytest.raises(ConfigError, match="trains on bar, which task 'held' holds out"):
            judge_data.check_tasks(
                {"held": held, "leaky": judge_data.TaskConfig(source="captions", path=file, **leaky)}
            )
    with pytest.raises(InputError, match="no category star"):
        judge_data.items(judge_data.TaskConfig(source="captions", path=file, categories=["star"]), "train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "captions"}, "path belongs to"),
        ({"source": "tweets", "categories": ["x"]}, "belong to source 'captions'"),
        ({"source": "captions", "path": "x", "categories": ["a"], "not_categories": ["b"]}, "give one of them"),
        ({"source": "captions", "path": "x", "size": 1}, "at least 2 candidates"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        judge_data.TaskConfig(**values)


def test_describing_gives_examples_and_nothing_to_judge(file: str):
    task = judge_data.TaskConfig(source="captions", path=file, describe=True)
    assert judge_data.items(task, "train")
    with pytest.raises(ConfigError, match="nothing to judge"):
        judge_data.task_problems(task, "test")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"image": "a.png", "caption": "A."}', '{"image": "a", "caption": " ", "category": "x"}']
)
def test_a_line_that_is_no_captioned_image_is_named(tmp_path: Path, line: str):
    good = json.dumps({"image": "a.png", "caption": "A.", "category": "x"})
    (tmp_path / "captions.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        captions.read_captions(str(tmp_path / "captions.jsonl"))
    with pytest.raises(InputError, match=r"recipes\.data\.captioned_images makes one"):
        captions.read_captions(str(tmp_path / "none.jsonl"))


def test_a_caption_that_two_pictures_have_is_never_a_wrong_answer_to_either():
    rows = [
        captions.Captioned(f"{n}.png", text, "x") for n, text in enumerate(["A cat.", "a  CAT.", "A dog.", "A cow."])
    ]
    rows.append(captions.Captioned("0.png", "A tabby.", "x"))
    found = captions.caption_items(
        rows, {"train", "dev", "test"}, "Which?", size=2, distractors="any", rounds=9, seed=0
    )  # fmt: skip
    for item in found:
        said = {captions.same(text) for text in item.group.candidates}
        assert len(said) == 2
        assert not {"a cat.", "a tabby."} <= said or Path(shown(item)).name != "0.png"


# -- made of packages -------------------------------------------------------------------------------------------------


def packaged(root: Path) -> tuple[Path, Path]:
    """What the two packages hold, in small."""
    stamps = root / "usr/share/tuxpaint/stamps"
    for path, caption in (("animals/birds/lark", "A lark.\nde.utf8=Eine Lerche."), ("animals/fish/eel", "An eel."),
                          ("food/eel", "an  EEL."), ("food/void", "\n"), ("food/pear", "A pear.")):  # fmt: skip
        (stamps / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(stamps / f"{path}.png")
        (stamps / f"{path}.txt").write_text(caption)
    (stamps / "food/pear.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(stamps / "food/silent.png")
    flags = root / "usr/share/iso-flags-png-320x240"
    flags.mkdir(parents=True)
    for name in ("fr", "_olympic"):
        drawn("red", "bar").save(flags / f"{name}.png")
    names = root / "usr/share/iso-codes/json/iso_3166-1.json"
    names.parent.mkdir(parents=True)
    names.write_text(
        json.dumps({"3166-1": [{"alpha_2": "FR", "name": "France"}, {"alpha_2": "XX", "name": "Nowhere"}]})
    )
    return stamps, flags


def test_pictures_with_captions_become_a_file_and_the_rest_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stamps, flags = packaged(tmp_path / "root")
    names = tmp_path / "root/usr/share/iso-codes/json/iso_3166-1.json"
    found = [*captioned_images.stamps(stamps), *captioned_images.flags(flags, names)]
    rows = captioned_images.write_captions(found, tmp_path / "out", 32)
    assert [(row.caption, row.category) for row in rows] == [
        ("A lark.", "animals"), ("An eel.", "animals"), ("The flag of France.", "flags")
    ]  # fmt: skip
    assert "1 refused, 1 with a caption that another picture has" in capsys.readouterr().err
    read = captions.read_captions(str(tmp_path / "out/captions.jsonl"))
    assert [row.caption for row in read] == [row.caption for row in rows]
    picture = load_picture(read[0].image)
    assert (picture.width, picture.height) == (32, 32)
    pixels = Image.open(read[0].image).convert("RGB")
    assert pixels.getpixel((0, 0)) == (255, 255, 255), "padded to a square"
    assert pixels.getpixel((16, 16)) == (255, 127, 127), "half transparent red on white"


def metadata(title: str, *keywords: str, by: str = "Ann Lee") -> str:
    listed = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return (
        f"<svg><metadata><dc:title>{title}</dc:title><rdf:Bag>{listed}</rdf:Bag>"
        f"<cc:Agent><dc:title>{by}</dc:title></cc:Agent></metadata></svg>"
    )


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        (metadata("Clipart by Ann Lee - happyDog_01.svg", "mammal"), "Happy Dog, mammal."),
        (metadata("ROSE", "flower", "rose", "plant", "red", "garden"), "Rose, flower, plant, red."),
        (metadata("Lee", "hash(0x8a)", "", "insect"), "Insect."),  # the title is who drew it
        (metadata("Caf\u00e9", "cup &amp; saucer"), "Cup & saucer."),
        (metadata("Various Cliparts", "unsorted", "ann lee"), ""),
        (metadata("", ""), ""),
        ("", ""),
    ],
)
def test_a_drawings_caption_is_its_title_and_keywords(said: str, caption: str):
    assert clip_art.caption_of(said) == caption


@pytest.mark.parametrize(
    ("folder", "keywords", "category"),
    [
        ("animals", ["mammal"], "animals"),
        ("transportation", ["food"], "vehicles"),
        ("recreation", ["ice cream", "food"], "food"),  # a party's
        ("signs_and_symbols", ["europe", "flag"], "flags"),
        ("tools", ["carpet"], "tools"),  # no car
    ],
)
def test_what_keywords_call_food_a_vehicle_or_a_flag_can_be_held_out_wherever_it_lies(
    folder: str, keywords: list[str], category: str
):
    assert clip_art.category_of(folder, metadata("x", *keywords)) == category


def drawings(share: Path) -> None:
    """What the two packages of clip art hold, in small."""
    for path, said in (("animals/birds/lark", metadata("lark")), ("computer/icons/lark2", metadata("icon of a lark")),
                       ("tools/axe", metadata("axe")), ("tools/saw", metadata("saw"))):  # fmt: skip
        for kind in ("svg", "png"):
            (share / kind / path).parent.mkdir(parents=True, exist_ok=True)
        (share / "svg" / f"{path}.svg").write_text(said)
        if path != "tools/saw":
            drawn("red", "bar").save(share / "png" / f"{path}.png")


def test_packages_are_built_and_unpacked_by_the_command(tmp_path: Path):
    for name in PACKAGES:
        root = tmp_path / name
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n"
        )
    packaged(tmp_path / "tuxpaint-stamps-default")  # where the files lie is the same whichever package brings them
    drawings(tmp_path / "openclipart-svg/usr/share/openclipart")
    for name in PACKAGES:
        command = ["dpkg-deb", "--build", str(tmp_path / name), str(tmp_path / f"{name}_1_all.deb")]
        subprocess.run(command, check=True, capture_output=True)
    command = [
        sys.executable,
        "-m",
        "recipes.data.captioned_images",
        "--out",
        str(tmp_path / "out"),
        "--debs",
        str(tmp_path),
    ]
    settings: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run(command, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3 captioned images: animals 2, flags 1"
    done = subprocess.run([*command, "--clip-art"], **settings)
    assert done.stdout.strip() == "2 captioned images: animals 1, tools 1", done.stderr
    (lark, _) = captions.read_captions(str(tmp_path / "out/captions.jsonl"))
    assert (Path(lark.image).name, lark.caption) == ("animals-birds-lark.png", "Lark.")


def test_where_there_is_no_apt_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MRJUDGE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="there is no iso-codes_"):
        captioned_images.debian_package("iso-codes", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no apt-get here .*packages\.debian\.org/iso-codes.* --debs"):
        captioned_images.debian_package("iso-codes")
    with pytest.raises(InputError, match="no dpkg-deb"):
        captioned_images.unpacked(tmp_path / "x.deb", tmp_path)
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho E: no such package >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(InputError, match=r"could not fetch iso-codes \(E: no such package\).*--debs"):
        captioned_images.debian_package("iso-codes")
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho deb > iso-codes_4_all.deb\n")
    assert captioned_images.debian_package("iso-codes") == tmp_path / "cache/data/iso-codes_4_all.deb"
    (tmp_path / "apt-get").unlink()
    assert captioned_images.debian_package("iso-codes").read_text() == "deb\n", "kept in the cache"
