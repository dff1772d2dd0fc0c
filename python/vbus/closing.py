"""What must be closed has these in common."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn, Self

__all__ = ["Closing", "ClosingSlowly"]


class Closing:
    """Closed on leaving `with` or `async with`, and never pickled: it belongs to its process."""

    __slots__ = ()

    if TYPE_CHECKING:

        def close(self) -> None:
            """What every one of them has."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # The name that people know it by, whatever was made of it.
        ours = {Closing, ClosingSlowly}
        known = next(cls for cls in type(self).__mro__ if ours.intersection(cls.__bases__))
        raise TypeError(f"a {known.__name__} cannot be pickled; open a node in the worker")


class ClosingSlowly(Closing):
    """Closing may take seconds, for what is under way; an event loop goes on meanwhile."""

    __slots__ = ()

    if TYPE_CHECKING:

        def close(self, linger: float = 2.0) -> None:
            """What every one of them has."""

    async def close_async(self, linger: float = 2.0) -> None:
        """`close` for asyncio; a cancellation does not stop the closing."""
        import asyncio

        await asyncio.shield(asyncio.to_thread(self.close, linger))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close_async()
