from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from registries.registry import Registry, UserError, nearest, signature_errors


@pytest.fixture
def shapes():
    """A registry of two components, the first with an extra check that wants to know the room there is."""
    registry = Registry("shape")

    def check(size: int, room: int, hint: str = "") -> list[str]:
        return [f"size={size} does not fit in {room}{hint}"] if size > room else []

    @registry.register("square", check=check)
    def square(size: Annotated[int, Ge(1)], colour: Literal["red", "blue"] = "red", label: str | None = None):
        """A square.

        With four sides.
        """
        return f"{colour} square of {size}"

    @registry.register("circle")
    class Circle:
        def __init__(self, radius: float = 1.0):
            self.radius = radius

    return registry


def test_names_are_sorted(shapes):
    assert shapes.names() == list(shapes) == ["circle", "square"]
    assert "circle" in shapes
    assert "cube" not in shapes


def test_build_calls_the_component(shapes):
    assert shapes.build("square", size=3, colour="blue") == "blue square of 3"
    assert shapes.build("circle").radius == 1.0
    assert shapes.get("circle")(radius=2.0).radius == 2.0


def test_an_unknown_name_names_the_nearest_and_all_others(shapes):
    for call in (shapes.get, shapes.build, shapes.describe):
        with pytest.raises(
            UserError, match="^unknown shape 'sqare'; did you mean 'square'\\? Allowed: circle, square$"
        ):
            call("sqare")
    assert shapes.check("sqare", {}) == ["unknown shape 'sqare'; did you mean 'square'? Allowed: circle, square"]
    with pytest.raises(UserError, match="^unknown shape 'xyz'. Allowed: circle, square$"):
        shapes.get("xyz")
    with pytest.raises(UserError, match=r"Allowed: \(none\)"):
        Registry("nothing").get("x")


def test_a_name_is_taken_once(shapes):
    with pytest.raises(
        ValueError, match=r"shape 'circle' is registered twice: at .*test_registry.py:\d+ and at .*:\d+"
    ):

        @shapes.register("circle")
        def other():
            pass


def test_instances_are_known_by_where_they_were_registered():
    registry = Registry("number")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("one")(2)
    assert registry.get("one") == 1


def test_the_same_definition_may_come_again(shapes):
    """As when a module is imported under two names, or reloaded."""
    shapes.register("circle")(shapes.get("circle"))
    assert shapes.names() == ["circle", "square"]


def test_all_wrong_arguments_are_in_one_error(shapes):
    with pytest.raises(UserError) as caught:
        shapes.build("square", colour="green", label=3, edge=1)
    assert len(caught.value.messages) == 4
    text = str(caught.value)
    assert "shape 'square' has no key 'edge'" in text
    assert "Allowed: size, colour, label" in text
    assert "colour='green' is not valid: Input should be 'red' or 'blue'" in text
    assert "label=3 is not valid" in text
    assert "needs a value for 'size'" in text


@pytest.mark.parametrize(
    ("size", "valid"), [(1, True), (0, False), (-1, False), ("3", False), (2.0, False), (None, False), (True, False)]
)
def test_types_and_ranges_are_strict(shapes, size, valid):
    errors = shapes.check("square", {"size": size}, room=10)
    assert (errors == []) == valid
    assert all("size=" in error for error in errors)


def test_an_integer_is_a_float_and_none_is_allowed_where_it_says_so(shapes):
    assert shapes.check("circle", {"radius": 2}) == []
    assert shapes.check("circle", {"radius": "2"}) != []
    assert shapes.check("square", {"size": 1, "label": None}, room=1) == []


def test_a_misspelt_key_names_the_nearest(shapes):
    (message,) = shapes.check("square", {"size": 1, "color": "red"}, room=1)
    assert message == "shape 'square' has no key 'color'; did you mean 'colour'? Allowed: size, colour, label"


def test_check_hands_the_context_to_the_components_own_check(shapes):
    assert shapes.check("square", {"size": 5}, room=3) == ["size=5 does not fit in 3"]
    assert shapes.check("square", {"size": 5}, room=3, hint="!", other=1) == ["size=5 does not fit in 3!"]
    assert shapes.check("square", {"size": 5}, room=8) == []


def test_what_a_check_needs_and_is_not_there_leaves_it_out(shapes):
    assert shapes.check("square", {"size": 5}) == []
    (message,) = shapes.check("square", {"size": "5"}, room=3)  # size is wrong, so that nothing can be said about room
    assert "size='5'" in message
    assert len(shapes.check("square", {"size": 5, "colour": "green"}, room=3)) == 2


def test_given_parameters_come_later(shapes):
    assert shapes.check("square", {}, {"size"}, room=3) == []
    assert "needs a value for 'size'" in shapes.check("square", {}, room=3)[0]


def test_describe(shapes):
    described = shapes.describe("square")
    assert described.pop("defined_at").startswith(__file__)
    assert described == {"name": "square", "summary": "A square.", "parameters": {"colour": "red", "label": None}}


def test_a_component_that_takes_anything():
    def anything(size: int, **rest):
        pass

    assert signature_errors(anything, {"size": 1, "other": 2}, "it") == []
    assert len(signature_errors(anything, {"size": "1"}, "it")) == 1


def test_a_package_is_imported_at_the_first_look_up(tmp_path, monkeypatch):
    package = tmp_path / "graftlab_test_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from registries.registry import Registry\nTHINGS = Registry('thing', __name__)"
    )
    (package / "one.py").write_text(
        "from graftlab_test_package import THINGS\n\n@THINGS.register('one')\ndef one():\n    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import graftlab_test_package

    assert graftlab_test_package.THINGS.build("one") == 1


def test_user_errors_hold_one_line_for_each_message():
    assert str(UserError(["a", "b"])) == "a\nb"
    assert UserError("a").messages == ["a"]


def test_nearest():
    assert nearest("toroidl", ["toroidal", "standard"]) == "; did you mean 'toroidal'?"
    assert nearest("xyz", ["toroidal"]) == "."


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_is_no_number(shapes, number):
    def other(room: Annotated[float, Ge(0)] | None = None, sizes: list[float] | None = None):
        pass

    (message,) = shapes.check("circle", {"radius": number})
    assert message == f"shape 'circle': radius={number} is not valid: Input should be a finite number"
    assert signature_errors(other, {"room": number}, "it")
    assert signature_errors(other, {"sizes": [1.0, number]}, "it")
