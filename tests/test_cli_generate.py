"""`interp generate`: what it prints, what it keeps, what it refuses."""

import json

import pytest


def run(capsys, *argv):
    from interp.cli import main

    code = main(["generate", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_an_edited_continuation_stands_beside_its_baseline(capsys, tiny_dir, tmp_path):
    from interp.decoder.continuations import Generation

    ask = ["When Mary", "<b>The keys", "--model", tiny_dir, "--edit", "L0H1=0, L1.mlp*0.5", "--max-new-tokens", 5,
           "--workspace", tmp_path, "--out", "g"]  # fmt: skip
    code, out, _ = run(capsys, *ask)
    assert code == 0 and out.count("  edited  '") == 2 and out.count("baseline  '") == 2
    folder = tmp_path / "runs" / "g"
    said = json.loads((folder / "run.json").read_text())
    assert (said["kind"], said["status"], said["config"]["edit"]) == ("generate", "done", ["L0H1=0, L1.mlp*0.5"])
    assert len(Generation.load(folder).table()) == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;The keys" in page and "<b>The keys" not in page
    assert run(capsys, *ask)[0] == 2  # finished: not overwritten
    first = (folder / "tokens.parquet").read_bytes()
    assert run(capsys, *ask, "--overwrite")[0] == 0 and (folder / "tokens.parquet").read_bytes() == first


def test_the_interval_is_over_prompts_where_there_are_several(capsys, tiny_dir, tmp_path):
    ask = ["--model", tiny_dir, "--edit", "L0H1=0", "--max-new-tokens", 3, "--n", 4, "--workspace", tmp_path]
    _, out, _ = run(capsys, "When Mary", "The keys", *ask)
    assert out.rstrip().endswith("], 2 prompts")
    _, out, _ = run(capsys, "When Mary", *ask)
    assert out.rstrip().endswith("], 4 continuations")


def test_prompts_come_from_a_file_and_nothing_is_written_without_out(capsys, tiny_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("When Mary\n\nThe keys\n")
    ask = ["--prompts", tmp_path / "prompts.txt", "--model", tiny_dir, "--max-new-tokens", 3, "--workspace", tmp_path]
    code, out, _ = run(capsys, *ask)
    assert code == 0 and "'When Mary'" in out and "'The keys'" in out and "edited" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give prompts as texts"),
        (["hi", "--prompts", "there.txt"], "give prompts as texts"),
        (["--prompts", "there.txt"], 'no file "there.txt"'),
        (["hi", "--edit", "L7H0=0"], 'no component "L7H0"'),
        (["hi", "--edit", "L0H0"], '"L0H0" is no edit'),
        (["hi", "--where", "later"], 'where "later" given'),
        (["hi", "--max-new-tokens", "100"], "new ones fit"),
        (["hi", "--edit", "joy@1.resid_pre+4"], 'no direction "joy"'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tiny_dir, tmp_path, flags, message):
    code, _, err = run(capsys, *flags, "--model", tiny_dir, "--workspace", tmp_path / "w", "--out", "g")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()
