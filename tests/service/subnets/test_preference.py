import pytest

from service.subnets.preference import MAX_WAIT, preferred_wait


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], (30.0, None)),
        (["wait=5"], (5.0, "wait=5")),
        (['wait="7"'], (7.0, "wait=7")),
        (["respond-async"], (0.0, "respond-async")),
        (["Respond-Async, Wait=3"], (3.0, "wait=3")),
        (["return=minimal", "wait = 0"], (0.0, "wait=0")),
        (["wait=-1"], (30.0, None)),
        (["wait=soon; x=1, handling=lenient"], (30.0, None)),
        (["wait=999999999"], (MAX_WAIT, f"wait={MAX_WAIT}")),
    ],
)
def test_how_long_to_wait(headers: list[str], expected: tuple[float, str | None]) -> None:
    assert preferred_wait(headers, default=30.0) == expected
