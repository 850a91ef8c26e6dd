"""`tinyimnet logs`: the log lines of all processes of a run, each prefixed with its rank."""

from helpers.run_folders import sent
from tinyimnet import cli
from tinyimnet.launch import logs


def test_logs_are_the_last_lines_of_each_process_and_of_slurm(make_run, tmp_path, capsys) -> None:
    output = tmp_path / "slurm.out"
    output.write_text("started\nended\n")
    run = make_run("a", job__json=sent("1", output=str(output)))
    for rank in (0, 2, 10):
        (run / "logs" / f"rank_{rank}.log").write_text(f"{rank} one\n{rank} two\n{rank} three")
    assert cli.main(["logs", str(run), "--lines", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "[0] 0 two", "[0] 0 three", "[2] 2 two", "[2] 2 three", "[10] 10 two", "[10] 10 three",
        "[slurm] started", "[slurm] ended",
    ]  # fmt: skip


def test_follow_prints_lines_written_right_after_done(make_run, monkeypatch, capsys) -> None:
    run = make_run("a", DONE={})
    log = run / "logs" / "rank_0.log"
    log.write_text("one\n")
    (run / "logs" / "rank_1.log").write_text("")
    late = iter(["two\n", "three\n", ""])

    def sleep(_seconds: float) -> None:
        with log.open("a") as file:
            file.write(next(late))

    monkeypatch.setattr(logs.time, "sleep", sleep)
    logs.follow(run, {log: logs.Tail(log, "[0] ")})
    assert capsys.readouterr().out == "[0] one\n[0] two\n[0] three\n"


def test_logs_pass_on_bytes_that_are_not_text(make_run, capfdbinary) -> None:
    run = make_run("a")
    (run / "logs" / "rank_0.log").write_bytes(b"\xff\xfe\n")
    assert cli.main(["logs", str(run)]) == 0
    assert capfdbinary.readouterr().out == b"[0] \xff\xfe\n"
