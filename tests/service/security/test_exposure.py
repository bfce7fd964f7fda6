import pytest

from service.security.exposure import ExposedError, check_exposure, is_loopback, names_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost"])
def test_this_machine_alone_needs_no_keys(host: str) -> None:
    check_exposure(host, keys=False, anonymous=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7", "nowhere.invalid", "\udcff"])
def test_beyond_it_keys_or_a_word_are_needed(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ExposedError, match="EQNET_ALLOW_ANONYMOUS"):
        check_exposure(host, keys=False, anonymous=False)
    check_exposure(host, keys=True, anonymous=False)
    check_exposure(host, keys=False, anonymous=True)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "a.localhost.", "127.0.0.1", "127.8.9.10:1", "[::1]:8000"]
)
def test_names_that_always_mean_this_machine(host: str) -> None:
    assert names_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "notlocalhost",
        "192.0.2.7",
        "0.0.0.0",
        "[::2]",
        "::1",
        "127.0.0.1:8000:1",
        "127.0.0.1@evil.example",
        "localhost\n",
        "\xff",
        "",
    ],
)
def test_names_that_may_mean_another(host: str) -> None:
    assert not names_loopback(host)
