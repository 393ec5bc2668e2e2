"""The engine `server` against a server on loopback: each request is completed exactly once, whatever the faults."""

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


class NumberTokenizer:
    """Texts are the token ids as decimal numbers."""

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Encoded", (), {"input_ids": [int(number) for number in text.split()]})


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
    """All completions by key, and the number of refused requests by reason."""
    rows: dict[str, Completion] = {}
    refused: Counter[str] = Counter()
    for shard in ServerEngine(servers, decoding, NumberTokenizer()).shards(
        with_keys(requests, decoding), stored or KeySet()
    ):
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
    # At T = 1 without top-k and top-p, raw log-probabilities equal processed ones.
    plain = [row for row in rows.values() if row.sampling.temperature == 1]
    assert len(plain) >= 13
    for before, after in zip(plain, rescore_rows(target, plain).rows, strict=True):
        np.testing.assert_allclose(before.logp, after.logp, atol=1e-4)


def test_rescoring_gives_log_probabilities_under_the_distribution(serve, target, requests, decoding, tmp_path):
    engine, store = ServerEngine(part(serve()), decoding, NumberTokenizer()), CompletionStore(tmp_path)
    rescore = rescorer(engine.logprobs_mode, True, lambda: target)
    with Bar("test", 41, "rows") as bar:
        assert not write_completions(engine, with_keys(requests, decoding), store, decoding, bar, rescore)
    rows = store.read()
    assert len(rows) == 41
    for before, after in zip(rows, rescore_rows(target, rows).rows, strict=True):
        np.testing.assert_allclose(before.logp, after.logp, atol=1e-4)


def test_a_missing_package_of_httpx_is_not_searched_at_each_request(serve, requests, decoding, monkeypatch):
    """A failing import search takes longer than the rest of a request."""

    class Searches:
        count = 0

        def find_spec(self, name: str, *_: Any) -> None:
            self.count += name == "sniffio"

    searches = Searches()
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
    ask(part(serve()), requests, decoding)
    assert 1 <= searches.count <= 2


def test_requests_set_every_option_that_has_a_default_in_servers(serve, requests, decoding):
    server = serve()
    ask(part(server), requests[:3], decoding)
    greedy, plain, warped = sorted(server.bodies, key=lambda body: (body["temperature"] != 0, body["top_k"]))
    assert (greedy["temperature"], greedy["max_tokens"], greedy["repetition_penalty"]) == (0, 11, 1)
    assert (plain["temperature"], plain["top_k"], plain["top_p"]) == (1, -1, 1)
    assert (warped["temperature"], warped["top_k"], warped["top_p"]) == (0.7, 13, 0.9)
    assert len({body["seed"] for body in server.bodies}) == 3


@pytest.mark.parametrize("fault", ["500", "429", "cut", "half", "garbage", "nested", "no gzip"])
def test_occasional_faults_lose_nothing(serve, requests, decoding, fault):
    server = serve(faults=lambda number: fault if number % 5 == 2 else None)
    rows, refused = ask(part(server), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert server.requested > len(requests), "there were faults"


def test_a_request_that_times_out_is_sent_again(serve, requests, decoding):
    server = serve(faults=lambda number: "silence" if number in (3, 7) else None)
    rows, _ = ask(part(server, timeout_seconds=2.0, attempts=20), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert server.requested >= len(requests) + 2


def test_a_request_that_always_fails_is_refused(serve, requests, decoding):
    server = serve(faults=lambda _: "500")
    rows, refused = ask(part(server, attempts=3), requests[:5], decoding)
    assert (rows, refused) == ({}, Counter({"HTTP 500, 3 times": 5}))
    assert server.requested == 15


def test_a_request_that_the_server_rejects_is_not_sent_again(serve, requests, decoding):
    server = serve(faults=lambda number: "400" if number < 2 else None)
    rows, refused = ask(part(server), requests, decoding)
    assert refused == Counter({"the server answered HTTP 400": 2})
    assert (len(rows), server.requested) == (39, 41)


def test_a_server_may_stop_and_return(serve, requests, decoding):
    server = serve(delay_seconds=0.02)
    server.faults = lambda number: server.die_for(0.3) if number == 9 else None
    rows, refused = ask(part(server, attempts=9), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused


def test_if_one_of_two_servers_stops_the_other_answers_all(serve, requests, decoding):
    stopping, living = serve(delay_seconds=0.01), serve(delay_seconds=0.01)
    stopping.faults = lambda number: stopping.stop() if number == 5 else None
    rows, refused = ask(part(stopping, living), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert living.answered > 30


def test_the_faster_of_two_servers_answers_more(serve, requests, decoding):
    slow, fast = serve(delay_seconds=1.0), serve(delay_seconds=0.01)
    rows, _ = ask(part(slow, fast, concurrent_requests=2), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert fast.answered > 2 * slow.answered > 0


def test_no_reachable_server_is_an_error(serve, requests, decoding):
    server = serve()
    server.stop()
    with pytest.raises(ServerError, match=r"no server has answered for [^\0]*\n  do: .*synthesize.server.urls"):
        ask(part(server, attempts=3), requests, decoding)


def test_completions_received_before_all_servers_stopped_are_kept(serve, requests, decoding, tmp_path):
    server, store = serve(), CompletionStore(tmp_path)
    server.faults = lambda number: server.stop() if number == 20 else None
    engine = ServerEngine(part(server, attempts=4), decoding, NumberTokenizer())
    with Bar("test", 41, "rows") as bar, pytest.raises(ServerError, match="no server has answered"):
        write_completions(
            engine, with_keys(requests, decoding), store, decoding, bar, rescorer("none", True, lambda: server.target)
        )
    assert len(store.stored_keys()) >= 12
    server.faults = lambda _: None
    server.start()
    before = server.requested
    with Bar("test", 41, "rows") as bar:
        write_completions(
            engine, with_keys(requests, decoding), store, decoding, bar, rescorer("none", True, lambda: server.target)
        )
    assert {row.key for row in store.read()} == keys(requests, decoding)
    assert len(store.read()) == 41
    assert server.requested - before < 41


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "other"}, r"serves other, wanted tiny\n  do: .*synthesize.server.model"),
        ({"change": lambda answer: answer | {"model": "other"}}, r"answered as other, wanted tiny\n  do: "),
    ],
)
def test_another_model_is_an_error(serve, requests, decoding, settings, message):
    with pytest.raises(ServerError, match=message):
        ask(part(serve(**settings)), requests, decoding)


def changed(**fields: Any) -> Any:
    """A change of the answer: other fields in its only choice."""
    return lambda answer: answer | {"choices": [answer["choices"][0] | fields]}


def test_a_server_without_log_probabilities_is_an_error(serve, requests, decoding):
    with pytest.raises(ServerError, match=r"no log-probabilities\n  do: .*text_only"):
        ask(part(serve(change=changed(logprobs=None))), requests, decoding)


def test_a_server_without_token_ids_is_an_error(serve, requests, decoding):
    with pytest.raises(ServerError, match=r"without token ids[^\0]*\n  do: .*return_token_ids"):
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
def test_invalid_log_probabilities_are_counted(serve, requests, decoding, logprobs, reason):
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
def test_answers_in_another_format_are_counted(serve, requests, decoding, change):
    server = serve(change=change, eos=frozenset())
    rows, refused = ask(part(server), requests, decoding._replace(top_logprobs=5))
    assert (rows, refused) == ({}, Counter({"answers that are not in OpenAI's format": 41}))


@pytest.mark.parametrize("token", [10**30, 3.0, True, None, "x", [7]], ids=str)
def test_ids_that_are_no_whole_numbers_are_counted(serve, requests, decoding, token):
    rows, refused = ask(part(serve(change=changed(token_ids=[token]))), requests, decoding)
    assert (rows, refused) == ({}, Counter({"token ids that are not whole numbers": 41}))


def test_tokens_after_an_end_of_text_are_cut(serve, requests, decoding):
    server, eos = serve(eos=frozenset()), frozenset(range(0, 131, 5))
    rows, _ = ask(part(server), requests, decoding._replace(eos=eos))
    assert set(rows) == keys(requests, decoding)
    assert all(not eos & set(row.tokens[:-1].tolist()) for row in rows.values())
    assert {len(row.tokens) - len(row.logp) for row in rows.values()} == {0}
    assert sum(int(row.tokens[-1]) in eos for row in rows.values()) >= 7
    assert server.bodies[0]["stop_token_ids"] == sorted(eos)


@pytest.mark.parametrize("status", ["401", "403", "404", "405"])
def test_a_wrong_key_or_address_is_an_error(serve, requests, decoding, status):
    with pytest.raises(ServerError, match=rf"answered HTTP {status}: .*busy[^\0]*\n  do: .*synthesize.server.urls"):
        ask(part(serve(faults=lambda _: status)), requests, decoding)


@pytest.mark.parametrize("url", ["", "a:8000/v1", "ftp://a/v1", "http:///v1", "http://a:99999/v1", "http://[/v1"])
def test_an_invalid_address_is_refused_by_the_recipe(url):
    with pytest.raises(ValueError, match=r"urls\n[^\0]*wanted a URL like http://localhost:8000/v1"):
        ServerPart(urls=[url], model="tiny")


def test_ids_are_read_wherever_servers_return_them(serve, requests, decoding):
    def as_names(answer: Any) -> Any:
        choice = answer["choices"][0]
        logprobs = choice["logprobs"] | {"tokens": [f"token_id:{i}" for i in choice["token_ids"]]}
        return answer | {"choices": [choice | {"token_ids": None, "logprobs": logprobs}]}

    def as_content(answer: Any) -> Any:
        choice = answer["choices"][0]
        pairs = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
        content = [{"id": token, "logprob": logp} for token, logp in pairs]
        return answer | {"choices": [choice | {"token_ids": None, "logprobs": {"content": content}}]}

    unchanged, *changed = [
        ask(part(serve(change=change)), requests, decoding)[0] for change in (lambda a: a, as_names, as_content)
    ]
    for rows in changed:
        for key, row in unchanged.items():
            np.testing.assert_array_equal(rows[key].tokens, row.tokens)
            np.testing.assert_array_equal(rows[key].logp, row.logp)


# --- top tokens


def assert_top_tokens_of_target(rows: dict[str, Completion], target: Any, k: int) -> None:
    completions = list(rows.values())
    for row, expected in zip(completions, rescore_rows(target, completions, k).rows, strict=True):
        assert row.top.ids.shape == (len(row.tokens), k)
        np.testing.assert_array_equal(row.top.ids, expected.top.ids)
        # In half precision: steps of 2^-10 relative.
        np.testing.assert_allclose(row.top.logp.astype(float), expected.top.logp.astype(float), rtol=1.1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [1, 5, 131])
def test_top_tokens_of_servers_are_kept(serve, target, requests, decoding, k):
    """In any order, and without the sampled token if it is not among them."""
    server = serve()
    rows, refused = ask(part(server), requests, decoding._replace(top_logprobs=k))
    assert set(rows) == keys(requests, decoding)
    assert not refused
    assert {body["logprobs"] for body in server.bodies} == {k}
    assert_top_tokens_of_target(rows, target, k)


def test_top_tokens_are_read_in_llama_servers_format(serve, target, requests, decoding):
    def as_content(answer: Any) -> Any:
        choice = answer["choices"][0]
        pairs = zip(*(choice["logprobs"][name] for name in ("token_logprobs", "top_logprobs")), strict=True)
        content = [
            {"id": token, "logprob": logp, "top_logprobs": [{"id": int(i[9:]), "logprob": p} for i, p in top.items()]}
            for token, (logp, top) in zip(choice["token_ids"], pairs, strict=True)
        ]
        return answer | {"choices": [choice | {"token_ids": None, "logprobs": {"content": content}}]}

    rows, _ = ask(part(serve(change=as_content)), requests, decoding._replace(top_logprobs=5))
    assert_top_tokens_of_target(rows, target, 5)


def test_top_tokens_are_not_requested_if_the_target_computes_them(serve, requests, decoding):
    server = serve()
    rows, _ = ask(part(server), requests, decoding)
    assert {body["logprobs"] for body in server.bodies} == {1}
    assert {row.top for row in rows.values()} == {None}


def changed_top_tokens(change: Any) -> Any:
    """A change of the answer: other top tokens at each position."""

    def change_answer(answer: Any) -> Any:
        choice = answer["choices"][0]
        logprobs = choice["logprobs"] | {"top_logprobs": [change(top) for top in choice["logprobs"]["top_logprobs"]]}
        return answer | {"choices": [choice | {"logprobs": logprobs}]}

    return change_answer


def renamed(name: Any) -> Any:
    """A change of top tokens: other names for ids."""
    return lambda top: {name(int(token.removeprefix("token_id:"))): logp for token, logp in top.items()}


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
def test_invalid_top_tokens_are_counted(serve, requests, decoding, change, reason):
    server = serve(change=changed_top_tokens(change))
    rows, refused = ask(part(server), requests[:5], decoding._replace(top_logprobs=5, vocab_rows=131))
    assert (rows, refused) == ({}, Counter({reason: 5}))


def test_top_tokens_for_another_number_of_tokens_are_counted(serve, requests, decoding):
    def longer(answer: Any) -> Any:
        logprobs = answer["choices"][0]["logprobs"]
        return changed(logprobs=logprobs | {"top_logprobs": [*logprobs["top_logprobs"], {"token_id:1": -1.0}]})(answer)

    rows, refused = ask(part(serve(change=longer)), requests[:5], decoding._replace(top_logprobs=5))
    assert (rows, refused) == ({}, Counter({"most likely tokens that are missing for some tokens": 5}))


def test_rows_with_too_few_top_tokens_are_rescored(serve, target, requests, decoding):
    server = serve(change=changed_top_tokens(lambda top: dict(list(top.items())[:3])))
    with pytest.warns(UserWarning, match="fewer than 5 most likely tokens"):
        rows, refused = ask(part(server), requests, decoding._replace(top_logprobs=5))
    assert not refused
    assert {row.top for row in rows.values()} == {None}
    scored = rescorer("raw", True, lambda: target, 5)(list(rows.values()))
    assert_top_tokens_of_target({row.key: row for row in scored.rows}, target, 5)
    assert len(scored.rows) == 41


def test_excluded_tokens_get_the_minimum_log_probability(serve, requests, decoding):
    """Python's JSON can express minus infinity."""
    server = serve(change=changed_top_tokens(lambda top: dict(list(top.items())[:1]) | {"token_id:130": -np.inf}))
    rows, _ = ask(part(server), requests[:2], decoding._replace(top_logprobs=2))
    assert all((row.top.logp[:, 1] == np.float16(-6e4)).all() for row in rows.values())


@pytest.mark.parametrize("change", [renamed(lambda i: f" {i}"), lambda _: None])
def test_top_tokens_named_by_text_are_an_error(serve, requests, decoding, change):
    with pytest.raises(ServerError, match=r"top_logprobs without token ids[^\0]*\n  do: .*top_logprobs_from"):
        ask(part(serve(change=changed_top_tokens(change))), requests, decoding._replace(top_logprobs=5))


def test_a_server_that_rejects_the_number_of_top_tokens_is_an_error(serve, requests, decoding):
    server = serve(faults=lambda _: "400", error="Requested sample logprobs of 21, which is greater than 20")
    with pytest.raises(ServerError, match=r"logprobs=21: [^\0]* than 20[^\0]*\n  do: .*max-logprobs"):
        ask(part(server), requests, decoding._replace(top_logprobs=21))
    rows, refused = ask(part(server), requests[:2], decoding)
    assert (rows, refused) == ({}, Counter({"the server answered HTTP 400": 2}))


def test_a_row_whose_end_of_text_was_left_out_has_no_log_probabilities(serve, requests, decoding):
    def without_end(answer: Any) -> Any:
        choice = answer["choices"][0]
        if choice["finish_reason"] != "stop" or len(choice["token_ids"]) == 1:
            return answer
        logprobs = {name: values[:-1] for name, values in choice["logprobs"].items()}
        return changed(token_ids=choice["token_ids"][:-1], logprobs=logprobs)(answer)

    server = serve(change=without_end, eos=frozenset(range(0, 131, 5)))
    rows, _ = ask(part(server), requests, decoding._replace(top_logprobs=5, eos=server.eos))
    ended = [row for row in rows.values() if len(row.tokens) > 1 and int(row.tokens[-1]) in server.eos]
    assert len(ended) >= 7
    assert {row.top for row in ended} == {None}


def test_texts_are_tokenized_and_have_no_log_probabilities(serve, requests, decoding):
    server = serve(change=changed(token_ids=None, logprobs=None))
    answer = server.answer
    server.answer = lambda body: answer(body | {"prompt": [int(i) for i in body["prompt"].split()]})
    rows, _ = ask(part(server, text_only=True), requests, decoding)
    assert set(rows) == keys(requests, decoding)
    assert all(len(row.logp) == 0 for row in rows.values())


def test_a_text_that_its_tokens_do_not_decode_to_is_counted(serve, requests, decoding):
    server = serve(change=changed(text="1  2"))  # two spaces
    answer = server.answer
    server.answer = lambda body: answer(body | {"prompt": [1, 2]})
    rows, refused = ask(part(server, text_only=True), requests, decoding)
    assert (rows, refused) == ({}, Counter({"text that its tokens do not decode to": 41}))


def test_a_prompt_whose_text_gives_other_tokens_is_not_sent(serve, requests, decoding):
    """This tokenizer reads other tokens in texts that begin with 0."""
    server = serve(change=changed(token_ids=None, logprobs=None))
    answer = server.answer
    server.answer = lambda body: answer(body | {"prompt": [int(i) for i in body["prompt"].split()]})

    class Misreader(NumberTokenizer):
        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text.replace("7", "8") if text.startswith("0 ") else text, **options)

    shards = ServerEngine(part(server, text_only=True), decoding, Misreader()).shards(
        with_keys(requests, decoding), KeySet()
    )
    shards = list(shards)
    refused = sum((shard.refused for shard in shards), Counter())
    misread = sum(request.prompt[0] == 0 for request in requests)
    assert refused == Counter({"prompts whose text gives other tokens": misread})
    assert sum(len(shard.rows) for shard in shards) == server.requested == 41 - misread > 9


def test_stored_completions_are_not_requested(serve, requests, decoding):
    server, stored = serve(), KeySet()
    stored.add(sorted(keys(requests, decoding))[:30])
    rows, _ = ask(part(server), requests, decoding, stored)
    assert (len(rows), server.requested) == (11, 11)


@pytest.mark.slow
def test_a_server_is_kept_nine_tenths_busy(serve, requests, decoding):
    """It can answer 8 requests per second: 4 at a time, half a second each."""
    server, places, seconds = serve(delay_seconds=0.5, places=4), 4, 0.5
    answer = server.answer({"temperature": 1, "top_k": -1, "top_p": 1, "prompt": [3], "max_tokens": 11, "seed": 3})
    server.answer = lambda _: answer
    repeated = [replace(request, index=100 * i + request.index) for i in range(4) for request in requests]
    started = time.monotonic()
    rows, _ = ask(part(server, concurrent_requests=8), repeated, decoding)
    taken = time.monotonic() - started
    assert len(rows) == len(repeated) == 164
    assert len(rows) * seconds / places >= 0.9 * taken
