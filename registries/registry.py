"""Named components: the one mechanism behind every config group.

A component registers itself with a decorator and is then built by its name; its keyword arguments, with their
annotations and defaults, are its configuration schema:

    ATTENTION = Registry("attention replacement", package="registries.attention")

    @ATTENTION.register("window")
    class WindowAttention(nn.Module): ...

    ATTENTION.build("window", window=64, shape=shape)
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any


class UserError(Exception):
    """An error that the user can mend: its message names the value, what is allowed, and what to do.

    The entry points print it without a traceback. `messages` holds one line per error.
    """

    def __init__(self, messages: str | Iterable[str]):
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


def is_there(path: str, folder: bool = False) -> bool:
    """Whether a user's path leads to a file or folder, or to a folder if `folder`; `~` is the home.

    An empty name leads nowhere, nor does a name that no file system takes: too long, or below an unknown user's home.
    """
    try:
        location = Path(path).expanduser()
        return bool(path) and (location.is_dir() if folder else location.exists())
    except (OSError, RuntimeError, ValueError):
        return False


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: `; did you mean 'toroidal'?`, or a full stop without a near match."""
    matches = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else "."


@dataclass(frozen=True)
class Component:
    """A registered object with its optional check, and the file and line of its definition."""

    name: str
    target: Any
    check: Callable[..., list[str]] | None
    defined_at: str


class Registry:
    """Components of one kind, by name.

    Args:
        kind: noun for a component in error messages ("attention replacement").
        package: a package whose modules are imported at the first look-up, so that a new component is one new file.
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self._package = package
        self._components: dict[str, Component] = {}

    def register(self, name: str, check: Callable[..., list[str]] | None = None) -> Callable[[Any], Any]:
        """Decorator that registers an object as `name`.

        `check(**arguments)` returns a message for each error in the arguments. It may also ask for context that is
        known before anything is built, such as the model's shape.

        Raises:
            ValueError: the name is taken; the message names both definitions.
        """

        def add(target: Any) -> Any:
            definition = _definition(target)
            taken = self._components.get(name)
            if taken is not None and taken.defined_at != definition:
                raise ValueError(f"{self.kind} {name!r} is registered twice: at {taken.defined_at} and at {definition}")
            self._components[name] = Component(name, target, check, definition)
            return target

        return add

    def names(self) -> list[str]:
        """The registered names, sorted."""
        self._import_package()
        return sorted(self._components)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def get(self, name: str) -> Any:
        """The registered object itself. Raises UserError with the allowed names for an unknown name."""
        return self._component(name).target

    def build(self, name: str, **arguments: Any) -> Any:
        """Call the component after checking its arguments against its signature.

        Raises:
            UserError: every unknown, missing or ill-typed argument, in one error.
        """
        component = self._component(name)
        errors = signature_errors(component.target, arguments, f"{self.kind} {name!r}")
        if errors:
            raise UserError(errors)
        return component.target(**arguments)

    def check(
        self,
        name: str,
        arguments: Mapping[str, Any],
        supplied: Iterable[str] = (),
        shared: Sequence[str] = (),
        label: str | None = None,
        **context: Any,
    ) -> list[str]:
        """Messages for everything that is wrong with `arguments`, without building anything.

        Args:
            supplied: parameters that the caller will supply when it builds.
            shared: keys that stand beside the component's own in the config, and are allowed there too.
            label: how messages begin; None: kind and name.
            context: for the component's own check, which gets what it asks for of arguments, defaults and context; it
                is left out where something that it needs is missing.
        """
        if name not in self:
            return [self._unknown(name)]
        component = self._component(name)
        wrong = wrong_arguments(component.target, arguments, label or f"{self.kind} {name!r}", supplied, shared)
        errors = [message for messages in wrong.values() for message in messages]
        if component.check is not None:
            needed = inspect.signature(component.check).parameters
            right = {key: value for key, value in arguments.items() if key not in wrong}
            available = {**defaults(component.target), **right, **context}
            if all(key in available or parameter.default is not parameter.empty for key, parameter in needed.items()):
                errors += component.check(**{key: available[key] for key in needed if key in available})
        return errors

    def describe(self, name: str) -> dict[str, Any]:
        """Name, first line of the docstring, parameters with their defaults, and file and line of the definition."""
        component = self._component(name)
        return {
            "name": name,
            "summary": (inspect.getdoc(component.target) or "").split("\n")[0],
            "parameters": defaults(component.target),
            "defined_at": component.defined_at,
        }

    def _component(self, name: str) -> Component:
        self._import_package()
        if name not in self._components:
            raise UserError(self._unknown(name))
        return self._components[name]

    def _unknown(self, name: str) -> str:
        names = self.names()
        return f"unknown {self.kind} {name!r}{nearest(name, names)} Allowed: {', '.join(names) or '(none)'}"

    def _import_package(self) -> None:
        if self._package is None:
            return
        package, self._package = importlib.import_module(self._package), None
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The named parameters of a callable; annotations are resolved to types."""
    return dict(inspect.signature(target, eval_str=True).parameters)


def taken(target: Any, **supplied: Any) -> dict[str, Any]:
    """Those of the supplied arguments that a callable takes."""
    return {name: supplied[name] for name in supplied.keys() & parameters(target).keys()}


def defaults(target: Any) -> dict[str, Any]:
    """Parameter names and default values of a callable (those without a default are left out)."""
    factories = {field.name: field.default_factory for field in fields(target)} if is_dataclass(target) else {}
    return {
        name: parameter.default if factories.get(name, MISSING) is MISSING else factories[name]()
        for name, parameter in parameters(target).items()
        if parameter.default is not parameter.empty
    }


def signature_errors(target: Any, arguments: Mapping[str, Any], label: str, supplied: Iterable[str] = ()) -> list[str]:
    """Messages about unknown, missing, ill-typed and out-of-range keyword arguments of `target`.

    Types and ranges come from the annotations (`Literal`, `Annotated[int, Ge(1)]`, ...) and are checked by pydantic,
    strictly: the text "3" is no integer, and inf and nan are no numbers. The caller supplies the parameters `supplied`
    later.
    """
    return [
        message for messages in wrong_arguments(target, arguments, label, supplied).values() for message in messages
    ]


def wrong_arguments(
    target: Any, arguments: Mapping[str, Any], label: str, supplied: Iterable[str] = (), shared: Sequence[str] = ()
) -> dict[str, list[str]]:
    """As `signature_errors`, by key: the messages about each wrong argument. Keys in `shared` are named as allowed."""
    from pydantic import ValidationError

    all_parameters, checked, model = _arguments_model(target, frozenset(supplied))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in all_parameters.values())
    allowed = [*shared, *checked]
    wrong = {
        key: [f"{label} has no key {key!r}{nearest(key, allowed)} Allowed: {', '.join(allowed) or '(none)'}"]
        for key in arguments
        if key not in all_parameters and not takes_any
    }
    try:
        model(**{key: value for key, value in arguments.items() if key in checked})
    except ValidationError as error:
        for detail in error.errors():
            key = str(detail["loc"][0])
            message = (
                f"{label} needs a value for {key!r}"
                if detail["type"] == "missing"
                else f"{label}: {key}={detail['input']!r} is not valid: {detail['msg']}"
            )
            if message not in wrong.setdefault(key, []):
                wrong[key].append(message)
    return wrong


@cache
def _arguments_model(target: Any, supplied: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """All parameters of a callable, the checked ones among them, and the pydantic model that checks these.

    The model is kept, since making it takes a millisecond and a sweep of a thousand jobs needs it ten thousand times.
    """
    from pydantic import ConfigDict, create_model

    all_parameters = parameters(target)
    checked = {
        name: parameter
        for name, parameter in all_parameters.items()
        if name not in supplied and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    types = {}
    for name, parameter in checked.items():
        annotation, default, empty = parameter.annotation, parameter.default, parameter.empty
        any_type = annotation is empty or is_dataclass(annotation)  # code supplies a dataclass, no config does
        types[name] = (Any if any_type else annotation, ... if default is empty else default)
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return all_parameters, checked, create_model("Arguments", __config__=config, **types)


def _definition(target: Any) -> str:
    """The file and line at which an object is defined."""
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (TypeError, OSError):  # an instance, or an object defined at a prompt
        frame = inspect.currentframe().f_back.f_back  # not inspect.stack(), which reads every file on the stack
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"
