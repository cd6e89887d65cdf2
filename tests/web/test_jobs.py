"""The queue: whose turn it is, stopping, errors as sentences, and bounds."""

import threading

import pytest

from lmconv.web.jobs import Busy, Job, Worker
from utils import UserError

SECONDS = 20
LONG = 10**6


class Log:
    """Jobs of a worker, and what became of them."""

    def __init__(self, **bounds):
        self.worker = Worker(1, **bounds)
        self.events = {}

    def submit(self, name, work, cost=0, client="page"):
        events, ended = [], threading.Event()

        def on_event(event):
            events.append(event)
            if "result" in event or "error" in event:
                ended.set()

        self.events[name] = events, ended
        job = Job(work, cost, client, on_event)
        self.worker.submit(job)
        return job

    def begin(self, name, released):
        """A long job that is running and goes on in steps until it is released."""
        running = threading.Event()

        def work(job):
            running.set()
            while not released.wait(0.001):
                job.advance(1, 100)
            return "done"

        job = self.submit(name, work, LONG)
        assert running.wait(SECONDS)
        return job

    def last(self, name):
        events, ended = self.events[name]
        assert ended.wait(SECONDS)
        return events[-1]


@pytest.fixture
def log():
    return Log()


def test_a_result_and_its_parts_are_sent(log):
    def work(job):
        job.show("part")
        return 3

    log.submit("job", work)
    assert log.last("job") == {"result": 3}
    assert {"part": "part"} in log.events["job"][0]


def test_a_short_job_is_done_inside_a_long_one(log):
    released = threading.Event()
    log.begin("long", released)
    log.submit("short", lambda job: job.is_nested)
    assert log.last("short") == {"result": True}
    assert not log.events["long"][1].is_set()
    released.set()
    assert log.last("long") == {"result": "done"}


def test_a_long_job_waits_for_another(log):
    released = threading.Event()
    log.begin("first", released)
    second = log.submit("second", lambda job: job.is_nested, LONG)
    log.submit("short", lambda job: None)
    log.last("short")
    assert log.worker.number_before(second) == 1
    released.set()
    assert log.last("second") == {"result": False}
    assert log.worker.number_before(second) is None


def test_clients_take_turns(log):
    released, done = threading.Event(), []
    log.begin("running", released)
    for client, number in (("a", 3), ("b", 1)):
        for place in range(number):
            name = f"{client}{place}"
            log.submit(name, lambda job, name=name: done.append(name), LONG, client)
    released.set()
    log.last("a2")
    assert done == ["a0", "b0", "a1", "a2"]


def test_a_stopped_job_ends_at_its_next_step_and_says_nothing_more(log):
    never = threading.Event()
    job = log.begin("endless", never)
    job.stop()
    log.submit("next", lambda job: "next", LONG)
    assert log.last("next") == {"result": "next"}
    assert not log.events["endless"][1].is_set()


def test_a_job_that_is_stopped_before_its_turn_never_begins(log):
    released, begun = threading.Event(), []
    log.begin("running", released)
    log.submit("stopped", lambda job: begun.append(1), LONG).stop()
    log.submit("last", lambda job: None, LONG)
    released.set()
    log.last("last")
    assert not begun


def test_mistakes_become_sentences_and_the_worker_goes_on(log):
    def failing(error):
        def work(job):
            raise error

        return work

    for name, error, sentence in (
        ("value", ValueError("`n_bits` is wrong"), "n_bits is wrong"),
        ("user", UserError("there is no file"), "there is no file"),
        ("memory", RuntimeError("can't allocate memory"), "not enough memory"),
        ("other", KeyError("secret"), "the program's log says why"),
    ):
        log.submit(name, failing(error))
        said = log.last(name)["error"]
        assert sentence in said and "secret" not in said
    log.submit("after", lambda job: 1)
    assert log.last("after") == {"result": 1}


def test_queue_and_clients_are_bounded():
    log, released = Log(most_waiting=3, most_of_client=2), threading.Event()
    log.begin("running", released)
    log.submit("second", lambda job: None, LONG)
    with pytest.raises(Busy, match="You have 2 requests"):
        log.submit("third", lambda job: None, LONG)
    log.submit("other", lambda job: None, LONG, "other")
    stopped = log.submit("stopped", lambda job: None, LONG, "yet another")
    with pytest.raises(Busy, match="Too many"):
        log.submit("last", lambda job: None, LONG, "last")
    stopped.stop()
    log.submit("last", lambda job: None, LONG, "last")
    released.set()
    assert log.last("last") == {"result": None}
