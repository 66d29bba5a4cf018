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
    """An error that the user can mend: its message alone names the value, what is allowed, and what to do.

    The entry points print it without a traceback. `messages` holds one line per error found.
    """

    def __init__(self, messages: str | Iterable[str]):
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


def is_there(path: str, folder: bool = False) -> bool:
    """Whether the file or folder (or the folder, if that is asked for) that a user named is there; `~` is the home.

    An empty name is not there, nor one that no file system takes: too long, or below the home of an unknown user.
    """
    try:
        place = Path(path).expanduser()
        return bool(path) and (place.is_dir() if folder else place.exists())
    except (OSError, RuntimeError, ValueError):
        return False


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: `; did you mean 'toroidal'?`, or a full stop where none is near."""
    matches = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else "."


@dataclass(frozen=True)
class Component:
    """A registered object with the place it was defined at and its optional extra check."""

    name: str
    target: Any
    check: Callable[..., list[str]] | None
    defined_at: str


class Registry:
    """Components of one kind, by name.

    Args:
        kind: what a component is, for error messages ("attention replacement").
        package: a package whose modules are imported at the first look-up, so that a new component is one new file.
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self._package = package
        self._components: dict[str, Component] = {}

    def register(self, name: str, check: Callable[..., list[str]] | None = None) -> Callable[[Any], Any]:
        """Decorator that makes an object known as `name`.

        `check(**arguments)` may look at the arguments together with what else is known before anything is built (the
        model's shape, say) and returns a message for each thing that is wrong.

        Raises:
            ValueError: the name is taken; both places of definition are named.
        """

        def add(target: Any) -> Any:
            place = _place(target)
            taken = self._components.get(name)
            if taken is not None and taken.defined_at != place:
                raise ValueError(f"{self.kind} {name!r} is registered twice: at {taken.defined_at} and at {place}")
            self._components[name] = Component(name, target, check, place)
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
        """The registered object itself. Raises UserError with the allowed names for an unknown one."""
        return self._component(name).target

    def build(self, name: str, **arguments: Any) -> Any:
        """Call the component, after its arguments were checked against its signature.

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
        given: Iterable[str] = (),
        shared: Sequence[str] = (),
        label: str | None = None,
        **context: Any,
    ) -> list[str]:
        """Messages for everything that is wrong with `arguments`, without building anything.

        Args:
            given: parameters that the caller will supply when it builds.
            shared: keys that stand beside the component's own in the config, and are allowed there too.
            label: how messages begin; None: kind and name.
            context: handed to the component's own check as far as that asks for it; where something is missing that
                it asks for, it is left out.
        """
        if name not in self:
            return [self._unknown(name)]
        component = self._component(name)
        wrong = wrong_arguments(component.target, arguments, label or f"{self.kind} {name!r}", given, shared)
        errors = [message for messages in wrong.values() for message in messages]
        if component.check is not None:
            wanted = inspect.signature(component.check).parameters
            right = {key: value for key, value in arguments.items() if key not in wrong}
            known = {**defaults(component.target), **right, **context}
            if all(key in known or item.default is not item.empty for key, item in wanted.items()):
                errors += component.check(**{key: known[key] for key in wanted if key in known})
        return errors

    def describe(self, name: str) -> dict[str, Any]:
        """Name, first line of the docstring, parameters with their defaults, and the place of definition."""
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


def defaults(target: Any) -> dict[str, Any]:
    """Parameter names and default values of a callable (those without a default are left out)."""
    empty = inspect.Parameter.empty
    made = {field.name: field.default_factory for field in fields(target)} if is_dataclass(target) else {}
    return {
        name: item.default if made.get(name, MISSING) is MISSING else made[name]()
        for name, item in parameters(target).items()
        if item.default is not empty
    }


def signature_errors(target: Any, arguments: Mapping[str, Any], label: str, given: Iterable[str] = ()) -> list[str]:
    """What is wrong with `arguments` as keyword arguments of `target`: unknown, missing, ill-typed, out of range.

    Types and ranges come from the annotations (`Literal`, `Annotated[int, Field(ge=1)]`, ...) and are checked by
    pydantic, strictly: the text "3" is no integer, and inf and nan are no numbers. Parameters named in `given` are
    supplied by the caller later.
    """
    return [message for messages in wrong_arguments(target, arguments, label, given).values() for message in messages]


def wrong_arguments(
    target: Any, arguments: Mapping[str, Any], label: str, given: Iterable[str] = (), shared: Sequence[str] = ()
) -> dict[str, list[str]]:
    """As `signature_errors`: key -> what is wrong with it. Keys in `shared` are named as allowed too."""
    from pydantic import ValidationError

    known, named, model = _arguments_model(target, frozenset(given))
    takes_any = any(item.kind is item.VAR_KEYWORD for item in known.values())
    allowed = [*shared, *named]
    wrong = {
        key: [f"{label} has no key {key!r}{nearest(key, allowed)} Allowed: {', '.join(allowed) or '(none)'}"]
        for key in arguments
        if key not in known and not takes_any
    }
    try:
        model(**{key: value for key, value in arguments.items() if key in named})
    except ValidationError as error:
        for item in error.errors():
            key = str(item["loc"][0])
            message = (
                f"{label} needs a value for {key!r}"
                if item["type"] == "missing"
                else f"{label}: {key}={item['input']!r} is not valid: {item['msg']}"
            )
            if message not in wrong.setdefault(key, []):
                wrong[key].append(message)
    return wrong


@cache
def _arguments_model(target: Any, given: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """All parameters of a callable, those that are checked, and the pydantic model that checks them.

    It is made once, since that takes a millisecond and a sweep of a thousand jobs asks for ten thousand.
    """
    from pydantic import ConfigDict, create_model

    known = parameters(target)
    named = {
        name: item
        for name, item in known.items()
        if name not in given and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    types = {  # a dataclass is handed over by code, not by a config
        name: (
            Any if item.annotation is item.empty or is_dataclass(item.annotation) else item.annotation,
            ... if item.default is item.empty else item.default,
        )
        for name, item in named.items()
    }
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return known, named, create_model("Arguments", __config__=config, **types)


def _place(target: Any) -> str:
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (TypeError, OSError):  # an instance, or an object defined at a prompt
        frame = inspect.stack()[2]
        return f"{frame.filename}:{frame.lineno}"
