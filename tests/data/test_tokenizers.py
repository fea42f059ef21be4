"""What is remembered of texts: bounded by what it takes, not by how many texts there are."""

import threading

from latentwire.data.tokenizers import Remembered


def noted(*, limit: int) -> tuple[Remembered[str, list[str]], list[str]]:
    """A text's letters, and the texts of which they were made."""
    made: list[str] = []

    def make(text: str) -> list[str]:
        made.append(text)
        return list(text)

    return Remembered(make, limit=limit), made


def test_what_was_made_last_is_kept_up_to_the_limit() -> None:
    letters, made = noted(limit=10)
    assert letters("abcd") == letters("abcd") == list("abcd")
    assert letters("efgh") == list("efgh")
    assert made == ["abcd", "efgh"]
    letters("ijkl")  # twelve: the first is dropped
    letters("efgh")
    assert made == ["abcd", "efgh", "ijkl"]
    letters("abcd")
    assert made[-1] == "abcd"


def test_what_alone_is_too_long_is_made_and_not_kept() -> None:
    letters, made = noted(limit=3)
    for _ in range(2):
        assert letters("abcd") == list("abcd")
    assert made == ["abcd"] * 2 and "abcd" not in letters
    assert letters("") == [] == letters("")


def test_threads_may_ask_at_once() -> None:
    together = threading.Barrier(8)
    letters: Remembered[str, list[str]] = Remembered(list, limit=50)

    def ask(number: int) -> None:
        together.wait()
        for step in range(300):
            text = str((number * step) % 37)
            assert letters(text) == list(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert letters._size == sum(map(len, letters._known.values())) <= 50
