"""Time that passes when a test says so."""


class Clock:
    """The event loop's time, for all that ask the running loop for it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return False
