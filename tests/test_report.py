import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registries import UserError
from report import report
from tests.studies.report.made_runs import TYPED, made_sweep

ROOT = Path(__file__).parents[1]


def command(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "report.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_says_what_was_run(tmp_path):
    made_sweep(tmp_path)
    file = report(f"output_dir={tmp_path}")
    text = file.read_text()
    assert file == tmp_path / "reports" / "2026-01-02_03-04-05_sweep.md"
    assert "Nothing strange" in text and "Runs that finished: 6 of 6; settings: 2; warnings: 0." in text
    assert f"python train.py -m {TYPED[0]} '{TYPED[1]}' replacement.depth=2,4 seed=0,1,2" in text
    assert f"`python train.py -m {TYPED[0]} '{TYPED[1]}' replacement.depth=4 seed=0,1,2`" in text
    assert "| **2** | **3** | **3.0100 +- 0.025** |" in text  # told apart from the next
    assert "| untouched tiny_phi on pydoc |  | 2.9000 |" in text and "| control original |  | 2.8000 |" in text
    assert "| replacement.depth | 4 | 3.3100 | +0.3000 +- 0.023 from 2, told apart | 3 |" in text
    assert "processor a processor, cores 2" in text and "graftlab abc, torch 2.13.0" in text
    assert r"a \<night>\\nof 3.00" in text  # a sample is no Markdown
    assert text.count("| untouched | before |  a time |".replace("  ", " ")) == 1


def test_the_html_needs_no_other_file(tmp_path):
    made_sweep(tmp_path)
    page = report(f"output_dir={tmp_path}").with_suffix(".html").read_text()
    assert 'src="data:image/png;base64,' in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<img") == page.count('src="data:') == 3
    index = (tmp_path / "reports" / "index.html").read_text()
    assert 'href="2026-01-02_03-04-05_sweep.html"' in index and "warnings: 0" in index


def test_the_same_runs_give_the_same_bytes(tmp_path):
    made_sweep(tmp_path)
    report(f"output_dir={tmp_path}")
    before = files(tmp_path / "reports")
    report(f"output_dir={tmp_path}")
    assert files(tmp_path / "reports") == before and any(name.suffix == ".png" for name in before)


def test_what_failed_is_told_with_its_cause(tmp_path):
    def fail(results):
        results[2, 1] |= {"status": "oom", "error": "OutOfMemoryError: 9 GB"}

    sweep = made_sweep(tmp_path, fail)
    (sweep / "failures").mkdir()
    (sweep / "failures" / "00006.txt").write_text("ValueError: broken\nreplacement.depth=8\ntraceback")
    shutil.rmtree(next((tmp_path / "runs").glob("*depth_4_2")))
    text = report(f"output_dir={tmp_path}").read_text()
    assert "job 6 (replacement.depth=8): ValueError: broken" in text and "oom, OutOfMemoryError: 9 GB" in text
    assert "1 jobs of the sweep failed" in text and "its folder is gone" in text


def test_texts_are_compared_apart(tmp_path):
    def other_text(results):
        for seed in range(3):
            results[4, seed]["config"]["dataset"]["name"] = "pycode"

    made_sweep(tmp_path, other_text)
    text = report(f"output_dir={tmp_path}").read_text()
    assert "### On pycode, best first" in text and "### On pydoc, best first" in text


def test_an_experiment_is_its_newest_runs(tmp_path):
    def name(results):
        for key, result in results.items():
            result["config"]["experiment"]["name"] = "none" if key == "control" else "depth"

    made_sweep(tmp_path, name)
    file = report(f"output_dir={tmp_path}", "experiment=depth")
    assert file.stem == "2026-01-02_03-04-05_depth" and "6 of 6" in file.read_text()
    with pytest.raises(UserError, match="no finished run of it. There are runs of: depth"):
        report(f"output_dir={tmp_path}", "experiment=dept")


def test_runs_are_named_by_their_folder(tmp_path):
    made_sweep(tmp_path)
    names = [path.name for path in sorted((tmp_path / "runs").glob("2026*"))][:2]
    file = report(f"output_dir={tmp_path}", f"runs=[{names[0]},{tmp_path}/runs/{names[1]}]")
    assert file.stem == "2026-01-02_03-04-01_2_runs" and "2 of 2" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swep=a"], "did you mean 'sweep'"),
        (["newest"], "write key=value"),
        (["runs=a"], "valid list"),
        (["runs=[a"], "cannot be read"),
        (["sweep=a", "experiment=b"], "sweep and experiment each say"),
        (["sweep=a"], "sweep=a is no folder of a sweep"),
        (["runs=[a,b]"], "a is no folder of a run"),
        (["output_dir=nowhere"], "output_dir=nowhere is no folder"),
        ([], "there is no sweep in"),
    ],
)
def test_what_is_wrong_is_told(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match=message):
        report(*arguments)


def test_a_sweep_whose_runs_are_gone_is_told(tmp_path):
    sweep = made_sweep(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(UserError, match="are gone"):
        report(f"output_dir={tmp_path}", f"sweep={sweep}")


def test_the_command_imports_no_torch(tmp_path):
    made_sweep(tmp_path)
    code = "import sys, report; report.report(sys.argv[1]); print(*{'torch', 'mlflow'} & {*sys.modules})"
    line = [sys.executable, "-c", code, f"output_dir={tmp_path}"]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0 and ended.stdout.strip() == "", ended.stderr


def test_the_command_ends_with_the_files(tmp_path):
    made_sweep(tmp_path)
    ended = command(f"output_dir={tmp_path}")
    assert ended.returncode == 0 and ended.stdout.split() == [
        str(tmp_path / "reports" / f"2026-01-02_03-04-05_sweep.{kind}") for kind in ("html", "md")
    ]
    wrong = command("swep=a")
    assert wrong.returncode == 2 and "did you mean" in wrong.stderr and not wrong.stdout


def test_help_is_quick():
    start = time.monotonic()
    assert "experiment=<name>" in command("--help").stdout
    assert time.monotonic() - start < 3
