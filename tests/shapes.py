"""How the tests check the library's signatures: the shapes of their arrays, by beartype, and nothing else."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checking every argument and result whose annotation holds an array with a shape."""
    function.__annotations__ = {n: hint for n, hint in function.__annotations__.items() if holds_array(hint)}
    return beartype(function)


def holds_array(hint: Any) -> bool:
    """Whether a jaxtyping array stands anywhere in an annotation."""
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(holds_array, flat(get_args(hint))))


def flat(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of an annotation; those of a Callable stand in a list of their own."""
    return [a for argument in arguments for a in (argument if isinstance(argument, list) else [argument])]
