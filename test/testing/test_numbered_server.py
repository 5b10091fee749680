"""The NumberedServer speaks as llama-server does, and each of its switches does what it says."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any

import pytest
from wires import CHAT, QUESTION, Heard, ask, chat, dial, hear, numbers, request_bytes

from llamastream.client import StreamingClient
from llamastream.testing import NumberedServer

ON = {"continue_final_message": True, "add_generation_prompt": False}


def said(content: str = "", **fields: Any) -> list[dict[str, Any]]:
    return [*QUESTION, {"role": "assistant", "content": content, **fields}]


def has(count: int) -> Any:
    return lambda raw: raw.count(b'"content":"') >= count


# -- answers ------------------------------------------------------------------------------------------------


def test_a_stream_counts_from_zero_and_ends_as_llama_server_ends_it() -> None:
    with NumberedServer(tokens=5) as server:
        heard = chat(server.url, stream_options={"include_usage": True})
    assert heard.joined() == "0 1 2 3 4 "
    assert heard.choices[0]["delta"] == {"role": "assistant", "content": None}
    assert heard.finish_reason == "stop"
    *_, usage, done = heard.events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == usage["timings"]["predicted_n"] == 5
    assert heard.framed.endswith(b"\r\n0\r\n\r\n")


def test_the_timings_come_with_the_finish_reason_where_no_usage_is_wanted() -> None:
    with NumberedServer(tokens=2) as server:
        heard = chat(server.url)
    assert heard.events[-2]["choices"][0]["finish_reason"] == "stop"
    assert "timings" in heard.events[-2]


def test_a_limit_cuts_the_answer_short() -> None:
    with NumberedServer(tokens=5) as server:
        cut, exact = chat(server.url, max_tokens=2), chat(server.url, max_tokens=5)
    assert (cut.joined(), cut.finish_reason) == ("0 1 ", "length")
    assert (exact.joined(), exact.finish_reason) == ("0 1 2 3 4 ", "stop")


def test_each_answer_has_an_identity_of_its_own() -> None:
    with NumberedServer(tokens=1) as server:
        first, second = (chat(server.url).events[0] for _ in range(2))
    for name in ("id", "created", "system_fingerprint"):
        assert first[name] != second[name]


def test_the_real_client_reads_it() -> None:
    with NumberedServer(tokens=30, reasoning_tokens=3) as server, StreamingClient(server.url) as client:
        assert "".join(client.stream_chat(QUESTION)) == numbers(0, 30)
        assert client.check_server_health()


def test_reasoning_comes_first() -> None:
    with NumberedServer(tokens=3, reasoning_tokens=2) as server:
        heard = chat(server.url)
        whole = ask(server.url, body={"messages": QUESTION}).json["choices"][0]["message"]
    assert heard.joined("reasoning_content") == "r0 r1 "
    assert [next(iter(choice["delta"])) for choice in heard.choices[1:-1]] == ["reasoning_content"] * 2 + [
        "content"
    ] * 3
    assert whole == {"role": "assistant", "content": "0 1 2 ", "reasoning_content": "r0 r1 "}


def test_a_tool_call_streams_one_number_at_a_time_under_a_fresh_id() -> None:
    with NumberedServer(tokens=4, tool_call=True) as server:
        heard = [chat(server.url) for _ in range(2)]
        whole = ask(server.url, body={"messages": QUESTION}).json["choices"][0]
    for one in heard:
        calls = [call for choice in one.choices for call in choice["delta"].get("tool_calls", [])]
        fragments = [call["function"]["arguments"] for call in calls]
        assert fragments == ['{"n":[', "0", ",1", ",2", ",3", "]}"]
        assert one.finish_reason == "tool_calls"
    ids = [one.choices[1]["delta"]["tool_calls"][0]["id"] for one in heard]
    assert ids[0] != ids[1]
    assert json.loads(whole["message"]["tool_calls"][0]["function"]["arguments"]) == {"n": [0, 1, 2, 3]}


def test_completions_continue_the_run_at_the_end_of_the_prompt() -> None:
    path = "/v1/completions"
    with NumberedServer(tokens=6) as server:
        for prompt, start in [("count: ", 0), ("count: 0 1 2 ", 3), ("at 10 1 2 ", 0), ("1 2 ", 0), ("0 0 1 ", 2)]:
            heard = ask(server.url, path=path, body={"prompt": prompt, "stream": True})
            assert "".join(choice["text"] for choice in heard.choices) == numbers(start, 6), prompt
            whole = ask(server.url, path=path, body={"prompt": prompt}).json
            assert whole["choices"][0]["text"] == numbers(start, 6)


# -- continuing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(7))
def test_a_continued_message_goes_on_with_the_next_number(cut: int) -> None:
    with NumberedServer(tokens=6) as server:
        heard = chat(server.url, said(numbers(0, cut)), **ON)
        whole = ask(server.url, body={"messages": said(numbers(0, cut)), **ON}).json
        fresh = ask(server.url, body={"messages": said(), **ON}).json
    assert heard.joined() == numbers(cut, 6)
    assert whole["choices"][0]["message"]["content"] == numbers(0, 6)
    assert whole["usage"]["prompt_tokens"] == fresh["usage"]["prompt_tokens"] + cut
    assert whole["usage"]["completion_tokens"] == 6 - cut


def test_a_message_cut_within_a_number_is_continued_within_it() -> None:
    text = numbers(0, 13)
    with NumberedServer(tokens=13) as server:
        for cut in range(len(text)):
            assert text[:cut] + chat(server.url, said(text[:cut]), **ON).joined() == text


@pytest.mark.parametrize("flag", [True, "reasoning_content"])
def test_reasoning_is_continued_and_the_answer_follows(flag: object) -> None:
    with NumberedServer(tokens=2, reasoning_tokens=4) as server:
        heard = chat(server.url, said(reasoning_content="r0 r1 "), **{**ON, "continue_final_message": flag})
    assert (heard.joined("reasoning_content"), heard.joined()) == ("r2 r3 ", "0 1 ")


def test_continued_content_does_not_reason_again() -> None:
    with NumberedServer(tokens=3, reasoning_tokens=4) as server:
        heard = chat(server.url, said("0 ", reasoning_content="r0 r1 r2 r3 "), **ON)
    assert (heard.joined("reasoning_content"), heard.joined()) == ("", "1 2 ")


@pytest.mark.parametrize(
    ("messages", "fields", "message"),
    [
        (said("0 "), {"continue_final_message": True}, "Cannot set both"),
        (said("0 "), {**ON, "continue_final_message": "what"}, "Invalid continue_final_message"),
        (said("0 ", tool_calls=[{"id": "1"}]), ON, "contains tool calls"),
    ],
)
def test_what_llama_server_cannot_continue_is_a_400_here_too(messages: Any, fields: Any, message: str) -> None:
    with NumberedServer() as server:
        heard = chat(server.url, messages, **fields)
    assert heard.status == 400
    assert message in heard.json["error"]["message"]


# -- re-attaching -------------------------------------------------------------------------------------------


def attach(server: NumberedServer, conversation: str, start: int) -> Heard:
    return ask(server.url, "GET", f"/v1/stream?conv_id={conversation}&from={start}")


def test_a_stream_can_be_had_again_from_every_byte() -> None:
    with NumberedServer(tokens=3) as server:
        body = ask(server.url, body={"messages": QUESTION, "stream": True}, X_Conversation_Id="a").body
        for start in range(len(body) + 1):
            assert attach(server, "a", start).body == body[start:]
        assert attach(server, "b", 0).status == 404


def test_a_named_generation_survives_its_client_and_goes_on_live() -> None:
    with NumberedServer(tokens=5, gate=True) as server:
        server.release(2)
        body = {"messages": QUESTION, "stream": True}
        first = ask(server.url, body=body, enough=has(2), X_Conversation_Id="a")
        assert server.wait_for(lambda server: server.connections == 0)
        assert server.generating == 1
        with dial(server.url) as connection:
            connection.sendall(request_bytes("GET", f"/v1/stream?conv_id=a&from={len(first.body)}"))
            assert b"200 OK" in connection.recv(100)
            server.release()
            rest = hear(connection)
        whole = attach(server, "a", 0)
    assert whole.joined() == numbers(0, 5)
    assert rest.raw.endswith(b"0\r\n\r\n")
    assert (server.finished, server.cancelled) == (1, 0)


def test_an_unnamed_generation_is_cancelled_when_its_client_leaves() -> None:
    with NumberedServer(gate=True) as server:
        server.release(2)
        ask(server.url, body={"messages": QUESTION, "stream": True}, enough=has(2))
        assert server.wait_for(lambda server: server.cancelled == 1)
        assert server.generating == 0


def test_delete_ends_the_attached_stream_without_a_finish_reason() -> None:
    with NumberedServer(gate=True) as server:
        server.release(2)
        with dial(server.url) as connection:
            body = {"messages": QUESTION, "stream": True}
            connection.sendall(request_bytes("POST", CHAT, body, X_Conversation_Id="a"))
            begun = hear(connection, has(2))
            assert ask(server.url, "DELETE", "/v1/stream?conv_id=a").status == 204
            heard = Heard(begun.raw + hear(connection).raw, "closed")
        assert heard.joined() == "0 1 "
        assert heard.finish_reason is None
        assert heard.framed.endswith(b"\r\n0\r\n\r\n")
        assert attach(server, "a", 0).status == 404


def test_what_fell_out_of_the_ring_is_lost() -> None:
    with NumberedServer(tokens=3, ring_bytes=100) as server:
        body = ask(server.url, body={"messages": QUESTION, "stream": True}, X_Conversation_Id="a").body
        lost, kept = attach(server, "a", len(body) - 101), attach(server, "a", len(body) - 100)
    assert (lost.status, kept.body) == (400, body[-100:])


def test_lookup_tells_what_is_known() -> None:
    with NumberedServer(tokens=3) as server:
        body = ask(server.url, body={"messages": QUESTION, "stream": True}, X_Conversation_Id="a").body
        server.wait_for(lambda server: server.finished == 1)
        found = ask(server.url, path="/v1/streams/lookup", body={"conversation_ids": ["a", "b"]}).json
    assert [(one["conversation_id"], one["is_done"], one["total_bytes"]) for one in found] == [("a", True, len(body))]


# -- beside the answers -------------------------------------------------------------------------------------


def test_side_requests_share_a_connection_and_a_stream_closes_its_own() -> None:
    with NumberedServer(tokens=2) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(3):
            connection.request("GET", "/health")
            assert json.load(connection.getresponse()) == {"status": "ok"}
        assert server.accepted == 1
        connection.request("POST", CHAT, json.dumps({"messages": QUESTION, "stream": True}))
        response = connection.getresponse()
        assert response.headers["Keep-Alive"]
        response.read()
        connection.close()
        assert server.wait_for(lambda server: server.connections == 0)


def test_tokens_are_words_and_the_template_shows_the_roles() -> None:
    with NumberedServer() as server:
        ids = ask(server.url, path="/tokenize", body={"content": "0 1 two 1 "}).json["tokens"]
        back = ask(server.url, path="/detokenize", body={"tokens": ids}).json["content"]
        prompt = ask(server.url, path="/apply-template", body={"messages": said("0 1 "), **ON}).json["prompt"]
        usage = ask(server.url, body={"messages": said("0 1 "), **ON}).json["usage"]
    assert ids[:2] == [0, 1]
    assert ids[3] == 1
    assert back == "0 1 two 1 "
    assert prompt == "<|user|>\ncount\n<|assistant|>\n0 1 "
    assert usage["prompt_tokens"] == len(prompt.split())


def test_slots_are_shown_and_a_further_request_waits_for_one() -> None:
    with NumberedServer(tokens=4, slots=1, gate=True) as server:
        heard: list[Heard] = []
        askers = [threading.Thread(target=lambda: heard.append(chat(server.url))) for _ in range(2)]
        for asker in askers:
            asker.start()
        assert server.wait_for(lambda server: server.generations == 2)
        assert server.wait_for(lambda server: server.generating == 1)
        (slot,) = ask(server.url, "GET", "/slots").json
        assert slot["is_processing"]
        assert ask(server.url, "GET", "/props").json["total_slots"] == 1
        server.release()
        for asker in askers:
            asker.join()
        assert [one.joined() for one in heard] == [numbers(0, 4)] * 2


def test_requests_are_recorded() -> None:
    with NumberedServer(tokens=1) as server:
        ask(server.url, path="/tokenize?x=1", body={"content": "a"}, X_Test="yes")
        (request,) = server.requests
    assert (request.method, request.path, request.query, request.body) == (
        "POST",
        "/tokenize",
        {"x": "1"},
        {"content": "a"},
    )
    assert request.headers["x-test"] == "yes"


def test_unknown_paths_and_broken_json_are_errors() -> None:
    with NumberedServer() as server:
        assert ask(server.url, "GET", CHAT).status == 404
        with dial(server.url) as connection:
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nContent-Length: 1\r\n\r\n{")
            assert hear(connection).status == 500


# -- switches -----------------------------------------------------------------------------------------------


def test_a_server_without_reattaching_ignores_the_header() -> None:
    with NumberedServer(gate=True, reattach=False) as server:
        server.release(1)
        ask(server.url, body={"messages": QUESTION, "stream": True}, enough=has(1), X_Conversation_Id="a")
        assert server.wait_for(lambda server: server.cancelled == 1)
        assert attach(server, "a", 0).status == 404
        assert ask(server.url, path="/v1/streams/lookup", body={"conversation_ids": ["a"]}).status == 404


def test_a_server_which_cannot_continue_says_so_and_begins_anew_unasked() -> None:
    with NumberedServer(tokens=4, continues=False) as server:
        assert chat(server.url, said("0 1 "), **ON).status == 400
        assert chat(server.url, said("0 1 ")).joined() == numbers(0, 4)


def test_a_server_can_repeat_what_it_continues() -> None:
    with NumberedServer(tokens=4, repeats_prefix=True) as server:
        heard = chat(server.url, said("0 1 "), **ON)
    assert [choice["delta"].get("content") for choice in heard.choices] == [None, "0 1 ", "2 ", "3 ", None]


def test_a_later_generation_can_diverge() -> None:
    with NumberedServer(tokens=4, diverge_at=2) as server:
        assert [chat(server.url).joined() for _ in range(3)] == ["0 1 2 3 ", "0 1 x2 3 ", "0 1 x2 3 "]


def test_a_loading_server_refuses_the_first_requests() -> None:
    with NumberedServer(loading=2) as server:
        refused = [ask(server.url, "GET", "/health"), chat(server.url)]
        assert [(one.status, one.json["error"]["message"]) for one in refused] == [(503, "Loading model")] * 2
        assert chat(server.url).status == 200


def test_nothing_is_left_when_it_closes_in_mid_answer() -> None:
    before = threading.active_count()
    with NumberedServer(gate=True) as server, dial(server.url) as connection:
        server.release(1)
        connection.sendall(request_bytes("POST", CHAT, {"messages": QUESTION, "stream": True}))
        hear(connection, has(1))
        server.close()
        rest = hear(connection)
        assert rest.ended == "closed"
        assert not rest.raw.endswith(b"0\r\n\r\n")
    assert threading.active_count() == before
