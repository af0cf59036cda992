"""A whole cluster on a network inside the process, whose clock the tests move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitlet.errors import DeadlineError, ShapeError, UsageError
from vitlet.partition.cluster.frame import Frame, Kind, encode
from vitlet.partition.plan import load_plan


def test_the_answer_is_that_of_one_process_bit_for_bit(cluster, images, expected):
    answer = cluster.ask(cluster.start(), images)
    assert (answer.logits == expected(images)).all()
    assert answer.missing == () and not answer.degraded
    assert answer.covered_classes == tuple(range(7))
    assert np.allclose(answer.probabilities.sum(axis=1), 1)
    assert (answer.confidence == answer.probabilities.max(axis=1)).all()
    assert [t.device for t in answer.traces][1:] == ["beta", "gamma"]


def test_tensors_and_pixels_give_the_same_answer(cluster, images, light):
    from vitlet.data.preprocess import preprocess

    coordinator = cluster.start()
    pixels = cluster.ask(coordinator, images)
    tensors = cluster.ask(coordinator, preprocess(images, light.preprocess))
    assert (pixels.logits == tensors.logits).all()


def test_slots_go_where_the_plan_says(cluster):
    coordinator = cluster.start()
    held = {w["device"]: {s["slot"] for s in w["slots"]} for w in coordinator.status()["workers"]}
    cluster.network.advance(1.5)  # the next metrics
    held = {w["device"]: {s["slot"] for s in w["slots"]} for w in coordinator.status()["workers"]}
    assert held == {"alpha": {0}, "beta": {1}, "gamma": {0, 2}}


def test_a_lost_worker_degrades_the_answer_at_once_and_names_what_is_missing(
    cluster, images, expected
):
    coordinator = cluster.start()
    cluster.network.kill("beta")
    cluster.network.advance(0.01)
    future = coordinator.submit(images, 1.0)
    cluster.network.advance(0.01)
    answer = future.result(timeout=0)
    assert answer.missing == (1,) and answer.degraded
    assert answer.covered_classes == (0, 2, 3, 5, 6)
    assert (answer.logits == expected(images, missing=(1,))).all()


def test_a_worker_lost_during_a_request_is_replaced_by_the_replica(cluster, images, expected):
    coordinator = cluster.start()
    cluster.network.link("alpha", "desk", delay=0.5)
    for _ in range(3):  # whichever of the two is asked first
        cluster.network.link("gamma", "desk", delay=0.001)
        future = coordinator.submit(images, 1.0)
        cluster.network.advance(0.002)
    cluster.network.kill("alpha")
    answer = cluster.result(future, 1.0)
    assert answer.missing == () and (answer.logits == expected(images)).all()
    assert answer.traces[0].device == "gamma"


def test_a_slow_worker_is_hedged_to_the_replica(cluster, images, expected):
    coordinator = cluster.start()
    for _ in range(30):
        cluster.ask(coordinator, images[:1], 0.1)
    for name, slow in (("alpha", "gamma"), ("gamma", "alpha")):
        cluster.network.link(name, "desk", delay=0.001)
        cluster.network.link(slow, "desk", delay=0.8 if slow == "alpha" else 0.001)
    answers = [cluster.ask(coordinator, images, 0.5) for _ in range(4)]
    assert all(answer.missing == () for answer in answers)
    assert all((answer.logits == expected(images)).all() for answer in answers)
    assert coordinator.counts.get("hedges") > 0
    assert answers[-1].traces[0].device == "gamma"


def test_without_hedging_a_slow_worker_is_missing(cluster, images):
    coordinator = cluster.start(hedge=False)
    cluster.network.link("beta", "desk", delay=0.8)
    answer = cluster.ask(coordinator, images, 0.5)
    assert answer.missing == (1,)
    assert answer.latency == pytest.approx(0.5)


def test_every_request_ends_by_its_deadline_though_30_percent_is_lost(cluster, images, expected):
    coordinator = cluster.start(retries=4, resend=0.05)
    for name in ("alpha", "beta", "gamma"):
        for pair in ((name, "desk"), ("desk", name)):
            cluster.network.link(*pair, delay=0.002, jitter=0.004, loss=0.3, duplicate=0.1)
    full = 0
    for _ in range(60):
        answer = cluster.ask(coordinator, images[:2], 1.0)
        assert (answer.logits == expected(images[:2], missing=answer.missing)).all()
        full += not answer.missing
    assert full > 50
    assert coordinator.counts.get("resends") > 0
    assert sum(w.counts.get("dropped_replayed") for w in cluster.workers.values()) > 0


def test_a_request_fails_when_too_few_slots_answer(cluster, images):
    coordinator = cluster.start(min_slots=2)
    cluster.network.kill("beta")
    assert cluster.ask(coordinator, images).missing == (1,)
    cluster.network.kill("gamma")
    cluster.network.kill("alpha")
    future = coordinator.submit(images, 0.5)
    cluster.network.advance(0.4)
    assert not future.done()  # somebody may come
    with pytest.raises(DeadlineError, match="0 of 3 slots answered in time, 2 are needed"):
        cluster.result(future, 0.5)


def test_a_waiting_request_is_answered_by_workers_that_come(cluster, images, expected):
    coordinator = cluster.coordinator(min_slots=3)
    future = coordinator.submit(images, 3.0)
    cluster.network.advance(1.0)
    for name in ("alpha", "beta", "gamma"):
        cluster.worker(name)
    answer = cluster.result(future, 3.0)
    assert (answer.logits == expected(images)).all()


def test_a_lost_slot_moves_to_another_worker_with_room(cluster, images):
    coordinator = cluster.start()
    cluster.network.kill("beta")
    cluster.network.advance(1.0)
    assert cluster.ask(coordinator, images, 0.1).missing == (1,)  # it may come back
    cluster.network.advance(3.0)
    answer = cluster.ask(coordinator, images, 0.1)
    assert answer.missing == () and answer.traces[1].device in ("alpha", "gamma")


def test_a_worker_without_room_is_given_nothing(cluster, images):
    cluster.worker("alpha", memory=1_500_000)  # one slot of 1,000,000 bytes fits
    coordinator = cluster.coordinator()
    cluster.network.advance(10.0)
    answer = cluster.ask(coordinator, images, 0.1)
    assert answer.missing == (1, 2)


def test_a_restarted_worker_answers_from_its_cache(cluster, images):
    coordinator = cluster.start()
    cluster.network.kill("beta")
    sent = cluster.network.bytes
    cluster.worker("beta")
    cluster.network.advance(0.1)
    assert coordinator.held() == 3
    assert cluster.network.bytes - sent < 4096  # no bundle was sent again
    assert cluster.ask(coordinator, images).missing == ()


def test_a_new_coordinator_finds_the_slots_loaded(cluster, images, expected):
    cluster.start()
    cluster.network.kill("desk")
    second = cluster.coordinator("desk-2")
    sent = cluster.network.bytes
    cluster.network.advance(0.05)
    assert second.held() == 3
    assert cluster.network.bytes - sent < 8192
    assert (cluster.ask(second, images).logits == expected(images)).all()


def test_two_coordinators_share_the_workers(cluster, images, expected):
    first = cluster.start()
    second = cluster.coordinator("desk-2")
    cluster.network.advance(0.5)
    futures = [c.submit(images, 1.0) for c in (first, second) for _ in range(5)]
    cluster.network.advance(1.0)
    assert all((f.result(timeout=0).logits == expected(images)).all() for f in futures)


def test_a_pulled_cable_is_noticed_after_the_lease_and_its_slot_moves(cluster, images):
    coordinator = cluster.start()
    cluster.network.cut("beta")
    future = coordinator.submit(images, 0.5)
    cluster.network.advance(0.4)
    assert not future.done()  # not known yet: it is waited for
    assert cluster.result(future, 0.5).missing == (1,)
    cluster.network.advance(5.0)
    assert cluster.ask(coordinator, images).traces[1].device in ("alpha", "gamma")


def test_one_way_partition_ends_by_the_deadline(cluster, images):
    coordinator = cluster.start()
    cluster.network.link("beta", "desk", up=False)  # it hears, and is not heard
    answer = cluster.ask(coordinator, images, 0.5)
    assert answer.missing == (1,)


def test_frames_that_make_no_sense_are_counted_and_dropped(cluster, light, images):
    coordinator = cluster.start()
    alpha = cluster.workers["alpha"]
    key = alpha.topics.infer("0" * 32, 0, "alpha")
    stranger = cluster.network.join("stranger")
    plan = bytes.fromhex(light.hash)[:16]
    good = Frame(Kind.REQUEST, plan, 5, 1, alpha.epoch, budget=10**6)
    frames = {
        "dropped_short": b"hello",
        "dropped_crc": encode(good)[:8] + b"x" + encode(good)[9:],
        "dropped_version": b"VITF\x63" + encode(good)[5:],
        "dropped_epoch": encode(replace(good, epoch=alpha.epoch ^ 1)),
    }
    replies: list[bytes] = []
    for frame in frames.values():
        stranger.query(key, frame, 1.0, replies.append, lambda: None)
    for _ in range(2):
        stranger.query(key, encode(good), 1.0, replies.append, lambda: None)
    cluster.network.advance(1.1)
    assert {reason: alpha.counts.get(reason) for reason in frames} == dict.fromkeys(frames, 1)
    assert alpha.counts.get("dropped_replayed") == 1
    assert len(replies) == 1 and alpha.counts.get("refused") == 1  # an empty array fits no slot
    assert cluster.ask(coordinator, images).missing == ()


def test_a_worker_of_another_plan_does_not_answer(cluster, tmp_path, images):
    from light_plan import light_plan

    light_plan(tmp_path / "other.plan", seed=1)
    coordinator = cluster.start()
    cluster.plan = load_plan(tmp_path / "other.plan")
    other = cluster.coordinator("desk-2")
    cluster.network.advance(0.5)
    first, second = cluster.ask(coordinator, images), cluster.ask(other, images)
    assert other.held() == 3 and (first.logits != second.logits).any()


def test_images_that_do_not_fit_are_refused_before_they_are_sent(cluster):
    coordinator = cluster.start()
    with pytest.raises(ShapeError, match=r"expected float32 \(B, 1, 8, 8\)"):
        coordinator.submit(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match="a deadline is above 0"):
        coordinator.submit(np.zeros((1, 8, 8, 1), np.uint8), deadline=0)
    with pytest.raises(UsageError, match="min_slots must be at most 3"):
        cluster.coordinator("desk-2", min_slots=4)
