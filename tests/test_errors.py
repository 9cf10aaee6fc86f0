"""The tree of errors, and what its leaves say to callers."""

import errno
import inspect
import re

from ddfs import errors


def leaves() -> list[type[errors.DdfsError]]:
    found: list[type[errors.DdfsError]] = []
    todo: list[type[errors.DdfsError]] = [errors.DdfsError]
    while todo:
        kind = todo.pop()
        below = kind.__subclasses__()
        todo += below
        if not below:
            found.append(kind)
    return found


def test_every_leaf_knows_its_errno_status_and_exit_code() -> None:
    for leaf in leaves():
        assert leaf.errno in errno.errorcode
        assert 400 <= leaf.http_status <= 599
        assert leaf.exit_code in (
            errors.EXIT_REQUEST,
            errors.EXIT_SOURCE,
            errors.EXIT_HOST,
            errors.EXIT_NOT_READY,
        )


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = set(re.findall(r"[├└]── (\w+Error)", errors.__doc__ or ""))
    real = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert drawn | {"DdfsError"} == real


def test_kinds_are_stable_words() -> None:
    assert errors.UnknownTemplateError.kind() == "unknown-template"
    assert errors.DdfsError.kind() == "ddfs"
    assert len({leaf.kind() for leaf in leaves()}) == len(leaves())


def test_a_mirror_error_names_its_mirror_once() -> None:
    error = errors.MirrorError("http://a.example/x", "refused the connection")
    assert str(error) == "http://a.example/x: refused the connection"
    both = errors.MirrorsExhaustedError("no mirror has it", (error, error))
    assert str(both) == f"no mirror has it; {error}; {error}"
