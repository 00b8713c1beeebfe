"""The time left and what is shown."""

from dassl_prompts.run.plan import Node
from dassl_prompts.run.progress import last_line, running_state, time_left
from dassl_prompts.run.steps import Step


def node(tmp_path, name, trainer, state, seconds=0.0, training=True):
    args = ("--trainer", trainer, *(() if training else ("--eval-only",)))
    return Node(Step(name, tmp_path / name, args), state=state, seconds=seconds)


def test_the_state_of_a_running_step_is_its_last_progress_line(tmp_path):
    one = node(tmp_path, "one", "CoOp", "running")
    assert running_state(one) == ("", None)
    one.step.output.mkdir()
    (one.step.output / "console.txt").write_text(
        "epoch [1/10] batch [20/72] time 0.111 (0.144) loss 2.5 (2.7) lr 1.0e-05 eta 0:01:40\n"
        "epoch [3/10] batch [20/72] time 0.111 (0.144) loss 2.5 (2.7) lr 1.0e-05 eta 1 day, 2:00:05\nnoise\r 10%|"
    )
    assert running_state(one) == ("epoch 3/10", 26 * 3600 + 5.0)
    assert last_line(one.step.output / "console.txt") == "10%|"


def test_time_left_goes_by_steps_of_the_same_kind(tmp_path):
    done = node(tmp_path, "a", "CoOp", "finished", 100.0)
    done_eval = node(tmp_path, "b", "CoOp", "finished", 10.0, training=False)
    running = node(tmp_path, "c", "CoOp", "running")
    waiting = [node(tmp_path, "d", "CoOp", "waiting"), node(tmp_path, "e", "CoOp", "waiting", training=False)]
    nodes = [done, done_eval, running, *waiting]
    # a running step counts by the mean of its kind until it says more; waiting ones by their kinds: 100 + 10
    assert time_left(nodes, 1, {id(running): None}, {id(running): 30.0}) == 70 + 110
    # told 50 s are left after 30 s: such steps take (100 + 80) / 2 on average
    assert time_left(nodes, 2, {id(running): 50.0}, {id(running): 30.0}) == (50 + 90 + 10) / 2
    # a method that never ran: the mean over kinds
    other = node(tmp_path, "f", "MaPLe", "waiting")
    assert time_left([done, done_eval, other], 1, {}, {}) == 55
    assert time_left([other], 1, {}, {}) is None
    # the plan's estimates: before anything has run, and of methods that never ran
    assert time_left([other], 1, {}, {}, {id(other): 20.0}) == 20
    assert time_left([done, done_eval, other], 1, {}, {}, {id(other): 20.0}) == 20
    last = node(tmp_path, "g", "CoOp", "waiting")
    assert time_left([done, last], 1, {}, {}, {id(last): 20.0}) == 100
