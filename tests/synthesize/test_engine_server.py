"""The engine `server` against a real server on loopback: nothing lost and nothing twice, whatever it does."""

import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastdraft.config import ServerPart
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.engine_server import ServerEngine
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.rescore import rescore_rows, rescorer
from fastdraft.synthesize.write import write_completions
from fastdraft.system.errors import ServerError
from fastdraft.system.progress import Bar


class Speller:
    """Stands where no tokenizer is needed: ids as numbers in a text."""

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Encoded", (), {"input_ids": [int(word) for word in text.split()]})


def part(*servers: Any, **changed: Any) -> ServerPart:
    settings = {
        "concurrent_requests": 4,
        "timeout_seconds": 5.0,
        "backoff_seconds": 0.01,
        "attempts": 6,
        "model": "tiny",
    }
    return ServerPart(urls=[server.url for server in servers], **(settings | changed))


def ask(servers: ServerPart, requests: Any, decoding: Any, stored: KeySet | None = None) -> tuple[Any, Counter[str]]:
    """All rows by key, and why others are none."""
    rows: dict[str, Completion] = {}
    refused: Counter[str] = Counter()
    for shard in ServerEngine(servers, decoding, Speller()).shards(with_keys(requests, decoding), stored or KeySet()):
        refused.update(shard.refused)
        for row in shard.rows:
            assert row.key not in rows, "a row came twice"
            rows[row.key] = row
    return rows, refused


def keys(requests: Any, decoding: Any) -> set[str]:
    return {row.key for row in with_keys(requests, decoding)}


def test_every_request_is_answered_with_ids_and_raw_log_probabilities(serve, target, requests, decoding):
    rows, refused = ask(part(serve()), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert all(len(row.logp) == len(row.tokens) for row in rows.values())
    # Where the distribution changes nothing, raw ones are the distribution's.
    plain = [row for row in rows.values() if row.sampling.temperature == 1]
    assert len(plain) >= 13
    for before, after in zip(plain, rescore_rows(target, plain).rows, strict=True):
        np.testing.assert_allclose(before.logp, after.logp, atol=1e-4)


def test_rescoring_gives_log_probabilities_under_the_distribution(serve, target, requests, decoding, tmp_path):
    engine, store = ServerEngine(part(serve()), decoding, Speller()), CompletionStore(tmp_path)
    rescore = rescorer(engine.logprobs_mode, True, lambda: target)
    with Bar("test", 41, "rows") as bar:
        assert not write_completions(engine, with_keys(requests, decoding), store, decoding, bar, rescore)
    rows = store.read()
    assert len(rows) == 41
    for before, after in zip(rows, rescore_rows(target, rows).rows, strict=True):
        np.testing.assert_allclose(before.logp, after.logp, atol=1e-4)


def test_what_httpx_would_like_to_have_is_not_looked_for_at_each_request(serve, requests, decoding, monkeypatch):
    """A search of the path that fails takes longer than the rest of a request."""

    class Searches:
        found = 0

        def find_spec(self, name: str, *_: Any) -> None:
            self.found += name == "sniffio"

    searches = Searches()
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
    ask(part(serve()), requests, decoding)
    assert 1 <= searches.found <= 2


def test_all_that_a_server_may_have_its_own_mind_about_is_reported(serve, requests, decoding):
    server = serve()
    ask(part(server), requests[:3], decoding)
    greedy, plain, cut = sorted(server.bodies, key=lambda body: (body["temperature"] != 0, body["top_k"]))
    assert (greedy["temperature"], greedy["max_tokens"], greedy["repetition_penalty"]) == (0, 11, 1)
    assert (plain["temperature"], plain["top_k"], plain["top_p"]) == (1, -1, 1)
    assert (cut["temperature"], cut["top_k"], cut["top_p"]) == (0.7, 13, 0.9)
    assert len({body["seed"] for body in server.bodies}) == 3


@pytest.mark.parametrize("fault", ["500", "429", "cut", "half", "garbage"])
def test_a_fault_now_and_then_loses_nothing(serve, requests, decoding, fault):
    server = serve(faults=lambda number: fault if number % 5 == 2 else None)
    rows, refused = ask(part(server), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert server.asked > len(requests), "the faults were met"


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(serve, requests, decoding):
    server = serve(faults=lambda number: "silence" if number in (3, 7) else None)
    rows, _ = ask(part(server, timeout_seconds=2.0, attempts=20), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert server.asked >= len(requests) + 2


def test_a_request_that_always_fails_is_given_up_and_counted(serve, requests, decoding):
    server = serve(faults=lambda _: "500")
    rows, refused = ask(part(server, attempts=3), requests[:5], decoding)
    assert (rows, refused) == ({}, Counter({"HTTP 500, 3 times": 5}))
    assert server.asked == 15


def test_a_request_that_the_server_refuses_is_not_asked_again(serve, requests, decoding):
    server = serve(faults=lambda number: "400" if number < 2 else None)
    rows, refused = ask(part(server), requests, decoding)
    assert refused == Counter({"the server answered HTTP 400": 2})
    assert (len(rows), server.asked) == (39, 41)


def test_a_server_that_dies_and_returns_goes_on(serve, requests, decoding):
    server = serve(delay_seconds=0.02)
    server.faults = lambda number: server.die_for(0.3) if number == 9 else None
    rows, refused = ask(part(server, attempts=9), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused


def test_when_one_of_two_servers_dies_the_other_does_all(serve, requests, decoding):
    dying, living = serve(delay_seconds=0.01), serve(delay_seconds=0.01)
    dying.faults = lambda number: dying.stop() if number == 5 else None
    rows, refused = ask(part(dying, living), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert living.answered > 30


def test_the_faster_of_two_servers_answers_more(serve, requests, decoding):
    slow, fast = serve(delay_seconds=1.0), serve(delay_seconds=0.01)
    rows, _ = ask(part(slow, fast, concurrent_requests=2), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert fast.answered > 2 * slow.answered > 0


def test_no_server_at_all_stops_with_what_to_do(serve, requests, decoding):
    server = serve()
    server.stop()
    with pytest.raises(ServerError, match=r"no server has answered for [^\0]*\n  do: start a server"):
        ask(part(server, attempts=3), requests, decoding)


def test_what_was_answered_before_all_servers_died_is_kept(serve, requests, decoding, tmp_path):
    server, store = serve(), CompletionStore(tmp_path)
    server.faults = lambda number: server.stop() if number == 20 else None
    engine = ServerEngine(part(server, attempts=4), decoding, Speller())
    with Bar("test", 41, "rows") as bar, pytest.raises(ServerError, match="no server has answered"):
        write_completions(
            engine, with_keys(requests, decoding), store, decoding, bar, rescorer("none", True, lambda: server.target)
        )
    assert len(store.stored_keys()) >= 12
    server.faults = lambda _: None
    server.start()
    before = server.asked
    with Bar("test", 41, "rows") as bar:
        write_completions(
            engine, with_keys(requests, decoding), store, decoding, bar, rescorer("none", True, lambda: server.target)
        )
    assert {row.key for row in store.read()} == keys(requests, decoding)
    assert len(store.read()) == 41
    assert server.asked - before < 41


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "other"}, r"serves other, wanted tiny\n  do: correct synthesize.server.model"),
        ({"change": lambda answer: answer | {"model": "other"}}, r"answered as other, wanted tiny\n  do: correct"),
    ],
)
def test_another_model_stops(serve, requests, decoding, settings, message):
    with pytest.raises(ServerError, match=message):
        ask(part(serve(**settings)), requests, decoding)


def changed(**of_choice: Any) -> Any:
    """A server that says something else in its only choice."""
    return lambda answer: answer | {"choices": [answer["choices"][0] | of_choice]}


def test_a_server_without_log_probabilities_stops(serve, requests, decoding):
    with pytest.raises(ServerError, match=r"gives no log-probabilities\n  do: start the server with"):
        ask(part(serve(change=changed(logprobs=None))), requests, decoding)


def test_a_server_without_token_ids_stops(serve, requests, decoding):
    with pytest.raises(ServerError, match=r"texts without token ids[^\0]*\n  do: use a server that gives ids"):
        ask(part(serve(change=changed(token_ids=None))), requests, decoding)


@pytest.mark.parametrize(
    ("logprobs", "reason"),
    [
        ([0.5] * 11, "log-probabilities above zero, infinite or NaN"),
        ([float("nan")] * 11, "log-probabilities above zero, infinite or NaN"),
        ([-1.0] * 12, "log-probabilities that are not one per token"),
        (["x"] * 11, "log-probabilities that are not numbers"),
    ],
)
def test_log_probabilities_that_cannot_be_are_counted(serve, requests, decoding, logprobs, reason):
    server = serve(change=changed(logprobs={"token_logprobs": logprobs}), eos=frozenset())
    rows, refused = ask(part(server), requests, decoding)
    assert (rows, refused) == ({}, Counter({reason: 41}))


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer | {"choices": ["text"]},
        changed(logprobs="none"),
        changed(logprobs={"content": ["text"]}),
        changed(logprobs={"token_logprobs": 7}),
        changed(logprobs={"token_logprobs": [-1.0] * 11, "top_logprobs": 7}),
    ],
)
def test_answers_of_another_form_are_counted(serve, requests, decoding, change):
    server = serve(change=change, eos=frozenset())
    rows, refused = ask(part(server), requests, decoding._replace(top_logprobs=5))
    assert (rows, refused) == ({}, Counter({"answers that are not in OpenAI's format": 41}))


def test_ids_beyond_all_numbers_are_counted(serve, requests, decoding):
    rows, refused = ask(part(serve(change=changed(token_ids=[10**30]))), requests, decoding)
    assert (rows, refused) == ({}, Counter({"token ids that are not numbers": 41}))


def test_what_a_server_reports_after_an_end_of_text_is_cut(serve, requests, decoding):
    server, ends = serve(eos=frozenset()), frozenset(range(0, 131, 5))
    rows, _ = ask(part(server), requests, decoding._replace(eos=ends))
    assert set(rows) == keys(requests, decoding)
    assert all(not ends & set(row.tokens[:-1].tolist()) for row in rows.values())
    assert {len(row.tokens) - len(row.logp) for row in rows.values()} == {0}
    assert sum(int(row.tokens[-1]) in ends for row in rows.values()) >= 7
    assert server.bodies[0]["stop_token_ids"] == sorted(ends)


@pytest.mark.parametrize("status", ["401", "403", "404", "405"])
def test_a_server_that_wants_another_key_or_address_stops(serve, requests, decoding, status):
    with pytest.raises(ServerError, match=rf"answered HTTP {status}: .*busy[^\0]*\n  do: check synthesize.server.urls"):
        ask(part(serve(faults=lambda _: status)), requests, decoding)


@pytest.mark.parametrize("url", ["", "a:8000/v1", "ftp://a/v1", "http:///v1", "http://a:99999/v1", "http://[/v1"])
def test_an_address_that_is_none_is_refused_before_anything_is_run(url):
    with pytest.raises(ValueError, match=r"urls\n[^\0]*wanted a URL like http://localhost:8000/v1"):
        ServerPart(urls=[url], model="tiny")


def test_ids_are_found_where_other_servers_say_them(serve, requests, decoding):
    def as_names(answer: Any) -> Any:
        choice = answer["choices"][0]
        logprobs = choice["logprobs"] | {"tokens": [f"token_id:{i}" for i in choice["token_ids"]]}
        return answer | {"choices": [choice | {"token_ids": None, "logprobs": logprobs}]}

    def as_content(answer: Any) -> Any:
        choice = answer["choices"][0]
        pairs = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
        content = [{"id": token, "logprob": logp} for token, logp in pairs]
        return answer | {"choices": [choice | {"token_ids": None, "logprobs": {"content": content}}]}

    said = [ask(part(serve(change=change)), requests, decoding)[0] for change in (lambda a: a, as_names, as_content)]
    for key, row in said[0].items():
        for other in said[1:]:
            np.testing.assert_array_equal(other[key].tokens, row.tokens)
            np.testing.assert_array_equal(other[key].logp, row.logp)


# most likely tokens.


def likeliest(rows: dict[str, Completion], target: Any, known: int) -> None:
    """What rows have is what the target says of them."""
    found = list(rows.values())
    for row, again in zip(found, rescore_rows(target, found, known).rows, strict=True):
        assert row.top.ids.shape == (len(row.tokens), known)
        np.testing.assert_array_equal(row.top.ids, again.top.ids)
        # Kept in half precision: steps of 2^-10 of itself.
        np.testing.assert_allclose(row.top.logp.astype(float), again.top.logp.astype(float), rtol=1.1e-3, atol=1e-3)


@pytest.mark.parametrize("known", [1, 5, 131])
def test_likeliest_tokens_are_those_of_the_servers(serve, target, requests, decoding, known):
    """In any order, and the sampled one among them where it is none of them."""
    server = serve()
    rows, refused = ask(part(server), requests, decoding._replace(top_logprobs=known))
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert {body["logprobs"] for body in server.bodies} == {known}
    likeliest(rows, target, known)


def test_likeliest_tokens_are_found_where_llama_server_reports_them(serve, target, requests, decoding):
    def as_content(answer: Any) -> Any:
        choice = answer["choices"][0]
        said = zip(*(choice["logprobs"][name] for name in ("token_logprobs", "top_logprobs")), strict=True)
        content = [
            {"id": token, "logprob": logp, "top_logprobs": [{"id": int(i[9:]), "logprob": of} for i, of in top.items()]}
            for token, (logp, top) in zip(choice["token_ids"], said, strict=True)
        ]
        return answer | {"choices": [choice | {"token_ids": None, "logprobs": {"content": content}}]}

    rows, _ = ask(part(serve(change=as_content)), requests, decoding._replace(top_logprobs=5))
    likeliest(rows, target, 5)


def test_likeliest_tokens_are_not_asked_for_where_the_target_reports_them(serve, requests, decoding):
    server = serve()
    rows, _ = ask(part(server), requests, decoding)
    assert {body["logprobs"] for body in server.bodies} == {1}
    assert {row.top for row in rows.values()} == {None}


def said_of_each_place(change: Any) -> Any:
    """A server that says other most likely tokens of each place."""

    def of_answer(answer: Any) -> Any:
        choice = answer["choices"][0]
        logprobs = choice["logprobs"] | {"top_logprobs": [change(top) for top in choice["logprobs"]["top_logprobs"]]}
        return answer | {"choices": [choice | {"logprobs": logprobs}]}

    return of_answer


def renamed(name: Any) -> Any:
    """A server that has other names for ids."""
    return lambda top: {name(int(known.removeprefix("token_id:"))): logp for known, logp in top.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda top: dict.fromkeys(top, 0.5), "log-probabilities of most likely tokens above zero or NaN"),
        (lambda top: dict.fromkeys(top, float("nan")), "log-probabilities of most likely tokens above zero or NaN"),
        (lambda top: dict.fromkeys(top, -0.5), "most likely tokens whose probabilities sum to more than 1"),
        (lambda top: dict.fromkeys(top), "most likely tokens that are not numbers"),
        (renamed(lambda i: f"token_id:{i}x"), "most likely tokens that are not numbers"),
        (renamed(lambda i: f"token_id:{i + 131}"), "token ids outside the target's vocabulary"),
        (renamed(lambda i: f"token_id:{-1 - i}"), "token ids outside the target's vocabulary"),
    ],
)
def test_likeliest_tokens_that_cannot_be_are_counted(serve, requests, decoding, change, reason):
    server = serve(change=said_of_each_place(change))
    rows, refused = ask(part(server), requests[:5], decoding._replace(top_logprobs=5, vocab_rows=131))
    assert (rows, refused) == ({}, Counter({reason: 5}))


def test_likeliest_tokens_that_some_places_lack_are_counted(serve, requests, decoding):
    def shorter(answer: Any) -> Any:
        logprobs = answer["choices"][0]["logprobs"]
        return changed(logprobs=logprobs | {"top_logprobs": [*logprobs["top_logprobs"], {"token_id:1": -1.0}]})(answer)

    rows, refused = ask(part(serve(change=shorter)), requests[:5], decoding._replace(top_logprobs=5))
    assert (rows, refused) == ({}, Counter({"most likely tokens that are missing for some tokens": 5}))


def test_where_a_server_reports_too_few_the_target_reads_the_row(serve, target, requests, decoding):
    server = serve(change=said_of_each_place(lambda top: dict(list(top.items())[:3])))
    with pytest.warns(
        UserWarning, match="gives fewer than 5 most likely tokens at some places: the target reads those"
    ):
        rows, refused = ask(part(server), requests, decoding._replace(top_logprobs=5))
    assert not refused
    assert {row.top for row in rows.values()} == {None}
    scored = rescorer("raw", True, lambda: target, 5)(list(rows.values()))
    likeliest({row.key: row for row in scored.rows}, target, 5)
    assert len(scored.rows) == 41


def test_excluded_tokens_have_the_least_log_probability_that_is_kept(serve, requests, decoding):
    """As JSON of Python says minus infinity."""
    server = serve(change=said_of_each_place(lambda top: dict(list(top.items())[:1]) | {"token_id:130": -np.inf}))
    rows, _ = ask(part(server), requests[:2], decoding._replace(top_logprobs=2))
    assert all((row.top.logp[:, 1] == np.float16(-6e4)).all() for row in rows.values())


@pytest.mark.parametrize("change", [renamed(lambda i: f" {i}"), lambda _: None])
def test_likeliest_tokens_by_their_texts_stop(serve, requests, decoding, change):
    with pytest.raises(ServerError, match=r"gives no most likely tokens by their ids[^\0]*\n  do: use a server that"):
        ask(part(serve(change=said_of_each_place(change))), requests, decoding._replace(top_logprobs=5))


def test_a_server_that_gives_no_so_many_stops(serve, requests, decoding):
    server = serve(faults=lambda _: "400", error="Requested sample logprobs of 21, which is greater than 20")
    with pytest.raises(ServerError, match=r"no 21 most likely tokens: [^\0]* than 20[^\0]*\n  do: raise the server"):
        ask(part(server), requests, decoding._replace(top_logprobs=21))
    rows, refused = ask(part(server), requests[:2], decoding)
    assert (rows, refused) == ({}, Counter({"the server answered HTTP 400": 2}))


def test_an_end_that_a_server_left_out_leaves_its_row_to_the_target(serve, requests, decoding):
    def without_end(answer: Any) -> Any:
        choice = answer["choices"][0]
        if choice["finish_reason"] != "stop" or len(choice["token_ids"]) == 1:
            return answer
        said = {name: values[:-1] for name, values in choice["logprobs"].items()}
        return changed(token_ids=choice["token_ids"][:-1], logprobs=said)(answer)

    server = serve(change=without_end, eos=frozenset(range(0, 131, 5)))
    rows, _ = ask(part(server), requests, decoding._replace(top_logprobs=5, eos=server.eos))
    ended = [row for row in rows.values() if len(row.tokens) > 1 and int(row.tokens[-1]) in server.eos]
    assert len(ended) >= 7
    assert {row.top for row in ended} == {None}


def test_texts_are_tokenised_again_and_have_no_log_probabilities(serve, requests, decoding):
    server = serve(change=changed(token_ids=None, logprobs=None))
    answer = server.answer
    server.answer = lambda body: answer(body | {"prompt": [int(i) for i in body["prompt"].split()]})
    rows, _ = ask(part(server, text_only=True), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert all(len(row.logp) == 0 for row in rows.values())


def test_a_text_that_tokens_do_not_give_back_is_counted(serve, requests, decoding):
    server = serve(change=changed(text="1  2"))  # two spaces
    answer = server.answer
    server.answer = lambda body: answer(body | {"prompt": [1, 2]})
    rows, refused = ask(part(server, text_only=True), requests, decoding)
    assert (rows, refused) == ({}, Counter({"text that its tokens do not decode to": 41}))


def test_a_prompt_whose_text_gives_other_tokens_is_not_asked(serve, requests, decoding):
    """A text that begins with 0 is read with other tokens than those that it was made of."""
    server = serve(change=changed(token_ids=None, logprobs=None))
    answer = server.answer
    server.answer = lambda body: answer(body | {"prompt": [int(i) for i in body["prompt"].split()]})

    class Misreader(Speller):
        def __call__(self, text: str, **given: Any) -> Any:
            return super().__call__(text.replace("7", "8") if text.startswith("0 ") else text, **given)

    shards = ServerEngine(part(server, text_only=True), decoding, Misreader()).shards(
        with_keys(requests, decoding), KeySet()
    )
    found = list(shards)
    refused = sum((shard.refused for shard in found), Counter())
    begun = sum(request.prompt[0] == 0 for request in requests)
    assert refused == Counter({"prompts whose text gives other tokens": begun})
    assert sum(len(shard.rows) for shard in found) == server.asked == 41 - begun > 9


def test_what_is_stored_is_not_asked_for(serve, requests, decoding):
    server, stored = serve(), KeySet()
    stored.add(sorted(keys(requests, decoding))[:30])
    rows, _ = ask(part(server), requests, decoding, stored)
    assert (len(rows), server.asked) == (11, 11)


@pytest.mark.slow
def test_a_server_is_kept_nine_tenths_busy(serve, requests, decoding):
    """Four places, half a second for an answer: 8 rows a second are all that it can do."""
    server, places, seconds = serve(delay_seconds=0.5, places=4), 4, 0.5
    one = server.answer({"temperature": 1, "top_k": -1, "top_p": 1, "prompt": [3], "max_tokens": 11, "seed": 3})
    server.answer = lambda _: one
    asked = [replace(request, index=100 * i + request.index) for i in range(4) for request in requests]
    started = time.monotonic()
    rows, _ = ask(part(server, concurrent_requests=8), asked, decoding)
    taken = time.monotonic() - started
    assert len(rows) == len(asked) == 164
    assert len(rows) * seconds / places >= 0.9 * taken
