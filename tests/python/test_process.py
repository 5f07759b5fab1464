"""Ends, forks and signals of the process that a session is in."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy
import rfork

SERVE = """
    w = {"w": numpy.full(100_000, 7, numpy.float32)}
    session = rfork.Session(config, identity={})
    session.load(w, fallback=lambda: None)
    session.serve()
"""


def live(planner) -> int:
    return sum(seed["state"] == "live" for seed in rfork.PlannerClient(planner.url).seeds())


def test_an_open_session_is_closed_when_the_interpreter_ends(planner, python):
    process = python(SERVE + "    print('end', flush=True)\n")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "end\n", "")
    assert live(planner) == 0


def test_a_session_that_nobody_has_any_more_ends(planner, python):
    process = python(
        SERVE
        + """
    import time
    client = rfork.PlannerClient(config["rfork_scheduler_url"])
    alive = lambda: any(seed["state"] == "live" for seed in client.seeds())
    assert alive()
    del session
    while alive():
        time.sleep(0.01)
    """
    )
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")


def test_a_forked_child_leaves_its_parent_s_session_alone_and_can_have_its_own(planner, python):
    process = python(
        SERVE
        + """
    child = os.fork()
    if child == 0:
        try:
            session.close()
            session.serve()
        except rfork.SessionError as error:
            assert "belongs to process" in str(error), error
        own = {"w": numpy.zeros(100_000, numpy.float32)}
        with rfork.Session(config, identity={}) as other:
            assert other.load(own).forked
        assert (own["w"] == 7).all()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    del child
    again = {"w": numpy.zeros(100_000, numpy.float32)}
    with rfork.Session(config, identity={}) as other:
        assert other.load(again).forked, "the parent still serves"
    """
    )
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_ends_a_load_that_waits(planner, python):
    process = python(
        """
        config["rfork_seed_wait_sec"] = 300
        w = {"w": numpy.zeros(100, numpy.float32)}
        told = lambda now: now.phase == "asking" and print("asking", flush=True)
        with rfork.Session(config, identity={}) as session:
            try:
                session.load(w, progress=told)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        """
    )
    assert process.stdout.readline() == "asking\n", process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out.replace("asking\n", ""), err) == (0, "interrupted\n", "")


def test_the_command_is_in_the_package_without_a_planner(planner):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "rfork", *arguments], capture_output=True, text=True, timeout=300)

    # Each command's name begins a line of the list, indented by two; what it does is told further to the right.
    listed = re.findall(r"^  (\S+) {2,}", run("--help").stdout.partition("Commands:")[2].partition("Options:")[0], re.M)
    assert {"worker", "inspect", "explain"} <= set(listed) and not {"planner", "demo"} & set(listed), listed
    with rfork.Session(planner.config(), identity={}) as session:
        session.load({"w": numpy.zeros(9)}, fallback=lambda: None)
        serving = session.serve()
        shown = run("inspect", "planner", planner.url)
        assert (shown.returncode, shown.stderr) == (0, "") and serving.identity in shown.stdout
        key = rfork.seed_key(planner.config(), {})
        assert serving.identity in run("explain", "--planner", planner.url, "--seed-key", key).stdout
    unknown = run("worker", "--nonsense")
    assert unknown.returncode == 2 and "--nonsense" in unknown.stderr


def test_what_to_log_is_refused_by_name_when_it_is_no_filter(planner, python):
    environment = os.environ | {"RFORK_LOG": "in=fo=x"}
    out, err = python(SERVE, env=environment).communicate(timeout=300)
    assert "ConfigError: RFORK_LOG in the environment must be" in err and "'in=fo=x'" in err
    out, err = python(SERVE, env=environment | {"RFORK_LOG": ""}).communicate(timeout=300)
    assert err == ""


def test_ctrl_c_ends_the_command(planner, tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    model = tmp_path / "model.safetensors"
    model.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in planner.config().items()]
    worker = subprocess.Popen(
        [sys.executable, "-m", "rfork", "worker", "--model", str(model), *settings], stderr=subprocess.PIPE, text=True
    )
    assert any("serving" in line for line in worker.stderr)
    worker.send_signal(signal.SIGINT)
    worker.communicate(timeout=300)
    assert worker.returncode == 0
    assert live(planner) == 0
