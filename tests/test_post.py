"""Pictures between ranks: named once, got once, only when they are read, by the cheapest way that gives the same pixels.

Both ends are in this process, with a real connection between them; `elsewhere` makes this process forget which pictures it holds,
as another rank would not have them. `test_distributed` has real ranks.
"""

from __future__ import annotations

import gc
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from foveate.train.post import FarPicture, Post, own_address
from foveate.train.ranks import ALONE
from foveate.visual_tools.base import Scene, ToolSettings
from foveate.visual_tools.zoom import Zoom, ZoomArguments
from foveate.vlm import images
from foveate.vlm.images import Picture, PictureError
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Rollout, Sample, Shown, StopReason, Turn, View

Forget = Callable[[], None]
WIDTH, HEIGHT = 40, 30
BYTES = 3600
"""Of a picture of 40 x 30 px, by hand: 3 x 40 x 30."""


@pytest.fixture(scope="module")
def opened() -> Iterator[list[Post]]:
    """Closed at the end, all at once: each takes up to half a second."""
    made: list[Post] = []
    yield made
    with ThreadPoolExecutor(len(made)) as workers:
        list(workers.map(Post.close, made))


@pytest.fixture
def posts(opened: list[Post]) -> list[Post]:
    made = [Post(rank, "127.0.0.1", 5.0) for rank in range(3)]
    opened += made
    for one in made:
        one.know([("127.0.0.1", post.port) for post in made], b"s" * 32)
    return made


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Forget:
    """Called: from now on this process holds none of the pictures made before."""

    def forget() -> None:
        monkeypatch.setattr(images, "_in_memory", weakref.WeakValueDictionary())
        monkeypatch.setattr(images, "_in_files", weakref.WeakValueDictionary())
        images._decoded_images.clear()

    return forget


def group_of(seen: Picture, observed: Picture, rollouts: int = 4) -> Group:
    """Rollouts that are all shown the same picture, and the same observation in both of their turns."""
    view = View("student", (Message.user(seen, "Which letter?"),))
    reply = Message.user("<tool_response>", observed, "</tool_response>")
    turns = (
        *(Turn((1, 2), (-0.5, -0.25), "zoom", StopReason.TOOL_CALL, reply) for _ in range(2)),
        Turn((3,), (-0.125,), "K", StopReason.ANSWERED),
    )
    sample = Sample(id="s", question="Which letter?", images=(seen,))
    return Group(sample, tuple(Rollout("s", "g", index, view, turns, StopReason.ANSWERED) for index in range(rollouts)))


def pixels(one: Picture) -> bytes:
    return one.rgb().tobytes()


def test_a_picture_is_named_once_and_its_pixels_are_got_once_when_they_are_read(posts: list[Post], elsewhere: Forget) -> None:
    sender, reader, _ = posts
    seen, observed = picture(1, WIDTH, HEIGHT), picture(2, WIDTH, HEIGHT)
    sent = group_of(seen, observed)
    want = pixels(observed)
    data = sender.dumps([sent, sent.rollouts])
    assert [data.count(bytes.fromhex(one.key)) for one in (seen, observed)] == [1, 1]
    large = sender.dumps([group_of(picture(3, 10 * WIDTH, 10 * HEIGHT), observed)] * 2)
    assert len(large) < len(data) + 20 < BYTES
    elsewhere()
    found, rollouts = reader.loads(data)
    assert found == sent
    assert rollouts == sent.rollouts, "a picture from elsewhere equals the one that it names"
    everywhere = {id(one) for rollout in (*found.rollouts, *rollouts) for one in rollout.pictures}
    assert len(everywhere) == 2, "held once across rollouts and turns"
    assert (reader.pictures_got, reader.bytes_got) == (0, 0), "nobody has read any"
    for rollout in found.rollouts:
        for turn in rollout.turns[:2]:
            assert turn.observation is not None
            (shown,) = turn.observation.pictures
            assert isinstance(shown, FarPicture)
            assert shown.size_px == (WIDTH, HEIGHT)
            assert pixels(shown) == want
    assert (reader.pictures_got, reader.bytes_got) == (1, BYTES), "the picture of the prompt was never read"
    again = reader.loads(sender.dumps(observed))
    assert pixels(again) == want
    assert reader.bytes_got == BYTES, "the same content, sent in a later step"


def test_what_is_held_here_is_taken_and_never_sent(posts: list[Post]) -> None:
    sender, reader, _ = posts
    mine = picture(4, WIDTH, HEIGHT)
    assert reader.loads(sender.dumps({"a": mine}))["a"] is mine


def test_a_file_is_read_where_it_holds_the_same_pixels_and_asked_for_elsewhere(
    posts: list[Post], elsewhere: Forget, tmp_path: Path
) -> None:
    sender = posts[0]
    file, other = tmp_path / "photo.png", tmp_path / "other.png"
    picture(5, WIDTH, HEIGHT).rgb().save(file)
    picture(6, WIDTH, HEIGHT).rgb().save(other)
    mine = Picture.open(file)
    want, name = pixels(mine), sender.name_of(mine)
    elsewhere()
    for place, (path, got) in enumerate([(file, 0), (other, BYTES), (tmp_path / "gone.png", BYTES)]):
        reading = posts[1] if place < 2 else posts[2]  # one that has not got it yet
        far = reading.picture_of((*name[:3], str(path), *name[4:]))
        reading._far.clear()
        images._decoded_images.clear()
        assert far.path == str(path)
        assert pixels(far) == want
        assert reading.bytes_got == got, path


def test_a_file_that_was_changed_while_in_use_is_an_error_on_every_rank(
    posts: list[Post], elsewhere: Forget, tmp_path: Path
) -> None:
    sender, reader, _ = posts
    file = tmp_path / "photo.png"
    picture(7, WIDTH, HEIGHT).rgb().save(file)
    mine = Picture.open(file)
    want = pixels(mine)
    os.utime(file, ns=(1, 1))
    assert pixels(mine) == want, "written again with the same pixels: nothing is wrong"
    far = FarPicture(sender.name_of(mine), reader.pixels)
    picture(8, WIDTH, HEIGHT).rgb().save(file)
    with pytest.raises(PictureError, match=r"photo.png: the file was changed while its picture was in use; bring it back"):
        mine.rgb()
    elsewhere()
    with pytest.raises(PictureError, match=r"its pixels are gone \(rank 0: .*photo.png: the file was changed"):
        far.rgb()
    picture(7, WIDTH, HEIGHT).rgb().save(file)
    assert pixels(far) == want


def test_a_file_that_was_changed_here_alone_is_asked_for(posts: list[Post], elsewhere: Forget, tmp_path: Path) -> None:
    sender, reader, _ = posts
    mine = picture(10, WIDTH, HEIGHT)
    far = FarPicture(sender.name_of(mine), reader.pixels)
    elsewhere()
    mine.rgb().save(tmp_path / "photo.png")
    here = Picture.open(tmp_path / "photo.png")
    assert images.held(mine.key) is here
    picture(11, WIDTH, HEIGHT).rgb().save(tmp_path / "photo.png")
    assert pixels(far) == pixels(mine)
    assert reader.bytes_got == BYTES


def zoomed(source: Picture, box: tuple[float, float, float, float], **settings: int) -> Picture:
    scene = Scene(Shown((source,), (source.size_px,), 1), 0, "abs_original", ToolSettings(**settings))
    (cut,) = Zoom().run(ZoomArguments(box=box), scene).parts
    assert isinstance(cut, Picture)
    return cut


def test_a_zoom_is_cut_again_and_no_pixel_is_sent(
    posts: list[Post], elsewhere: Forget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, reader, third = posts
    picture(9, 400, 300).rgb().save(tmp_path / "photo.png")
    photo = Picture.open(tmp_path / "photo.png")
    shrunk = zoomed(photo, (10, 20, 310, 220), max_pixels=20_000)
    nested = zoomed(shrunk, (5, 5, 85, 65), min_side_px=8)
    assert shrunk.origin is not None
    assert shrunk.origin.box_px == (10, 20, 310, 220)
    assert nested.size_px == (80, 60)
    want = [pixels(one) for one in (shrunk, nested)]
    assert pixels(nested) == shrunk.rgb().crop((5, 5, 85, 65)).tobytes()
    data = sender.dumps((shrunk, nested))
    elsewhere()
    first, second = reader.loads(data)
    assert pixels(second) == want[1], "out of one that is made first"
    assert pixels(first) == want[0]
    assert reader.bytes_got == 0
    elsewhere()
    monkeypatch.setattr(images, "cut_out", lambda image, box_px, size_px: image.crop(box_px).resize(size_px, Image.NEAREST))
    far, _ = third.loads(data)
    assert pixels(far) == want[0], "a library that rounds otherwise is found out"
    assert third.bytes_got == len(want[0])


def test_what_was_got_is_held_within_the_bound_of_decoded_files(
    posts: list[Post], elsewhere: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: two pictures of 3,600 bytes fit into 8,000."""
    monkeypatch.setattr(images, "_DECODED_BYTES", 8000)
    sender, reader, _ = posts
    sent = [picture(seed, WIDTH, HEIGHT) for seed in range(20, 24)]
    want, data = [pixels(one) for one in sent], sender.dumps(sent)
    elsewhere()
    found = reader.loads(data)
    assert [pixels(one) for one in found] == want
    assert list(images._decoded_images) == [found[2].key, found[3].key]
    assert pixels(found[3]) == want[3]
    assert reader.pictures_got == 4
    assert pixels(found[0]) == want[0], "let go of, and got again"
    assert reader.pictures_got == 5


def test_a_lent_picture_outlives_its_records_until_all_ranks_have_met(posts: list[Post], elsewhere: Forget) -> None:
    sender, reader, _ = posts
    lent = [picture(seed, WIDTH, HEIGHT) for seed in (30, 31)]
    want = pixels(lent[0])
    data = sender.dumps(lent)
    elsewhere()
    kept = lent.pop()
    del lent
    gc.collect()
    found = reader.loads(data)
    assert pixels(found[0]) == want, "another rank reads what rank 0 has said (Ranks.first)"
    images._decoded_images.clear()
    sender.met()
    gc.collect()
    with pytest.raises(PictureError, match="rank 0: it has forgotten it; ranks must run the same program"):
        found[0].rgb()
    for _ in range(3):
        sender.met()
    assert pixels(found[1]) == pixels(kept), "as long as a record is there"
    del kept
    gc.collect()
    images._decoded_images.clear()
    found[1].rgb()
    sender.met()
    gc.collect()
    images._decoded_images.clear()
    with pytest.raises(PictureError, match="it has forgotten it"):
        found[1].rgb()


def test_a_picture_that_two_ranks_had_is_got_from_the_one_that_still_has_it(posts: list[Post], elsewhere: Forget) -> None:
    first, reader, later = posts
    mine = picture(32, WIDTH, HEIGHT)
    want, names = pixels(mine), [one.dumps(mine) for one in (first, later)]
    elsewhere()
    old = reader.loads(names[0])  # such as a renderer keeps by its content
    new = reader.loads(names[1])
    assert new is old
    assert new.name[-1] == (2, 0)
    passed_on = FarPicture(reader.name_of(new), reader.pixels)
    assert not reader._lent, "who has no pixels lends none"
    first._lent.clear()
    assert pixels(passed_on) == want
    images._decoded_images.clear()
    later._lent.clear()
    first._lent[mine.key] = mine
    assert pixels(old) == want


def test_nobody_else_is_answered(posts: list[Post]) -> None:
    mine = picture(33, WIDTH, HEIGHT)
    posts[0].name_of(mine)
    with socket.create_connection(("127.0.0.1", posts[0].port), 5) as line:
        line.sendall(b"x" * 32 + bytes.fromhex(mine.key))
        said = line.makefile("rb").read()
    assert said[0] == 0
    assert said[9:] == b"this is not a rank of the run"
    fresh = Post(0, "127.0.0.1", 5.0)
    try:
        assert fresh._answer(bytes(32) + bytes.fromhex(mine.key)) == (False, said[9:]), "nor anybody before `know`"
    finally:
        fresh.close()


def test_a_rank_that_is_gone_is_named(posts: list[Post], elsewhere: Forget) -> None:
    far = FarPicture(posts[2].name_of(picture(34, WIDTH, HEIGHT)), posts[0].pixels)
    elsewhere()
    posts[2].close()
    with pytest.raises(PictureError, match=r"40 x 30 px\): rank 2 does not answer \(.*refused"):
        far.rgb()


def test_other_pixels_than_were_named_are_refused(posts: list[Post], elsewhere: Forget) -> None:
    sender, reader, _ = posts
    name = sender.name_of(picture(35, WIDTH, HEIGHT))
    elsewhere()
    wrong = picture(36, WIDTH, HEIGHT)
    sender._lent[name[0].hex()] = wrong
    with pytest.raises(PictureError, match="rank 0 gave other pixels"):
        FarPicture(name, reader.pixels).rgb()


def test_a_rank_is_found_where_others_can_reach_it() -> None:
    """The machine of rank 0 may know itself by a name that only it can use."""
    assert own_address("127.0.0.1", 29500)[1:] == ("", "127.0.0.1")
    assert own_address("localhost", 29500)[1:] == ("", "localhost")


def test_a_process_that_is_alone_gathers_the_very_same() -> None:
    mine = [picture(37, WIDTH, HEIGHT)]
    assert ALONE.gather(mine)[0] is mine
    assert ALONE.post is None


def test_a_cut_is_the_picture_of_its_pixels() -> None:
    source = picture(38, 60, 60)
    cut = Picture.cut(source, (3, 4, 33, 24), (30, 20))
    assert cut == Picture.of(source.rgb().crop((3, 4, 33, 24)))
    grown = Picture.cut(source, (3, 4, 33, 24), (60, 40))
    assert grown.size_px == (60, 40)
    assert np.abs(np.asarray(grown.rgb().resize((30, 20)), int) - np.asarray(cut.rgb(), int)).mean() < 60
