"""How the tests check signatures of the library: the shapes of arrays, by jaxtyping and beartype, and nothing else.

Checking every call of every function doubles the time of the tests, so that what has no array is left as it is, and a
function is checked at its first call in each test.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

tests_begun = 0  # conftest.py counts


def check_shapes_of(modules: list[str]) -> None:
    """Check the functions and dataclasses of modules that are imported from now on."""
    jaxtyping.jaxtyped = of_arrays(jaxtyping.jaxtyped)  # the hook writes `@jaxtyping.jaxtyped(...)` into the modules
    install_import_hook(modules, "tests.shapes.checked")


def of_arrays(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyped`, but for functions that have no array or stand in another function; others at first."""

    def decorator_of(typechecker: Any) -> Callable[[Any], Any]:
        def decorated(function: Any) -> Any:
            hints = inspect.get_annotations(function)
            if not any(map(mentions_array, hints.values())) or "<locals>" in function.__qualname__:
                return function
            always = jaxtyped(typechecker=typechecker)(function)
            return always if inspect.isclass(function) else at_first(always, function)

        return decorated

    return lambda *, typechecker: decorator_of(typechecker)


def at_first(checking: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The first call in each test goes to `checking`, the others to the function itself."""
    checked_in = -1  # the last test that did; before any, there is none

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked_in
        is_first, checked_in = checked_in != tests_begun, tests_begun
        return (checking if is_first else function)(*args, **kwargs)

    return called


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checking every argument and result whose annotation holds an array with a shape."""
    function.__annotations__ = {n: hint for n, hint in function.__annotations__.items() if holds_array(hint)}
    return beartype(function)


def mentions_array(hint: Any) -> bool:
    """Whether an annotation holds an array; one that is still text may."""
    return isinstance(hint, str) or holds_array(hint)


def holds_array(hint: Any) -> bool:
    """Whether a jaxtyping array stands anywhere in an annotation."""
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(holds_array, flat(get_args(hint))))


def flat(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of an annotation; those of a Callable stand in a list of their own."""
    return [a for argument in arguments for a in (argument if isinstance(argument, list) else [argument])]
