"""Files are whole or absent: on a full disk, after SIGKILL, and when they come damaged."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from promptprior import files
from promptprior.errors import ArtifactError, SpecError


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 256 KiB, where this user may mount one."""
    where = tmp_path / "tiny"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    if os.name == "nt" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root; test_a_write_that_is_cut_short covers this user")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def version_one(folder: Path) -> None:
    files.write_text(folder / "a.txt", "one")
    files.write_tensors(folder / "t.safetensors", {"x": torch.ones(3)})


def version_one_and_more(folder: Path) -> None:
    version_one(folder)
    (folder / "b").touch()


def too_big(folder: Path) -> None:
    files.write_text(folder / "a.txt", "two")
    files.write_tensors(folder / "t.safetensors", {"x": torch.zeros(200_000)})


# whole files


def test_tensors_come_back_equal_and_writable(tmp_path):
    made = {"b": torch.randn(2, 3, 4), "a": torch.arange(5), "half": torch.ones(3, dtype=torch.bfloat16)}
    files.write_tensors(tmp_path / "deep" / "t.safetensors", made)
    read = files.read_tensors(tmp_path / "deep" / "t.safetensors")
    assert list(read) == ["a", "b", "half"]
    assert all(torch.equal(read[name], made[name]) and read[name].dtype == made[name].dtype for name in made)
    read["b"].requires_grad_().sum().backward()
    read["a"] += 1
    assert torch.equal(files.read_tensors(tmp_path / "deep" / "t.safetensors")["a"], made["a"])


def test_views_and_shared_storage_are_written_as_values(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    files.write_tensors(tmp_path / "t.safetensors", {"t": base.T, "row": base[1], "same": base})
    read = files.read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(read["t"], base.T)
    assert torch.equal(read["row"], base[1])
    assert torch.equal(read["same"], base)


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path):
    x, y = torch.randn(3), torch.randn(4)
    files.write_tensors(tmp_path / "1", {"x": x, "y": y})
    files.write_tensors(tmp_path / "2", {"y": y.clone(), "x": x.clone()})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_json_keeps_order_and_refuses_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"z": 1, "a": "ä"})
    assert list(files.read_json(tmp_path / "a.json")) == ["z", "a"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert files.read_json(tmp_path / "a.json")["a"] == "ä"


# damaged files


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated_tensors_name_the_file(tmp_path, keep):
    path = tmp_path / "prior.safetensors"
    files.write_tensors(path, {"x": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"prior\.safetensors: not a whole safetensors file .*copy it again"):
        files.read_tensors(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tensors_are_named(tmp_path, bad):
    files.write_tensors(tmp_path / "t", {"fine": torch.ones(2), "mean": torch.tensor([1.0, bad, 2.0])})
    with pytest.raises(ArtifactError, match="tensor 'mean' has 1 of 3 entries that are NaN or Inf"):
        files.read_tensors(tmp_path / "t")
    assert len(files.read_tensors(tmp_path / "t", finite=False)) == 2


def test_missing_file_says_what_is_there(tmp_path):
    (tmp_path / "prior.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"x\.json: no such file \(its folder holds prior\.safetensors\)"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(ArtifactError, match="nor its folder"):
        files.read_json(tmp_path / "nowhere" / "x.json")


def test_broken_json_and_broken_utf8_name_the_line(tmp_path):
    (tmp_path / "a.json").write_text('{\n "a": 1,\n "b"')
    with pytest.raises(ArtifactError, match=r"a\.json line 3: not JSON .*column \d+"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b'{\n "a": "\xff"}')
    with pytest.raises(ArtifactError, match=r"b\.json, line 2: byte 0xff is not UTF-8"):
        files.read_json(tmp_path / "b.json")


# folders


def test_a_folder_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "deep" / "prior"
    files.replace_folder(target, version_one)
    assert (target.stat().st_mode & 0o777) == 0o777 & ~current_umask()
    files.replace_folder(target, version_one_and_more)
    assert set(contents(target)) == {"a.txt", "t.safetensors", "b"}
    assert [p.name for p in target.parent.iterdir()] == ["prior"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failing_writer_changes_nothing(tmp_path, error):
    files.replace_folder(tmp_path / "prior", version_one)
    before = contents(tmp_path)

    def fail(folder: Path) -> None:
        version_one(folder)
        raise error

    with pytest.raises(type(error)):
        files.replace_folder(tmp_path / "prior", fail)
    with pytest.raises(type(error)):
        files.replace_folder(tmp_path / "new", fail)
    assert contents(tmp_path) == before


def test_other_peoples_files_are_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(ArtifactError, match=r"1 other file\(s\) that saving would delete \(thesis\.tex\)"):
        files.replace_folder(tmp_path, version_one)
    assert contents(tmp_path) == {"thesis.tex": b"ten years"}
    files.replace_folder(tmp_path / "sub", version_one_and_more)
    with pytest.raises(ArtifactError, match=r"delete \(b\)"):
        files.replace_folder(tmp_path / "sub", version_one)
    files.replace_folder(tmp_path / "sub", version_one, may_delete=["b"])
    assert set(contents(tmp_path / "sub")) == {"a.txt", "t.safetensors"}
    with pytest.raises(ArtifactError, match="a file of this name exists"):
        files.replace_folder(tmp_path / "thesis.tex", version_one)


def test_without_an_atomic_exchange_the_folder_is_still_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "exchange_names", lambda a, b: False)
    target = tmp_path / "prior"
    files.replace_folder(target, version_one)
    files.replace_folder(target, version_one)
    assert [p.name for p in tmp_path.iterdir()] == ["prior"]
    before, rename = contents(target), os.rename

    def refuses_new(a, b):
        if ".partial-" in str(a):
            raise OSError(5, "Input/output error")
        rename(a, b)

    monkeypatch.setattr(os, "rename", refuses_new)
    with pytest.raises(ArtifactError, match="Input/output error"):
        files.replace_folder(target, version_one)
    assert contents(tmp_path) == {f"prior/{name}": data for name, data in before.items()}


def test_leftovers_of_killed_processes_go_once_they_are_old(tmp_path):
    old, young = tmp_path / ".prior.partial-1-1", tmp_path / ".prior.partial-2-2"
    for folder in (old, young):
        folder.mkdir()
        (folder / "x").touch()
    os.utime(old, (time.time() - 7200,) * 2)
    files.replace_folder(tmp_path / "prior", version_one)
    assert not old.exists()
    assert young.exists()


# a full disk


def test_a_full_disk_leaves_the_old_folder_and_says_how_much_is_missing(tiny_disk):
    target = tiny_disk / "prior"
    files.replace_folder(target, version_one)
    before = contents(tiny_disk)
    with pytest.raises(ArtifactError, match=r"No space left on device; 800,\d\d\d bytes needed, [\d,]+ bytes free"):
        files.replace_folder(target, too_big)
    assert contents(tiny_disk) == before
    with pytest.raises(ArtifactError) as caught:
        files.replace_folder(target, too_big)
    assert str(target / "t.safetensors") in str(caught.value)
    assert "partial" not in str(caught.value)


def test_a_full_disk_never_cuts_a_log(tiny_disk):
    log = tiny_disk / "results.jsonl"
    record = {"text": "x" * 9000}
    kept = 10
    for _ in range(kept):
        files.append_lines(log, [record])
    with pytest.raises(ArtifactError, match=r"300,\d+ bytes needed"):
        files.append_lines(log, [{"text": "x" * 300_000}])
    assert log.read_bytes().endswith(b"\n")
    assert files.read_lines(log) == [record] * kept


def test_a_write_that_is_cut_short_changes_nothing(tmp_path):
    """The kernel's file size limit stops a write half-way: the same refusal for users who cannot mount."""
    files.replace_folder(tmp_path / "prior", version_one)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"File too large; 800,\d\d\d bytes needed"):
            files.replace_folder(tmp_path / "prior", too_big)
        for number in range(20):
            if number * 9014 > 100_000 - 9014:
                break
            files.append_lines(tmp_path / "log", [{"x": "y" * 9000}])
        with pytest.raises(ArtifactError, match="File too large"):
            files.append_lines(tmp_path / "log", [{"x": "y" * 90000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(files.read_lines(tmp_path / "log")) == number
    assert (tmp_path / "log").read_bytes().endswith(b"\n")
    (tmp_path / "log").unlink()
    assert contents(tmp_path) == before


# SIGKILL


KEEPS_SAVING = """
import sys, torch
from pathlib import Path
from promptprior import files
target = Path(sys.argv[1])
def write(step):
    def fill(folder):
        for name in ("a", "b", "c"):
            files.write_text(folder / name, str(step) * 1000)
        files.write_tensors(folder / "t", {"x": torch.full((50_000,), float(step))})
    return fill
step = 0
while True:
    step += 1
    files.replace_folder(target, write(step))
    files.append_lines(target.parent / "log", [{"step": step, "text": "x" * 5000}])
    print(step, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the atomic exchange is a Linux call")
@pytest.mark.parametrize("wait", [0.0, 0.013, 0.031])
def test_sigkill_leaves_one_whole_folder_and_a_readable_log(tmp_path, wait):
    command = [sys.executable, "-c", textwrap.dedent(KEEPS_SAVING), str(tmp_path / "prior")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(wait)
        process.kill()
    step = int(files.read_tensors(tmp_path / "prior" / "t")["x"][0])
    assert step >= 3
    assert contents(tmp_path / "prior").keys() == {"a", "b", "c", "t"}
    assert {(tmp_path / "prior" / name).read_text() for name in "abc"} == {str(step) * 1000}
    steps = [record["step"] for record in files.read_lines(tmp_path / "log")]
    assert steps in (list(range(1, step)), list(range(1, step + 1)))


# logs


def test_a_half_written_last_line_is_left_out_and_then_cut_off(tmp_path):
    log = tmp_path / "log"
    for n in range(3):
        files.append_lines(log, [{"n": n, "text": "ü" * 3000}])
    whole = log.read_bytes()
    second_line = whole.index(b"\n") + 1
    for cut in (len(whole) - 1, len(whole) - 2, len(whole) - 5000, whole.rindex(b"\n", 0, -1) + 2):
        log.write_bytes(whole[:cut])
        kept = 3 if cut == len(whole) - 1 else 2  # only its newline is missing: the record is whole
        assert [r["n"] for r in files.read_lines(log)] == list(range(kept))
        assert log.read_bytes() == whole[:cut], "reading changed the file"
        files.append_lines(log, [{"n": "next"}])
        assert [r["n"] for r in files.read_lines(log)] == [*range(kept), "next"]
    log.write_bytes(whole[: second_line - 20])
    files.append_lines(log, [{"n": 7}])
    assert [r["n"] for r in files.read_lines(log)] == [7]


def test_a_broken_middle_line_is_an_error_with_its_number(tmp_path):
    (tmp_path / "log").write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(ArtifactError, match=r"log line 2: not JSON .*delete this line"):
        files.read_lines(tmp_path / "log")


def test_an_absent_and_an_empty_log_have_no_lines(tmp_path):
    assert files.read_lines(tmp_path / "log") == []
    (tmp_path / "log").touch()
    assert files.read_lines(tmp_path / "log") == []


def test_an_append_waits_for_the_one_before_it(tmp_path):
    log = tmp_path / "log"
    log.write_text('{"n": 1')  # another process is in the middle of this line
    with FileLock(log.with_name(f".{log.name}.lock")):
        waiting = threading.Thread(target=files.append_lines, args=(log, [{"n": 2}]))
        waiting.start()
        waiting.join(timeout=0.2)
        assert waiting.is_alive()
        with log.open("ab") as other:
            other.write(b"}\n")
    waiting.join()
    assert files.read_lines(log) == [{"n": 1}, {"n": 2}]


APPENDS = """
import sys
from pathlib import Path
from promptprior import files
for n in range(50):
    files.append_lines(Path(sys.argv[1]), [{"who": sys.argv[2], "n": n, "text": "x" * 3000}])
"""


def test_two_processes_append_without_mixing(tmp_path):
    commands = [[sys.executable, "-c", APPENDS, str(tmp_path / "log"), who] for who in "ab"]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait() == 0
    records = files.read_lines(tmp_path / "log")
    assert len(records) == 100
    for who in "ab":
        assert [r["n"] for r in records if r["who"] == who] == list(range(50))
    assert all(json.dumps(r) for r in records)


# claims


CLAIMING = """
import sys, time
from pathlib import Path
from promptprior import files
with files.claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_a_folder_that_another_process_writes_to_is_refused_until_that_process_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", CLAIMING, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "claimed\n"
        refused = pytest.raises(ArtifactError, match=r"run: another command is writing there.*--output")
        with refused, files.claimed(tmp_path / "run"):
            pass
        with files.claimed(tmp_path / "another"):
            pass
    finally:
        process.kill()
        process.wait()
    with files.claimed(tmp_path / "run"):  # a killed process leaves no claim behind
        pass
    with files.claimed(tmp_path / "run"):
        pass


def test_a_claim_leaves_nothing_and_removes_what_killed_processes_left(tmp_path):
    run = tmp_path / "runs" / "run"
    with files.claimed(run), pytest.raises(ArtifactError, match="another command"), files.claimed(run):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpecError), files.claimed(run):
        raise SpecError("refused")
    assert list(tmp_path.iterdir()) == []

    deep, output = run / "priors" / "spot" / "checkpoints", tmp_path / "runs" / "prompt"
    for path in (deep / ".source.partial-7-7", run / ".prior.partial-7-7", output.with_name(".prompt.partial-7-7")):
        path.mkdir(parents=True)
        (path / "state.json").touch()
    (run / ".report.html.partial-7-7").touch()
    (run / ".bashrc.old").touch()
    (run / ".kept.swapped-out").mkdir()
    (run / ".gone.swapped-out").mkdir()
    (run / "gone").mkdir()
    other = output.with_name(".another.partial-7-7")
    other.touch()
    with files.claimed(run, output):
        assert (run / files.CLAIM).exists()
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {
        "runs", "runs/.another.partial-7-7", "runs/run", "runs/run/.bashrc.old", "runs/run/gone", "runs/run/kept",
        "runs/run/priors", "runs/run/priors/spot", "runs/run/priors/spot/checkpoints",
    }  # fmt: skip


def test_a_claim_whose_folder_was_removed_takes_no_other_with_it(tmp_path):
    """adapt removes its folder, claim and all; whoever claims the name then must keep the claim when adapt ends."""
    first = files.claimed(tmp_path / "run")
    first.__enter__()
    shutil.rmtree(tmp_path / "run")
    with files.claimed(tmp_path / "run"):
        first.__exit__(None, None, None)
        assert (tmp_path / "run" / files.CLAIM).exists()
        with pytest.raises(ArtifactError, match="another command"), files.claimed(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()


def test_lines_of_one_call_are_written_at_once_and_the_lock_goes(tmp_path):
    files.append_lines(tmp_path / "log", [{"n": 1}, {"n": 2}])
    assert files.read_lines(tmp_path / "log") == [{"n": 1}, {"n": 2}]
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
