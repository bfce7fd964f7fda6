import pytest

from service.security.keys import ApiKey, KeyEntryError, KeyRing, Scope

HASH = "ab" * 32


def test_a_key_is_found_by_itself_only() -> None:
    made = [ApiKey.make(name=f"key-{number}", scope=Scope.READ) for number in range(3)]
    ring = KeyRing.parse(",".join(entry.to_entry() for entry, _ in made))
    for entry, key in made:
        assert ring.find(key.encode()) == entry
        assert key not in entry.to_entry()
        assert ring.find(entry.sha256.encode()) is None  # what is kept opens nothing
        assert ring.find(key[:-1].encode()) is None
    assert ring.find(b"") is None


def test_every_key_is_another() -> None:
    keys = {ApiKey.make(name="a", scope=Scope.BUILD)[1] for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 43


def test_entries_survive_being_written(subtests: pytest.Subtests) -> None:
    for rate in (None, 0.001, 0.5, 20.0, 1234.0, 100_000.0, 999_999.9, 123_456.789):
        with subtests.test(rate=rate):
            entry = ApiKey(name="ci.build-1_x", scope=Scope.BUILD, sha256=HASH, rate=rate)
            assert ApiKey.from_entry(entry.to_entry()) == entry


@pytest.mark.parametrize("rate", [0.0003, 0.0167, 1 / 3, 999_999.9999, 0.0, 1e6, float("nan")])
def test_a_rate_that_no_entry_can_state_is_refused(rate: float) -> None:
    with pytest.raises(KeyEntryError, match=r"at most 3 decimals|above 0 and below"):
        ApiKey(name="ci", scope=Scope.READ, sha256=HASH, rate=rate)


def test_comments_and_blank_lines_are_no_entries() -> None:
    ring = KeyRing.parse(f"# keys\n\n a:read:{HASH}  # of a\nb:build:{HASH},c:read:{HASH}:5\n")
    assert [key.name for key in ring.keys] == ["a", "b", "c"]
    assert ring.keys[2].rate == 5.0


@pytest.mark.parametrize(
    "entry",
    [
        "a:read",
        f"a:write:{HASH}",
        f"a:read:{HASH[:-1]}",
        f"a:read:{HASH[:-1]}g",
        f"a:read:{HASH}:fast",
        f"a:read:{HASH}:0",
        f"a:read:{HASH}:1e9",
        f"a:read:{HASH}:-1",
        f":read:{HASH}",
        f"a b:read:{HASH}",
        f"{'n' * 65}:read:{HASH}",
        f"ä:read:{HASH}",
        f"a:read:{HASH}:1:2",
    ],
)
def test_a_malformed_entry_is_refused_without_showing_its_hash(entry: str) -> None:
    with pytest.raises(KeyEntryError, match="entry 2") as refused:
        KeyRing.parse(f"good:read:{HASH}\n{entry}")
    assert HASH[:20] not in str(refused.value)


def test_a_name_is_given_once() -> None:
    with pytest.raises(KeyEntryError, match="same name"):
        KeyRing.parse(f"a:read:{HASH}\na:build:{HASH}")
