import json

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from infill_aug.confidence.coco import CocoObjects
from infill_aug.confidence.sources import BoxConfidence, MaskConfidence
from infill_aug.confidence.training import read_training_set
from infill_aug.samples import split_sample

WIDTH, HEIGHT = 20, 16
RLE = {"counts": [0, WIDTH * HEIGHT], "size": [HEIGHT, WIDTH]}


def rectangle(left, top, right, bottom):
    """The polygon of the pixels from left, top to right, bottom, both inside."""
    return [left, top, right, top, right, bottom, left, bottom]


def inside(*boxes):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for left, top, right, bottom in boxes:
        mask[top : bottom + 1, left : right + 1] = 1
    return mask


def thing(picture, category, *boxes, **fields):
    return {
        "image_id": picture,
        "category_id": category,
        "segmentation": [rectangle(*box) for box in boxes],
        "area": float(inside(*boxes).sum()),
        "iscrowd": 0,
    } | fields


def instances(**fields):
    return {
        "licenses": [{"id": 1, "name": "by-nc"}, {"id": 4, "name": "by"}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "images": [
            {"id": 7, "file_name": "seven.jpg", "width": WIDTH, "height": HEIGHT, "license": 4},
            {"id": 8, "file_name": "eight.jpg", "width": WIDTH, "height": HEIGHT, "license": 1},
            {"id": 9, "file_name": "nine.jpg", "width": WIDTH, "height": HEIGHT, "license": 4},
        ],
        "annotations": [
            thing(7, 17, (2, 2, 5, 9), (12, 2, 15, 9)),  # one cat behind a post: two polygons
            thing(8, 18, (0, 0, 9, 9)),
            thing(7, 18, (1, 12, 3, 14)),
            thing(8, 17, segmentation=RLE, area=320.0, iscrowd=1),
            thing(9, 17, segmentation=RLE, area=320.0, iscrowd=1),
        ],
    } | fields


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("seven", "eight", "nine")):
        PILImage.new("RGB" if i else "L", (WIDTH, HEIGHT), 90).save(tmp_path / f"{name}.jpg")
    return tmp_path


def write(folder, content, name="instances.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_each_object_is_a_mask_of_all_its_polygons_with_its_name(folder):
    data = CocoObjects(folder, write(folder, instances()))
    assert len(data) == 2, "the third picture has a crowd only"
    picture, target = data[0]
    assert picture.mode == "RGB"
    assert picture.size == (WIDTH, HEIGHT)
    assert target["labels"] == ["cat", "dog"]
    assert target["mask"].dtype == np.uint8
    assert np.array_equal(target["mask"], [inside((2, 2, 5, 9), (12, 2, 15, 9)), inside((1, 12, 3, 14))])
    _, target = data[1]
    assert target["labels"] == ["dog"], "the crowd is left out"
    assert np.array_equal(target["mask"], [inside((0, 0, 9, 9))])


def test_objects_make_confidence_maps_and_training_sets(folder):
    data = CocoObjects(folder, write(folder, instances()))
    source = MaskConfidence("mask", falloff=0)
    confidence = source(*split_sample(data[0]))
    wanted = inside((2, 2, 5, 9), (12, 2, 15, 9), (1, 12, 3, 14))
    assert torch.equal(confidence[0], torch.from_numpy(wanted).float())
    read = read_training_set(data, source, 16, progress=False)
    assert read.targets[1, 0].float().mean() / 255 == pytest.approx(100 / (WIDTH * HEIGHT), abs=0.02)


def test_objects_given_as_run_lengths_are_left_out_crowd_or_not(folder):
    content = instances()
    content["annotations"].append(thing(9, 18, segmentation=RLE, area=320.0))
    assert len(CocoObjects(folder, write(folder, content))) == 2


@pytest.mark.parametrize(
    ("licenses", "names"), [(None, ["seven", "eight"]), ([4], ["seven"]), ((1, 4), ["seven", "eight"])]
)
def test_only_pictures_of_the_wanted_licences_are_kept(folder, licenses, names):
    data = CocoObjects(folder, write(folder, instances()), licenses=licenses)
    assert [row["file_name"] for row, _ in data.rows] == [f"{name}.jpg" for name in names]


def test_a_picture_without_a_licence_is_left_out_where_licences_are_asked_for(folder):
    content = instances()
    del content["images"][0]["license"]
    assert [row["id"] for row, _ in CocoObjects(folder, write(folder, content), licenses=[1, 4]).rows] == [8]
    assert len(CocoObjects(folder, write(folder, content))) == 2


def test_small_objects_are_left_out_by_their_share_of_the_picture(folder):
    path = write(folder, instances())
    assert CocoObjects(folder, path, min_area=9 / 320)[0][1]["labels"] == ["cat", "dog"]
    assert CocoObjects(folder, path, min_area=10 / 320)[0][1]["labels"] == ["cat"]
    only = CocoObjects(folder, path, min_area=70 / 320)
    assert [row["id"] for row, _ in only.rows] == [8]


@pytest.mark.parametrize("options", [{"licenses": [3]}, {"licenses": []}, {"min_area": 0.9}])
def test_filters_that_leave_nothing_are_an_error_that_names_the_file(folder, options):
    path = write(folder, instances())
    with pytest.raises(FileNotFoundError, match=r"instances\.json' has no object of the wanted size and licences"):
        CocoObjects(folder, path, **options)


def test_a_file_without_categories_has_objects_without_names(folder):
    assert CocoObjects(folder, write(folder, instances(categories=[])))[0][1]["labels"] == ["object", "object"]


def test_annotations_of_pictures_that_the_file_does_not_list_are_ignored(folder):
    content = instances()
    content["annotations"].append(thing(99, 17, (0, 0, 3, 3)))
    assert len(CocoObjects(folder, write(folder, content))) == 2


def test_a_missing_annotation_file_and_a_missing_picture_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*nowhere\.json"):
        CocoObjects(folder, folder / "nowhere.json")
    path = write(folder, instances())
    (folder / "seven.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"seven\.jpg"):
        CocoObjects(folder, path)[0]


def test_a_picture_that_was_resized_since_is_refused_with_both_sizes(folder):
    path = write(folder, instances())
    PILImage.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(folder / "seven.jpg")
    with pytest.raises(ValueError, match=r"seven\.jpg has size \(10, 8\), its annotations \(20, 16\)"):
        CocoObjects(folder, path)[0]


# --- panoptic ---

CAT, SKY, CROWD, LARGE = 3, 700, 80_000, 13_000_000  # ids that use one, two and all three colour channels


def panoptic(**fields):
    return {
        "categories": [
            {"id": 17, "name": "cat", "isthing": 1},
            {"id": 187, "name": "sky", "isthing": 0},
        ],
        "images": [{"id": 7, "file_name": "seven.jpg", "width": WIDTH, "height": HEIGHT, "license": 4}],
        "annotations": [
            {
                "image_id": 7,
                "file_name": "seven.png",
                "segments_info": [
                    {"id": CAT, "category_id": 17, "area": 16, "iscrowd": 0},
                    {"id": SKY, "category_id": 187, "area": 160, "iscrowd": 0},
                    {"id": CROWD, "category_id": 17, "area": 16, "iscrowd": 1},
                    {"id": LARGE, "category_id": 17, "area": 64, "iscrowd": 0},
                ],
            }
        ],
    } | fields


@pytest.fixture
def maps(folder):
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[:8], ids[8:12, :4], ids[8:12, 4:8], ids[8:, 12:] = SKY, CAT, CROWD, LARGE
    (folder / "maps").mkdir()
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    PILImage.fromarray(colours).save(folder / "maps" / "seven.png")
    return folder / "maps"


def test_things_of_a_panoptic_file_are_read_by_colour_and_stuff_and_crowds_are_left_out(folder, maps):
    data = CocoObjects(folder, write(folder, panoptic()), maps)
    picture, target = data[0]
    assert picture.size == (WIDTH, HEIGHT)
    assert target["labels"] == ["cat", "cat"]
    assert np.array_equal(target["mask"], [inside((0, 8, 3, 11)), inside((12, 8, 19, 15))])


def test_panoptic_objects_are_filtered_like_others(folder, maps):
    path = write(folder, panoptic())
    assert CocoObjects(folder, path, maps, min_area=0.1)[0][1]["mask"].shape == (1, HEIGHT, WIDTH)
    with pytest.raises(FileNotFoundError, match="no object"):
        CocoObjects(folder, path, maps, licenses=[1])


def test_a_panoptic_file_of_stuff_alone_has_no_objects(folder, maps):
    stuff = [{"id": i, "name": f"stuff {i}", "isthing": 0} for i in (17, 187)]
    with pytest.raises(FileNotFoundError, match="no object"):
        CocoObjects(folder, write(folder, panoptic(categories=stuff)), maps)


def test_a_panoptic_file_without_its_folder_says_what_it_needs(folder):
    with pytest.raises(ValueError, match="needs panoptic="):
        CocoObjects(folder, write(folder, panoptic()))[0]


def test_boxes_are_the_extents_of_the_masks_and_cover_them(folder):
    picture, target = CocoObjects(folder, write(folder, instances()))[0]
    image = torch.zeros(3, *picture.size[::-1], dtype=torch.uint8)
    assert target["boxes"].tolist() == [[2, 2, 16, 10], [1, 12, 4, 15]]
    covered = BoxConfidence("boxes", falloff=0)(image, target) > 0
    assert covered[MaskConfidence("mask", falloff=0)(image, target) > 0].all()
