from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hwnas.core.artifacts import (
    CHECKSUMS,
    MANIFEST,
    SCHEMA,
    Manifest,
    ManifestDraft,
    check_checksums,
    new_artifact,
    read_manifest,
    sha256_of,
    sha256_of_file,
    write_atomically,
)
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import ArtifactError, HwnasError, InputFileError

if TYPE_CHECKING:
    from collections.abc import Callable

DRAFT = ManifestDraft(
    kind="search", call="search(seed=1)", settings={"seed": 1}, inputs={"table": "ab"}
)


def make(path: Path, content: str = "weights", *, checksums: bool = False) -> Path:
    with new_artifact(path, DRAFT, checksums=checksums) as folder:
        (folder / "payload.txt").write_text(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "more.bin").write_bytes(b"\0\1")
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_says_what_it_is_and_what_it_holds(tmp_path: Path) -> None:
    manifest = read_manifest(make(tmp_path / "deep" / "out"), kind="search")
    assert manifest.kind == "search"
    assert manifest.call == DRAFT.call
    assert manifest.settings == DRAFT.settings
    assert manifest.inputs == DRAFT.inputs
    assert manifest.outputs == {
        "payload.txt": sha256_of(b"weights"),
        "sub/more.bin": sha256_of(b"\0\1"),
    }
    assert manifest.provenance.device.cores >= 1
    assert names_in(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("reason", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_stopped_midway_leaves_nothing(tmp_path: Path, reason: BaseException) -> None:
    def stopped() -> None:
        with new_artifact(tmp_path / "out", DRAFT) as folder:
            (folder / "payload.txt").write_text("half")
            raise reason

    with pytest.raises(type(reason)):
        stopped()
    assert names_in(tmp_path) == []


def test_what_is_stopped_midway_leaves_the_old_one(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")

    def stopped() -> None:
        with new_artifact(out, DRAFT) as folder:
            (folder / "payload.txt").write_text("new")
            # Until the new one is whole, readers see the old one.
            assert (out / "payload.txt").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    read_manifest(out, kind="search")
    assert (out / "payload.txt").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


def test_a_new_one_replaces_the_old_one_whole(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    (out / "stale.txt").write_text("not of the new one")
    make(out, "new")
    read_manifest(out, kind="search")
    assert names_in(out) == [MANIFEST, "payload.txt", "sub"]
    assert (out / "payload.txt").read_text() == "new"
    assert names_in(tmp_path) == ["out"]


def test_the_old_one_is_put_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make(tmp_path / "out", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(InputFileError, match="Input/output error"):
            make(out, "new")
    read_manifest(out, kind="search")
    assert (out / "payload.txt").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


def test_a_file_in_the_place_of_the_folder_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.write_text("mine")
    with pytest.raises(InputFileError, match="a file stands in the folder's place"):
        make(place)
    assert place.read_text() == "mine"
    assert names_in(tmp_path) == ["out"]


@pytest.mark.timeout(60)
def test_a_killed_process_leaves_no_artifact_and_is_not_in_the_way(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from hwnas.core.artifacts import *\n"
        "with new_artifact(pathlib.Path(sys.argv[1]), ManifestDraft(kind='search')) as folder:\n"
        "    (folder / 'payload.txt').write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not out.exists()
    with pytest.raises(ArtifactError, match="no finished hwnas artifact"):
        read_manifest(out, kind="search")
    # In a container the next run may well have the killed one's process number.
    (tmp_path / f".out.{os.getpid()}.part").mkdir()
    make(out)
    read_manifest(out, kind="search")


def change(out: Path) -> None:
    (out / "payload.txt").write_text("weightz")


def change_below(out: Path) -> None:
    (out / "sub" / "more.bin").write_bytes(b"\0\2")


def remove(out: Path) -> None:
    (out / "payload.txt").unlink()


def cut_manifest(out: Path) -> None:
    (out / MANIFEST).write_text((out / MANIFEST).read_text()[:40])


def unknown_key(out: Path) -> None:
    text = (out / MANIFEST).read_text()
    (out / MANIFEST).write_text(text.replace('"call"', '"cal"'))


def other_schema(out: Path) -> None:
    manifest = replace(read_json(out / MANIFEST, Manifest), schema=SCHEMA + 1)
    (out / MANIFEST).write_bytes(encode_json(manifest))


def no_manifest(out: Path) -> None:
    (out / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change, "payload.txt was changed after it was made"),
        (change_below, r"more\.bin was changed"),
        (remove, "payload.txt is missing"),
        (cut_manifest, "is not valid JSON"),
        (unknown_key, "unknown key `cal`"),
        (other_schema, f"has manifest schema {SCHEMA + 1}"),
        (no_manifest, f"holds no {MANIFEST}"),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_way_out(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    out = make(tmp_path / "out")
    damage(out)
    with pytest.raises(ArtifactError, match=says) as caught:
        read_manifest(out, kind="search")
    assert "again" in caught.value.hint or "make it" in caught.value.hint


def test_an_artifact_of_another_stage_is_refused(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"by `hwnas search`.* needs one of `hwnas train`"):
        read_manifest(out, kind="train")


def test_checksums_are_those_of_every_file(tmp_path: Path) -> None:
    out = make(tmp_path / "out", checksums=True)
    check_checksums(out)
    listed = [line.split("  ")[1] for line in (out / CHECKSUMS).read_text().splitlines()]
    assert listed == [MANIFEST, "payload.txt", "sub/more.bin"]
    result = subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=out, check=False)
    assert result.returncode == 0


def break_line(out: Path) -> None:
    (out / CHECKSUMS).write_text("no checksum\n")


def no_checksums(out: Path) -> None:
    (out / CHECKSUMS).unlink()


def change_manifest(out: Path) -> None:
    (out / MANIFEST).write_text((out / MANIFEST).read_text() + " ")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change, "payload.txt was changed"),
        (remove, "payload.txt is missing"),
        (change_manifest, f"{MANIFEST} was changed"),
        (break_line, rf"{CHECKSUMS}:1 is no line of a checksum list: 'no checksum'"),
        (no_checksums, f"holds no {CHECKSUMS}"),
    ],
)
def test_a_changed_bundle_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    out = make(tmp_path / "out", checksums=True)
    damage(out)
    with pytest.raises(ArtifactError, match=says):
        check_checksums(out)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "out"
    for write in (lambda: write_atomically(inside, b"x"), lambda: make(inside)):
        with pytest.raises(InputFileError, match=r"file/out cannot be written") as caught:
            write()
        assert "writable" in caught.value.hint


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_folder_that_takes_no_files_is_one_clear_error() -> None:
    with pytest.raises(InputFileError, match="/proc/out cannot be written"):
        make(Path("/proc/out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputFileError, match="Permission denied"):
        write_atomically(tmp_path / "x", b"x")


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(InputFileError, match="No space left on device"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["checkpoint"]


def test_a_full_disk_leaves_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make(tmp_path / "out", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(InputFileError, match="No space left on device"):
            make(out, "new")
    read_manifest(out, kind="search")
    assert (out / "payload.txt").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


def test_an_error_of_ours_passes_an_artifact_unchanged(tmp_path: Path) -> None:
    with (
        pytest.raises(HwnasError, match=r"^about something else$"),
        new_artifact(tmp_path / "out", DRAFT),
    ):
        raise InputFileError("about something else")


def test_a_file_that_cannot_be_hashed_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be read: No such file"):
        sha256_of_file(tmp_path / "nothing")
    with pytest.raises(InputFileError, match="cannot be read: Is a directory"):
        sha256_of_file(tmp_path)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"a" * 10_000)
    code = (
        "import sys, pathlib\n"
        "from hwnas.core.artifacts import write_atomically\n"
        "for letter in (b'b', b'a') * 100:\n"
        "    write_atomically(pathlib.Path(sys.argv[1]), letter * 10_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        seen = 0
        while process.poll() is None:
            content = path.read_bytes()
            assert content in (b"a" * 10_000, b"b" * 10_000)
            seen += 1
            time.sleep(0.001)
    assert process.returncode == 0
    assert seen > 10
