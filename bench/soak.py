"""`python -m bench.soak` (`make soak`): good and bad traffic, aborts, edits and reloads at once, for as long as told.

It says what was lost and what leaked, and ends with 1 when anything was. `traffic` are the callers, `rough_origin` is
what they are relayed to, `edits` the admin and `witness` what tells of each worker from inside; `leaks` judges and
`soak_report` prints. All are processes of their own on loopback. How to read it: `docs/benchmarks.md`.

Theory of operation. Warm the workers up, let them rest, note what they hold. Then traffic and edits, with reloads
(HUP) in the first half only, so that the workers of the second half are old enough to have a line of memory. Then let
them rest again, and compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from bench.leaks import Sample, Track, left_over, most_held
from bench.origin import free_port
from bench.processes import Failed, Server, raise_open_files_limit
from bench.proofs import prove, say
from bench.relays import Installation, run_module, serving, told_url
from bench.soak_report import Outcome
from bench.traffic import Course, Tally

SAMPLE_SECONDS = 1.0
STALE_SECONDS = 5.0
"""A worker that told its last longer ago hangs."""
WARM_SHARE = 0.2
"""Of the time without reloads, in which a worker's memory may still grow."""
SETTLE_SECONDS = 45.0
"""Longer than a worker that is replaced may take (RELAY_GRACEFUL_SECONDS), and than the longest time-out of an idle
connection to an upstream."""
OVERTIME_SECONDS = 60.0
"""For callers to finish what is under way when their time is over."""
MOST_TROUBLES = 20
SIGNED_BYTES = 1024
SETUP = """
import json
from django.core.management import call_command
from relay import signing
from relay.models import ApiKey, Consumer, Grant, SigningKey, Upstream
def add(slug, url, access="anyone", **fields):
    assignments = [word for name, value in fields.items() for word in ("--set", f"{{name}}={{value}}")]
    call_command("upstreams", "add", slug, url, "--access", access, "--allow-network", "127.0.0.0/8", *assignments)
for slug in ("open", "switched"):
    add(slug, "{origin}", keepalive_seconds=1)
add("guarded", "{origin}", access="key", keepalive_seconds=1)
add("bad", "{origin}", keepalive_seconds=1, head_timeout_seconds=1)
add("away", "http://127.0.0.1:{nowhere}")
for slug in ("bad", "away"):
    row = Upstream.objects.get(slug=slug)
    row.breaker_failures = row.breaker_percent = 0
    row.save()
consumer = Consumer.objects.create(name="soak")
Grant.objects.create(consumer=consumer, upstream=Upstream.objects.get(slug="guarded"), methods="GET", path_prefixes="/")
revoked, revoked_text = ApiKey.issue(consumer)
revoked.revoke()
signed = signing.sign("/relay/guarded/counted/{signed_bytes}", key=SigningKey.make(consumer))
print(json.dumps({{"key": ApiKey.issue(consumer)[1], "revoked_key": revoked_text, "signed": signed}}))
"""
"""Prints what callers need as JSON on its last line. Breakers are off where every exchange fails on purpose."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `warm_up_seconds` and the times to settle come on top of `seconds`."""

    seconds: float
    seed: int
    folder: Path
    scale: float = 1.0
    workers: int = 2
    warm_up_seconds: float = 15.0
    edit_seconds: float = 1.0
    """Between two edits, on average."""
    reload_seconds: float = 15.0
    """Between two reloads, on average."""


@dataclass(slots=True)
class Watched:
    """A relay that tells of itself, and what it told so far."""

    server: Server
    port: int
    folder: Path
    workers: int
    tracks: dict[int, Track] = field(default_factory=dict)
    """Of workers that live."""
    replaced: int = 0
    replaced_peak_bytes: int = 0

    def look(self) -> list[Sample]:
        """What each worker that lives told last. Raises Failed when the relay is gone."""
        self.server.require_alive()
        alive = {process.pid for process in self.server.processes()}
        samples = []
        for pid in alive:
            with contextlib.suppress(FileNotFoundError):
                sample = Sample(**json.loads((self.folder / f"{pid}.json").read_text()))
                self.tracks.setdefault(pid, Track()).add(sample)
                samples.append(sample)
        for pid in self.tracks.keys() - alive:
            self.replaced += 1
            self.replaced_peak_bytes = max(self.replaced_peak_bytes, self.tracks.pop(pid).peak_bytes)
        return samples

    @property
    def strays(self) -> int:
        """Processes beyond the arbiter and its workers."""
        return len(self.server.processes()) - 1 - self.workers


def soak(plan: Plan) -> Outcome:
    """Raises Failed when it cannot be done; what the relay does wrong is in the outcome."""
    draw = random.Random(f"{plan.seed}/reloads")
    with run_module("rough_origin", folder=plan.folder) as origin:
        with _relay(plan, told_url(origin)) as (relay, course):
            say(f"warming up for {plan.warm_up_seconds:.0f} s")
            warm = _traffic(plan, relay, course, seconds=plan.warm_up_seconds, seed=plan.seed + 1)
            before, busy = _let_rest(relay, {})
            say(f"traffic for {plan.seconds:.0f} s, reloads in the first half")
            main = _traffic(plan, relay, course, seconds=plan.seconds, seed=plan.seed, reloads=draw)
            traffic_over = time.time()
            say("letting it rest")
            _, more = _let_rest(relay, before)
            quiet = plan.seconds / 2 * (1 - WARM_SHARE)
            memory = {
                pid: track.growth(since=traffic_over - quiet, until=traffic_over) for pid, track in relay.tracks.items()
            }
            outcome = Outcome(
                seed=plan.seed,
                seconds=plan.seconds,
                tally=main.tally,
                warm_up=warm.tally,
                left_over=busy | more,
                strays=max(0, relay.strays),
                memory=memory,
                reloads=main.reloads,
                edits=main.edits,
                replaced=relay.replaced,
                died=max(0, relay.replaced - main.reloads * plan.workers),
                replaced_peak_bytes=relay.replaced_peak_bytes,
            )
        outcome.troubles = _troubles(relay.server.log)
    outcome.origin = json.loads(origin.last_line())
    return outcome


@dataclass(frozen=True, slots=True)
class _Done:
    tally: Tally
    reloads: int
    edits: int


def _traffic(
    plan: Plan, relay: Watched, course: Course, *, seconds: float, seed: int, reloads: random.Random | None = None
) -> _Done:
    course_file = plan.folder / "course.json"
    course_file.touch(mode=0o600)
    course_file.write_text(json.dumps({**asdict(course), "seconds": seconds, "seed": seed}))
    reloaded = 0
    with (
        _editing(plan, seed) as edits,
        run_module("traffic", str(course_file), folder=plan.folder) as traffic,
    ):
        started = time.monotonic()
        next_reload = reloads.uniform(0, 0.5) * min(plan.reload_seconds, seconds / 2) if reloads else math.inf
        while not traffic.has_ended():
            past = time.monotonic() - started
            if past > seconds + OVERTIME_SECONDS:
                raise Failed(f"callers go on {OVERTIME_SECONDS:.0f} s after their time")
            relay.look()
            edits.require_alive()
            if reloads and next_reload <= past < seconds / 2:
                relay.server.tell(signal.SIGHUP)
                reloaded += 1
                next_reload = past + reloads.uniform(0.5, 1.5) * plan.reload_seconds
            time.sleep(SAMPLE_SECONDS)
        tally = Tally(**json.loads(traffic.last_line()))
    return _Done(tally, reloaded, int(edits.last_line()))


@contextmanager
def _editing(plan: Plan, seed: int) -> Iterator[Server]:
    """The admin at work; told to end before it could begin, it would not say how much it did."""
    drawn = [str(seed), str(plan.edit_seconds)]
    with run_module("edits", *drawn, folder=plan.folder, env=_installation(plan).environment) as edits:
        edits.wait_until(lambda: bool(edits.last_line()))
        yield edits


def _let_rest(relay: Watched, before: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Wait until workers hold nothing beyond `before`; before there is one, until they hold no exchange and no
    connection. Gives the most that one of them holds then, and what of it is beyond."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        time.sleep(SAMPLE_SECONDS)
        samples = relay.look()
        held = most_held(samples) | {"descriptors of the arbiter": psutil.Process(relay.server.pid).num_fds()}
        if before:
            more = left_over(before, held)
        else:
            more = {what: number for what, number in held.items() if number and what.startswith("exchanges: ")}
        if silent := relay.workers - sum(time.time() - sample.at < STALE_SECONDS for sample in samples):
            more["workers that tell nothing"] = silent
        if not (more or relay.strays) or time.monotonic() > deadline:
            return held, more


def _troubles(log: Path) -> list[str]:
    """What the relay logged that it should not have: errors and tracebacks, the first of them."""
    found: list[str] = []
    with log.open(errors="replace") as lines:
        for line in lines:
            if "Traceback" in line or " ERROR " in line or "CRITICAL" in line or "[ERROR]" in line:
                found.append(line.strip()[:300])
                if len(found) == MOST_TROUBLES:
                    break
    return found


def _installation(plan: Plan) -> Installation:
    witnesses = plan.folder / "witnesses"
    witnesses.mkdir(exist_ok=True)
    env = {
        "RELAY_ACCESS_LOG": "off",
        "RELAY_MAX_CONNECTIONS_PER_PEER": "4096",
        "RELAY_WITNESS_FOLDER": str(witnesses),
    }
    return Installation(plan.folder, python=Path(sys.executable), settings="bench.settings_with_witness", env=env)


@contextmanager
def _relay(plan: Plan, origin_url: str) -> Iterator[tuple[Watched, Course]]:
    relay = _installation(plan)
    relay.manage("first_run")
    script = SETUP.format(origin=origin_url, nowhere=free_port(), signed_bytes=SIGNED_BYTES)
    given = json.loads(relay.manage("shell", "-c", script).strip().rpartition("\n")[2])
    port = free_port()
    course = Course(port=port, seconds=0, seed=0, scale=plan.scale, signed_bytes=SIGNED_BYTES, **given)
    with serving(relay, port, workers=plan.workers) as server:
        watched = Watched(server, port, plan.folder / "witnesses", plan.workers)
        server.wait_until(lambda: len(watched.look()) == plan.workers)
        yield watched, course


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Look for what is lost and what leaks.")
    parser.add_argument("--minutes", type=float, default=10.0, help="of traffic (10)")
    parser.add_argument("--seed", type=int, help="what to draw from; another one each time unless given")
    parser.add_argument("--scale", type=float, default=1.0, help="of the callers, about 65 at once (1.0)")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    raise_open_files_limit()
    say(f"seed {seed}")

    def find(folder: Path) -> Outcome:
        return soak(Plan(options.minutes * 60, seed, folder, scale=options.scale, workers=options.workers))

    return prove("soak", find)


if __name__ == "__main__":
    sys.exit(main())
