"""The servers of a client: which one is chosen, which are left, and who probes."""

from __future__ import annotations

import gc
import threading

from llamastream.address import parse_address
from llamastream.client.servers import PROBE_TIMEOUT, Servers
from llamastream.policy.breaker import BreakerState


def servers(number: int) -> Servers:
    return Servers([parse_address(f"http://s{index}:80") for index in range(number)], None)


def test_a_single_server_is_taken_whatever_happened() -> None:
    one = servers(1)
    one.failed(one.all[0], 100.0, certain=True)
    assert one.choose(100.0) == (one.all[0], False)
    assert one.choose(1000.0, one.all) == (one.all[0], False)


def test_the_first_is_taken_until_it_is_busier_than_the_others() -> None:
    three = servers(3)
    chosen = []
    for _ in range(6):
        server, _ = three.choose(100.0)
        began = three.began(server)
        chosen.append(server.index)
    assert chosen == [0, 1, 2, 0, 1, 2]
    three.ended(three.all[1], began)
    assert three.choose(100.0)[0].index == 1


def test_not_the_one_that_has_just_failed_the_stream() -> None:
    two = servers(2)
    assert two.choose(100.0, {two.all[0]}) == (two.all[1], False)
    assert two.choose(100.0, set(two.all)) == (two.all[0], False)


def test_a_server_that_is_down_is_left_until_it_has_been_probed() -> None:
    two = servers(2)
    one, other = two.all
    two.failed(one, 100.0, certain=True)
    assert two.choose(100.5) == (other, False)
    two.failed(other, 100.5, certain=True)
    assert two.choose(101.2) == (one, True), "half-open: probe it first"
    assert two.choose(101.2) == (one, False), "the other stream does not wait for the probe"
    assert two.choose(101.2 + PROBE_TIMEOUT) == (one, True), "nobody told what came of it"
    two.succeeded(one)
    assert two.choose(101.2) == (one, False)
    assert one.breaker.state(101.2) is BreakerState.CLOSED


def test_elsewhere() -> None:
    three = servers(3)
    one, two, last = three.all
    assert three.elsewhere(100.0, {one})
    assert three.elsewhere(100.0, {one, two})
    assert not three.elsewhere(100.0, {one, two, last})
    three.failed(last, 100.0, certain=True)
    assert not three.elsewhere(100.5, {one, two}), "it is known to be down"
    assert three.elsewhere(101.0, {one, two}), "it may be well again"


def test_what_is_learned_of_a_server() -> None:
    (server,) = servers(1).all
    assert (server.capabilities.reattach, server.capabilities.continues) == (None, None)
    server.reattach, server.continues = True, False
    assert (server.capabilities.reattach, server.capabilities.continues) == (True, False)
    assert repr(server) == "<Server http://s0>"


def test_a_stream_that_the_garbage_collector_ends_in_the_middle_of_a_choice() -> None:
    two = servers(2)
    began = two.began(two.all[1])

    class Stream:
        def __init__(self) -> None:
            self.me = self  # a cycle, as with an exception that is kept

        def __del__(self) -> None:
            two.ended(two.all[1], began)

    class Tried(set[object]):
        def __contains__(self, item: object) -> bool:
            gc.collect()
            return False

    Stream()
    worker = threading.Thread(target=two.choose, args=(100.0, Tried()), daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive(), "it waits for a lock that it holds itself"
    assert two.all[1].in_flight == 0
