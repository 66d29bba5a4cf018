import errno
import logging
import multiprocessing
import os
import re
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import GIGABYTE, ActivationCache, state_key
from registries import UserError
from registries.partial_files import machine

Usage = namedtuple("Usage", "total used free")
WIDTH, LENGTH = 64, 5
ENTRY_BYTES = LENGTH * WIDTH * 4
BLOCKS = ModelInput(torch.arange(4 * LENGTH).view(4, LENGTH))
OTHER_BLOCKS = ModelInput(BLOCKS.tokens + 100)


class Counting:
    """States that depend on the place and the tokens, and a record of the blocks that they were asked for."""

    def __init__(self, keys, dtype=torch.float32):
        self.keys, self.dtype, self.seen = keys, dtype, []

    def __call__(self, block):
        self.seen.append(ModelInput(block.tokens.clone()))
        states = block.tokens[..., None].float() + torch.arange(WIDTH) / 7
        return {name: (states * (index + 1)).to(self.dtype) for index, name in enumerate(self.keys)}


@pytest.fixture
def cache(tmp_path):
    """The cache of a run that starts anew each time it is called."""
    return lambda max_gb=1.0, enabled=True: ActivationCache(tmp_path, max_gb, enabled)


def files(tmp_path):
    return sorted(path for path in tmp_path.rglob("*") if path.is_file())


def small_limit(entries):
    """As max_gb: room for so many entries, their headers included."""
    return entries * (ENTRY_BYTES + 150) / GIGABYTE


def age(cache, where, seconds):
    """Make a place seem unused for a while."""
    folder = cache.folder / where
    time = folder.stat().st_mtime - seconds
    os.utime(folder, (time, time))


# Entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_entry_is_computed_once_and_read_back_equal(dtype, cache):
    compute = Counting(["a", "b"], dtype)
    first = cache().fetch(["a", "b"], BLOCKS, compute)
    assert len(compute.seen) == len(BLOCKS)
    again = cache().fetch(["a", "b"], BLOCKS, compute)
    assert len(compute.seen) == len(BLOCKS)
    for where in ("a", "b"):
        assert first[where].dtype == again[where].dtype == dtype
        assert first[where].shape == (4, LENGTH, WIDTH)
        assert again[where].equal(first[where])
        assert again[where].equal(Counting(["a", "b"], dtype)(BLOCKS)[where])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=5), enabled=st.booleans()
)
def test_any_batches_give_what_is_computed_row_by_row(rows, enabled, cache):
    """Rows that repeat within a batch or between batches included, with the cache and without it."""
    batch, compute = ModelInput(torch.tensor(rows)), Counting(["a"])
    got = cache(enabled=enabled).fetch(["a"], batch, compute)["a"]
    assert got.equal(torch.cat([Counting(["a"])(row)["a"] for row in batch.rows()]))


@pytest.mark.parametrize("enabled", [True, False])
def test_compute_is_always_called_with_one_block(enabled, cache):
    compute = Counting(["a"])
    cache(enabled=enabled).fetch(["a"], BLOCKS, compute)
    seen = [block.tokens for block in compute.seen]
    assert [tokens.shape for tokens in seen] == [(1, LENGTH)] * 4
    assert torch.cat(seen).equal(BLOCKS.tokens)


def test_without_the_cache_the_result_is_the_same_and_nothing_is_written(cache, tmp_path):
    compute = Counting(["a", "b"], torch.bfloat16)
    kept = cache().fetch(["a", "b"], BLOCKS, compute)
    shutil.rmtree(tmp_path / "activations")
    off = cache(enabled=False)
    assert not off.reserve(["a", "b"], BLOCKS.rows(), 4, ENTRY_BYTES)
    for _ in range(2):
        computed = off.fetch(["a", "b"], BLOCKS, compute)
        assert all(computed[where].equal(kept[where]) for where in kept)
    assert len(compute.seen) == 12
    assert files(tmp_path) == []


def test_another_place_is_another_entry(cache):
    compute = Counting(["a", "b"])
    cache().fetch(["a"], BLOCKS, compute)
    both = cache().fetch(["b"], BLOCKS, compute)
    assert len(compute.seen) == 8
    assert both["b"].equal(Counting(["a", "b"])(BLOCKS)["b"])


@pytest.mark.parametrize("other", [BLOCKS.tokens + 1, BLOCKS.tokens[:, :-1], BLOCKS.tokens.flip(1)])
def test_other_tokens_are_other_entries(other, cache):
    compute = Counting(["a"])
    cache().fetch(["a"], BLOCKS, compute)
    got = cache().fetch(["a"], ModelInput(other), compute)["a"]
    assert len(compute.seen) == 8
    assert got.equal(Counting(["a"])(ModelInput(other))["a"])


def test_only_what_is_missing_is_written(cache, tmp_path):
    compute = Counting(["a", "b"])
    cache().fetch(["a"], BLOCKS[:2], compute)
    before = {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    cache().fetch(["a", "b"], BLOCKS[1:3], compute)
    assert len(compute.seen) == 4
    assert len(files(tmp_path)) == 2 + 3
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_an_entry_can_be_changed_by_who_asked_for_it(cache):
    """A batch is the caller's own, however it came to be."""
    compute = Counting(["a"])
    expected = cache().fetch(["a"], BLOCKS, compute)["a"].clone()
    for rows in (BLOCKS, BLOCKS[:1]):
        cache().fetch(["a"], rows, compute)["a"].add_(1)
    assert cache().fetch(["a"], BLOCKS, compute)["a"].equal(expected)
    assert len(compute.seen) == 4


def test_a_part_of_a_larger_tensor_is_written_alone(cache, tmp_path):
    """A view that is not contiguous, with a gradient: what is kept is its content."""
    whole = torch.randn(1, WIDTH, LENGTH, 50, requires_grad=True)
    compute = lambda block: {"a": whole[..., 3].transpose(1, 2)}  # noqa: E731
    cache().fetch(["a"], BLOCKS[:1], compute)
    assert cache().fetch(["a"], BLOCKS[:1], Counting([]))["a"].equal(whole[..., 3].transpose(1, 2))
    assert files(tmp_path)[0].stat().st_size < ENTRY_BYTES + 200


# Names of places

IDENTITY = {"weights": "0" * 64, "precision": "32-true", "module": "model.layers.1", "side": "input"}


@pytest.mark.parametrize("key", IDENTITY)
def test_the_name_of_a_place_depends_on_everything(key):
    assert state_key(**IDENTITY) != state_key(**{**IDENTITY, key: IDENTITY[key] + "1"})
    assert state_key(**IDENTITY) != state_key(**{name: value for name, value in IDENTITY.items() if name != key})


def test_the_name_of_a_place_does_not_depend_on_the_order():
    assert state_key(**IDENTITY) == state_key(**dict(reversed(IDENTITY.items())))


# Damage


def damages(content):
    yield "empty", b""
    for size in (1, 8, len(content) // 2, len(content) - 1):
        yield f"truncated to {size}", content[:size]
    for index in (0, 7, 9, len(content) - ENTRY_BYTES, len(content) - 1):
        yield f"byte {index} flipped", content[:index] + bytes([content[index] ^ 0x55]) + content[index + 1 :]
    yield "zeros", bytes(len(content))


@pytest.mark.parametrize("number", range(11))
def test_a_damaged_entry_is_computed_anew_with_a_warning(number, cache, tmp_path, caplog):
    compute = Counting(["a"])
    cache().fetch(["a"], BLOCKS[:1], compute)
    (file,) = files(tmp_path)
    sound = file.read_bytes()
    _, content = list(damages(sound))[number]
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        got = cache().fetch(["a"], BLOCKS[:1], compute)["a"]
    assert got.equal(Counting(["a"])(BLOCKS[:1])["a"])
    assert len(compute.seen) == 2
    assert f"computing the damaged activations {file} anew" in caplog.text
    assert file.read_bytes() == sound
    caplog.clear()
    cache().fetch(["a"], BLOCKS[:1], compute)
    assert len(compute.seen) == 2
    assert not caplog.records


def test_no_flipped_bit_is_believed(cache, tmp_path):
    compute = Counting(["a"])
    expected = cache().fetch(["a"], BLOCKS[:1], compute)["a"]
    (file,) = files(tmp_path)
    sound = file.read_bytes()
    logging.disable(logging.WARNING)
    try:
        for index in (*range(len(sound) - ENTRY_BYTES), *range(len(sound) - ENTRY_BYTES, len(sound), 29)):
            content = bytearray(sound)
            content[index] ^= 1 << (index % 8)
            file.write_bytes(content)
            got = cache().fetch(["a"], BLOCKS[:1], compute)["a"]
            assert got.dtype == expected.dtype and got.equal(expected), f"bit of byte {index}"
    finally:
        logging.disable(logging.NOTSET)


# Room


def test_what_does_not_fit_is_not_kept_and_nothing_breaks(cache, tmp_path):
    small, compute = cache(small_limit(2)), Counting(["a", "b"])
    assert not small.reserve(["a", "b"], BLOCKS.rows(), 4, ENTRY_BYTES)
    for _ in range(2):
        got = small.fetch(["a", "b"], BLOCKS, compute)
        assert got["b"].equal(Counting(["a", "b"])(BLOCKS)["b"])
    assert len(compute.seen) == 8
    assert files(tmp_path) == []


def test_what_does_not_fit_removes_nothing(cache, tmp_path):
    cache().fetch(["a"], BLOCKS, Counting(["a"]))
    assert not cache(small_limit(4)).reserve(["b"], BLOCKS.rows(), 100, ENTRY_BYTES)
    assert len(files(tmp_path)) == 4


def test_what_fits_is_kept(cache, tmp_path):
    enough, compute = cache(small_limit(4)), Counting(["a"])
    assert enough.reserve(["a"], BLOCKS.rows(), 4, ENTRY_BYTES)
    enough.fetch(["a"], BLOCKS, compute)
    assert len(files(tmp_path)) == 4


def test_a_later_stage_that_fits_is_kept_as_reserve_says(cache, tmp_path):
    """Two stages of a run share a place; the first sees more blocks than there is room for, the second does not."""
    shared, compute = cache(small_limit(2)), Counting(["a"])
    assert not shared.reserve(["a"], BLOCKS.rows(), 4, ENTRY_BYTES)
    assert shared.reserve(["a"], BLOCKS.rows(), 2, ENTRY_BYTES)
    shared.fetch(["a"], BLOCKS[:2], compute)
    assert len(files(tmp_path)) == 2


def test_a_disk_without_room_is_an_error_that_names_sizes_and_remedies(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, int(0.5 * GIGABYTE)))
    with pytest.raises(UserError) as error:
        cache(10).reserve(["a", "b"], BLOCKS.rows(), 1000, GIGABYTE // 1000)
    message = str(error.value)
    assert re.search(r"1000 blocks at 2 places take 2.0 GB", message)
    assert "has 0.5 GB left" in message
    for remedy in ("cache_dir", "dataset.train_size", "activations.cache=false"):
        assert remedy in message
    assert str(cache().folder) in message


def test_large_sizes_are_plain_numbers(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 120 * GIGABYTE))
    with pytest.raises(UserError, match=r"take 150.0 GB, and .* has 120.0 GB left"):
        cache(1000).reserve(["a"], BLOCKS.rows(), 150, GIGABYTE)


def test_what_is_there_already_needs_no_room(cache, monkeypatch):
    cache().fetch(["a"], BLOCKS, Counting(["a"]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, ENTRY_BYTES))
    assert cache().reserve(["a"], BLOCKS.rows(), 5, ENTRY_BYTES)
    with pytest.raises(UserError):
        cache().reserve(["a"], BLOCKS.rows(), 6, ENTRY_BYTES)


def test_the_places_used_least_recently_are_evicted_first(cache, tmp_path):
    full = cache(small_limit(12))
    for where in ("newest", "oldest", "middle"):
        full.fetch([where], BLOCKS, Counting([where]))
    for seconds, where in enumerate(["newest", "middle", "oldest"]):
        age(full, where, 100 * seconds)
    assert full.reserve(["new"], BLOCKS.rows(), 4, ENTRY_BYTES)
    assert {folder.name for folder in full.folder.iterdir()} == {"newest", "middle", "new"}


def test_asking_for_a_place_is_using_it(cache):
    full = cache(small_limit(8))
    for seconds, where in ((200, "a"), (100, "b")):
        full.fetch([where], BLOCKS, Counting([where]))
        age(full, where, seconds)
    assert full.reserve(["a"], BLOCKS.rows(), 4, ENTRY_BYTES)
    assert full.reserve(["new"], BLOCKS.rows(), 4, ENTRY_BYTES)
    assert {folder.name for folder in full.folder.iterdir()} == {"a", "new"}


def test_no_more_is_evicted_than_is_needed(cache):
    full = cache(small_limit(12))
    for seconds, where in ((300, "a"), (200, "b")):
        full.fetch([where], BLOCKS, Counting([where]))
        age(full, where, seconds)
    assert full.reserve(["new"], BLOCKS.rows(), 4, ENTRY_BYTES)
    assert {folder.name for folder in full.folder.iterdir()} == {"a", "b", "new"}


def test_what_is_asked_for_is_never_evicted(cache, tmp_path):
    full = cache(small_limit(8))
    for seconds, where in ((300, "a"), (100, "b")):
        full.fetch([where], BLOCKS, Counting([where]))
        age(full, where, seconds)
    assert full.reserve(["a", "c"], BLOCKS.rows(), 4, ENTRY_BYTES)  # "a" is the oldest
    compute = Counting(["a"])
    full.fetch(["a"], BLOCKS, compute)
    assert compute.seen == []
    assert not (full.folder / "b").exists()


def test_the_limit_holds_when_a_place_has_entries_of_other_blocks(cache, tmp_path):
    """Two texts, one model: the blocks of the first are no use for the second, and count."""
    limit = small_limit(6)
    first = cache(limit)
    assert first.reserve(["a"], BLOCKS.rows(), 4, ENTRY_BYTES)
    first.fetch(["a"], BLOCKS, Counting(["a"]))
    second = cache(limit)
    second.reserve(["a"], OTHER_BLOCKS.rows(), 4, ENTRY_BYTES)
    second.fetch(["a"], OTHER_BLOCKS, Counting(["a"]))
    assert sum(file.stat().st_size for file in files(tmp_path)) <= limit * GIGABYTE


def test_the_disk_must_have_room_for_other_blocks_of_a_place(cache, monkeypatch):
    cache().fetch(["a"], BLOCKS, Counting(["a"]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    fresh = cache()
    with pytest.raises(UserError, match="GB left"):
        fresh.reserve(["a"], OTHER_BLOCKS.rows(), 4, ENTRY_BYTES)
        fresh.fetch(["a"], OTHER_BLOCKS, Counting(["a"]))


def test_a_place_that_another_run_evicts_is_computed_anew(cache, tmp_path):
    mine, compute = cache(), Counting(["a"])
    mine.fetch(["a"], BLOCKS, compute)
    shutil.rmtree(tmp_path / "activations")
    mine.fetch(["a"], BLOCKS, compute)
    assert len(compute.seen) == 8
    assert len(files(tmp_path)) == 4


# Errors and company


@pytest.mark.parametrize("step", ["write_bytes", "replace", "mkdir"])
def test_a_write_error_is_a_user_error_and_leaves_no_partial_file(step, cache, tmp_path, monkeypatch):
    write = Path.write_bytes

    def half(file, content):
        write(file, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        if step == "write_bytes":
            patch.setattr(Path, "write_bytes", half)
        else:
            patch.setattr(*((os, "replace") if step == "replace" else (Path, "mkdir")), refuse)
        with pytest.raises(UserError) as error:
            cache().fetch(["a"], BLOCKS, Counting(["a"]))
    assert ("No space left on device" if step == "write_bytes" else "Permission denied") in str(error.value)
    assert str(cache().folder / "a") in str(error.value)
    assert "cache_dir" in str(error.value) and "activations.cache=false" in str(error.value)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    """When room is reserved, too: `cache_dir` may lie below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache_dir"):
        ActivationCache(tmp_path / "file" / "cache", 1.0).reserve(["a"], BLOCKS.rows(), 4, ENTRY_BYTES)


def test_an_error_in_compute_leaves_nothing(cache, tmp_path):
    def fail(block):
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cache().fetch(["a"], BLOCKS, fail)
    assert files(tmp_path) == []


def _fetch_often(folder):
    for _ in range(20):
        got = ActivationCache(folder, 1.0).fetch(["a"], BLOCKS, Counting(["a"]))["a"]
        assert got.equal(Counting(["a"])(BLOCKS)["a"])
        for file in (Path(folder) / "activations" / "a").glob("*.safetensors"):
            file.unlink(missing_ok=True)  # so that both write all the time


def test_two_processes_that_write_the_same_entries_do_no_harm(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=_fetch_often, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_place_that_another_run_evicts_during_a_write_does_no_harm(cache, monkeypatch):
    replace = os.replace

    def evicted(aside, file):
        monkeypatch.setattr(os, "replace", replace)
        shutil.rmtree(file.parent)
        replace(aside, file)

    monkeypatch.setattr(os, "replace", evicted)
    assert cache().fetch(["a"], BLOCKS, Counting(["a"]))["a"].equal(Counting(["a"])(BLOCKS)["a"])


def test_an_entry_that_another_run_evicts_at_the_same_time_does_no_harm(cache, monkeypatch):
    limited = cache(small_limit(4))
    limited.fetch(["a"], BLOCKS, Counting(["a"]))
    unlink = Path.unlink

    def evicted(file, *arguments, **options):
        unlink(file)
        unlink(file, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", evicted)
    assert limited.reserve(["a"], OTHER_BLOCKS.rows(), 4, ENTRY_BYTES)
    assert not list((limited.folder / "a").glob("*.safetensors"))


def test_two_threads_that_write_the_same_entry_do_no_harm(cache, tmp_path, monkeypatch):
    """Both have written aside before either puts its file in place."""
    replace, both_written, errors = os.replace, threading.Barrier(2, timeout=10), []

    def wait(*arguments):
        both_written.wait()
        replace(*arguments)

    def fetch():
        try:
            cache().fetch(["a"], BLOCKS[:1], Counting(["a"]))
        except BaseException as error:
            errors.append(error)

    monkeypatch.setattr(os, "replace", wait)
    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(files(tmp_path)) == 1


def test_a_complete_cache_needs_nothing_to_be_written(cache, monkeypatch):
    compute = Counting(["a"])
    cache().reserve(["a"], BLOCKS.rows(), len(BLOCKS), ENTRY_BYTES)
    states = cache().fetch(["a"], BLOCKS, compute)

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "access", lambda *arguments: False)
    for owner, name in ((os, "utime"), (Path, "mkdir"), (Path, "write_bytes"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, read_only)
    assert cache().reserve(["a"], BLOCKS.rows(), len(BLOCKS), ENTRY_BYTES)
    assert cache().fetch(["a"], BLOCKS, compute)["a"].equal(states["a"])
    assert len(compute.seen) == len(BLOCKS)


def test_partial_files_of_killed_processes_are_removed(cache):
    folder = cache().folder / "another place"
    folder.mkdir(parents=True)
    left = folder / f".x.safetensors.999999999-1-{machine()}.partial"
    left.write_bytes(b"half")
    cache().reserve(["a"], BLOCKS.rows(), len(BLOCKS), ENTRY_BYTES)
    assert not left.exists()
